"""The supervised losses equal a plain recomputation on full logits at the masks that were drawn."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

import policies.heads.masked
from pararl.types import MODALITIES, Modality, Output, Prompt
from policies import Policy
from policies.heads.masked import noise_levels
from policies.pretraining import supervised_loss
from policies.sequences import Sequences
from tests.policies.by_hand import GUIDED, KINDS, SHOWN, SPOKEN, WORDS, Kind, code_ids, picture, prompts, sequence, task_of, text_length
from tests.policies.conftest import MakePolicy
from tests.wording import telling

IMAGE_RATIOS, TEXT_RATIOS = torch.tensor([0.9, 0.5, 0.7, 0.2]), torch.tensor([0.8, 0.5, 0.3, 0.6])
ANSWERS = ("red circle above blue square", "green", "", "red red red red red red red red")


def batch(kind: Kind) -> tuple[list[Prompt], list[Output]]:
    """Four prompts of a kind and what they should give; answers fit the window of 6 of tasks that give text alone."""
    images = np.random.default_rng(0).integers(0, 256, (4, 4, 6, 3), dtype=np.uint8)
    texts = ANSWERS if kind in GUIDED else [" ".join(text.split()[:6]) for text in ANSWERS]
    return prompts(kind, 4), [
        Output(text if kind in SPOKEN else None, image if kind in GUIDED else None) for text, image in zip(texts, images, strict=True)
    ]


@pytest.fixture
def seen(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """What the backbone was given, and mask ratios that are known."""
    given: list[tuple[Tensor, Tensor]] = []
    hidden = policy.model.hidden

    def watched(sequences: Sequences, columns: Tensor | None = None) -> Tensor:
        given.append((sequences.ids.clone(), sequences.mask.real.clone()))
        return hidden(sequences, columns)

    monkeypatch.setattr(policy.model, "hidden", watched)
    monkeypatch.setattr(policies.heads.masked, "noise_levels", lambda batch, generator: (IMAGE_RATIOS, TEXT_RATIOS))
    return given


def clean_targets(policy: Policy, outputs: list[Output], words: int) -> dict[Modality, Tensor]:
    """Image ids [batch, 6] and text ids [batch, words]: the words, then end of sequence to the end of the window."""
    ids = [[policy.layout.text.tokenizer.convert_tokens_to_ids(w) for w in (o.text or "").split()] for o in outputs]
    images = [code_ids(policy, o.image) for o in outputs if o.image is not None]
    eos = policy.settings.specials.eos
    return {"image": torch.tensor(images), "text": torch.tensor([(row + [eos] * words)[:words] for row in ids])}


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_losses_equal_a_recomputation_on_full_logits(policy: Policy, seen: list[tuple[Tensor, Tensor]], kind: Kind) -> None:
    """Sequences are put together by hand, without padding; only which tokens were hidden is taken from what the backbone was given."""
    asked, outputs = batch(kind)
    losses = supervised_loss(policy, asked, outputs, torch.Generator().manual_seed(0), drop=0.0)
    ((ids, attention),) = seen
    mask, words = policy.settings.specials.mask, text_length(policy, task_of(kind))
    sizes = {"image": 6 if kind in GUIDED else 0, "text": words}
    clean = clean_targets(policy, outputs, words)
    assert set(losses) == {m for m, n in sizes.items() if n}
    hidden: dict[str, list[Tensor]] = {m: [] for m in losses}
    for b, prompt in enumerate(asked):
        row = ids[b, attention[b]]
        _, starts = sequence(policy, prompt, {m: clean[m][b].tolist() for m in MODALITIES if m in losses})
        hide = {m: row[start : start + sizes[m]] == mask for m, start in starts.items()}
        given, _ = sequence(policy, prompt, {m: clean[m][b].masked_fill(h, mask).tolist() for m, h in hide.items()})
        assert row.tolist() == given and not attention[b].diff().lt(0).any(), "padding stands in front"
        full = policy.model(torch.tensor([given]), torch.ones(1, len(given), dtype=torch.bool))[0].double()
        for m, start in starts.items():
            rows = list(range(16, 24)) if m == "image" else [policy.settings.specials.eos, *WORDS]
            logits = full[start : start + sizes[m]]
            logp = logits.gather(-1, clean[m][b][:, None]).squeeze(-1) - logits[:, rows].logsumexp(-1)
            hidden[m].append(-logp[hide[m]] if m == "image" else -logp[hide[m]].sum() / words / TEXT_RATIOS[b].double())
    if "image" in losses:
        assert 0 < len(torch.cat(hidden["image"])) < 24
        assert torch.allclose(losses["image"].double(), torch.cat(hidden["image"]).mean(), rtol=1e-5)
    if "text" in losses:
        assert torch.allclose(losses["text"].double(), torch.stack(hidden["text"]).mean(), rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["i2t", "interleaved+image"])
def test_tokens_are_hidden_at_the_drawn_ratios(policy: Policy, seen: list[tuple[Tensor, Tensor]], kind: Kind) -> None:
    asked, outputs = batch(kind)
    for seed in range(100):
        supervised_loss(policy, asked, outputs, torch.Generator().manual_seed(seed), drop=0.0)
    words = text_length(policy, task_of(kind))
    hidden = torch.stack([ids == policy.settings.specials.mask for ids, _ in seen]).float()
    assert (hidden[..., -words:].mean((0, 2)) - TEXT_RATIOS).abs().max() < 4 * 0.5 / (100 * words) ** 0.5
    before = hidden[..., :-words]
    if kind in GUIDED:
        assert (before[..., -8:-2].mean((0, 2)) - IMAGE_RATIOS).abs().max() < 4 * 0.5 / 600**0.5
        assert before[..., -2:].sum() == 0, "<eoi> and <bos> stay"
        before = before[..., :-8]
    assert before.sum() == 0, "the prompt and its image stay"


def with_words(policy: Policy, ids: Tensor, width: int) -> list[bool]:
    """Which rows have a word of the vocabulary in front of their ``width`` generated columns."""
    return [bool(torch.isin(row, torch.tensor(WORDS)).any()) for row in ids[:, : ids.shape[1] - width]]


@torch.no_grad()
@pytest.mark.parametrize("kind", GUIDED)
@pytest.mark.parametrize(("drop", "kept"), [(0.0, 1.0), (1.0, 0.0), (0.3, 0.7)])
def test_prompts_are_dropped_at_their_rate_and_their_images_never(
    policy: Policy, seen: list[tuple[Tensor, Tensor]], kind: Kind, drop: float, kept: float
) -> None:
    asked, outputs = batch(kind)
    asked = [replace(prompt, text="red above blue") for prompt in asked]
    for seed in range(50):
        supervised_loss(policy, asked, outputs, torch.Generator().manual_seed(seed), drop)
    width = 8 + (9 if kind in SPOKEN else 0)
    rows = [row for ids, _ in seen for row in with_words(policy, ids, width)]
    assert abs(sum(rows) / len(rows) - kept) <= (0 if drop in (0.0, 1.0) else 4 * 0.5 / 200**0.5)
    if kind in SHOWN:
        for ids, attention in seen:
            for b, prompt in enumerate(asked):
                assert ids[b, attention[b]].tolist()[2:8] == code_ids(policy, picture(b % 3)) and prompt.image is not None


@torch.no_grad()
@pytest.mark.parametrize("kind", GUIDED)
@pytest.mark.parametrize("blank", [None, WORDS[0]])
def test_prompts_dropped_in_training_are_those_that_guidance_compares_with(
    make_policy: MakePolicy, monkeypatch: pytest.MonkeyPatch, kind: Kind, blank: int | None
) -> None:
    """Also where an input image that is not there is spelled out, as MMaDA-Parallel-M has it, which then goes with the text."""
    own = make_policy(blank_image=blank)
    given: list[Tensor] = []
    hidden = own.model.hidden

    def watched(sequences: Sequences, columns: Tensor | None = None) -> Tensor:
        given.append(sequences.ids.clone())
        return hidden(sequences, columns)

    monkeypatch.setattr(own.model, "hidden", watched)
    asked, outputs = batch(kind)
    for drop in (1.0, 0.0):
        supervised_loss(own, asked, outputs, torch.Generator().manual_seed(0), drop)
    whole, free = (own.layout.canvases(asked, [part], own.layout.shown(asked))[0] for part in (None, "text"))
    for ids, expected in zip(given, (free, whole), strict=True):
        assert torch.equal(ids[:, : expected.prefix], expected.ids[:, : expected.prefix])
    assert free.ids.tolist() != whole.ids.tolist()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["t2t", "i2t"])
def test_the_text_of_tasks_that_give_text_alone_is_never_dropped(policy: Policy, seen: list[tuple[Tensor, Tensor]], kind: Kind) -> None:
    asked, outputs = batch(kind)
    asked = [replace(prompt, text="red above blue") for prompt in asked]
    for seed in range(10):
        supervised_loss(policy, asked, outputs, torch.Generator().manual_seed(seed), drop=1.0)
    assert len(seen) == 10 and all(all(with_words(policy, ids, 6)) for ids, _ in seen)


def test_both_modalities_run_on_one_clock() -> None:
    image, text = noise_levels(1000, torch.Generator().manual_seed(0))
    assert torch.allclose(image, torch.sin(text * math.pi / 2), atol=1e-2) and float(text.min()) >= 1e-3
    assert (text[image.argsort()].diff() >= -1e-3).all(), "what hides more of the image hides more text"
    assert abs(float(text.mean()) - 0.5) < 4 / 12**0.5 / 1000**0.5


def test_the_times_of_a_batch_are_one_in_every_stratum() -> None:
    _, text = noise_levels(64, torch.Generator().manual_seed(3))
    assert ((1 - text.double()) * 64).floor().int().tolist() == list(range(64))


@pytest.mark.parametrize("kind", KINDS)
def test_the_losses_have_gradients(policy: Policy, kind: Kind) -> None:
    losses = supervised_loss(policy, *batch(kind), torch.Generator().manual_seed(0))
    for loss in losses.values():
        grads = torch.autograd.grad(loss, list(policy.model.parameters()), retain_graph=True)
        assert all(float(g.abs().max()) > 0 for g in grads)


@pytest.mark.parametrize(
    ("output", "tokens"),
    [
        (Output("red " * 9, np.zeros((4, 6, 3), np.uint8)), (9, 8)),
        (Output("red <|soi|> circle", np.zeros((4, 6, 3), np.uint8)), ("<|soi|>",)),
        (Output("red", None), ("image", 1)),
        (Output("red", np.zeros((8, 6, 3), np.uint8)), (12, 6)),
    ],
)
def test_targets_that_the_policy_could_never_yield_are_an_error(policy: Policy, output: Output, tokens: tuple[object, ...]) -> None:
    with pytest.raises(ValueError, match=telling(*tokens)):
        supervised_loss(policy, [Prompt("x", "interleaved", "red")], [output], torch.Generator().manual_seed(0))


def test_an_answer_that_does_not_fit_its_window_is_an_error(policy: Policy) -> None:
    with pytest.raises(ValueError, match=telling(7, 6)):
        supervised_loss(policy, prompts("i2t", 1), [Output("red " * 7)], torch.Generator().manual_seed(0))
