"""Show-o's supervised losses equal a plain recomputation on full logits: the next token of a text, its end included, and masked image
tokens."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

import policies.heads.masked
from pararl.types import Output, Prompt
from policies import Policy
from policies.pretraining import supervised_loss
from policies.sequences import Sequences
from tests.policies import showo_by_hand as hand
from tests.policies.by_hand import GUIDED, KINDS, SHOWN, SPOKEN, Kind, code_ids, prefix, prompts, task_of, text_length
from tests.wording import telling

RATIOS = torch.tensor([0.9, 0.5, 0.7, 0.2])
ANSWERS = ("red circle above blue square", "green", "", "red red red red red red red red")
"""The last one fills its window: it has no end."""


def batch(kind: Kind) -> tuple[list[Prompt], list[Output]]:
    """Four prompts of a kind and what they should give; answers fit the window of 6 of tasks that give text alone."""
    images = np.random.default_rng(0).integers(0, 256, (4, 4, 6, 3), dtype=np.uint8)
    texts = ANSWERS if kind in GUIDED else [" ".join(text.split()[:6]) for text in ANSWERS]
    return prompts(kind, 4), [
        Output(text if kind in SPOKEN else None, image if kind in GUIDED else None) for text, image in zip(texts, images, strict=True)
    ]


@pytest.fixture
def seen(showo: Policy, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """Ids and attention that the policy was given, and mask ratios that are known."""
    given: list[tuple[Tensor, Tensor]] = []
    hidden = showo.model.hidden

    def watched(sequences: Sequences, columns: Tensor | None = None) -> Tensor:
        given.append((sequences.ids.clone(), sequences.mask.real.clone()))
        return hidden(sequences, columns)

    monkeypatch.setattr(showo.model, "hidden", watched)
    monkeypatch.setattr(policies.heads.masked, "noise_levels", lambda batch, generator: (RATIOS, RATIOS))
    return given


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_losses_equal_a_recomputation_on_full_logits(showo: Policy, seen: list[tuple[Tensor, Tensor]], kind: Kind) -> None:
    """Sequences are put together by hand, without padding; only which image tokens were hidden is taken from what the policy was given.
    An answer ends in <eos>, a text in front of an image in <|soi|>, one that fills its window in nothing."""
    asked, outputs = batch(kind)
    losses = supervised_loss(showo, asked, outputs, torch.Generator().manual_seed(0), drop=0.0)
    ((ids, attention),) = seen
    window, end = text_length(showo, task_of(kind)), hand.SOI if kind in GUIDED else hand.EOS
    assert set(losses) == {m for m, kinds in (("image", GUIDED), ("text", SPOKEN)) if kind in kinds}
    text: list[float] = []
    image: list[float] = []
    for b, (prompt, output) in enumerate(zip(asked, outputs, strict=True)):
        front, row = prefix(showo, prompt), ids[b, attention[b]].tolist()
        if kind in SPOKEN:
            words = showo.layout.text.encode(output.text or "")
            text += [-x for x in hand.text_logprobs(showo, front, [*words, end][:window])]
            front += words
        if output.image is None:
            assert row == front
            continue
        codes, shown = code_ids(showo, output.image), row[-7:-1]
        assert row == [*front, hand.SOI, *shown, hand.EOI]
        assert all(token in (code, hand.MASK) for token, code in zip(shown, codes, strict=True))
        logp = hand.image_logits(showo, front, shown).log_softmax(-1)
        image += [-float(logp[i, hand.CODES.index(code)]) for i, code in enumerate(codes) if shown[i] == hand.MASK]
    if text:
        assert len(text) == sum(min(window, len((o.text or "").split()) + 1) for o in outputs)
        assert float(losses["text"]) == pytest.approx(np.mean(text), rel=1e-5)
    if image:
        assert 0 < len(image) < 24 and float(losses["image"]) == pytest.approx(np.mean(image), rel=1e-5)


@torch.no_grad()
def test_image_tokens_are_hidden_at_the_drawn_ratios_and_text_is_not(showo: Policy, seen: list[tuple[Tensor, Tensor]]) -> None:
    asked, outputs = batch("interleaved+image")
    for seed in range(100):
        supervised_loss(showo, asked, outputs, torch.Generator().manual_seed(seed), drop=0.0)
    hidden = torch.stack([ids == hand.MASK for ids, _ in seen]).float()
    assert (hidden[..., -7:-1].mean((0, 2)) - RATIOS).abs().max() < 4 * 0.5 / 600**0.5
    assert hidden[..., :-7].sum() == hidden[..., -1:].sum() == 0


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("drop", "kept"), [(0.0, 1.0), (1.0, 0.0), (0.3, 0.7)])
def test_prompts_are_dropped_where_an_image_is_produced_and_their_images_never(
    showo: Policy, seen: list[tuple[Tensor, Tensor]], kind: Kind, drop: float, kept: float
) -> None:
    asked, outputs = batch(kind)
    asked = [replace(prompt, text="red above blue") for prompt in asked]
    whole = []
    for seed in range(25):
        supervised_loss(showo, asked, outputs, torch.Generator().manual_seed(seed), drop)
        ids, attention = seen[-1]
        for b, prompt in enumerate(asked):
            row, fronts = ids[b, attention[b]].tolist(), [prefix(showo, replace(prompt, text=text)) for text in ("red above blue", "")]
            full, empty = (row[: len(front)] == front for front in fronts)
            assert full or empty, "the input image and the task stay"
            whole.append(full)
    if kind not in GUIDED:
        kept = 1.0
    assert abs(np.mean(whole) - kept) <= (0 if kept in (0.0, 1.0) else 4 * 0.5 / 100**0.5)
    assert kind not in SHOWN or all(p.image is not None for p in asked)


@pytest.mark.parametrize("kind", KINDS)
def test_the_losses_have_gradients(showo: Policy, kind: Kind) -> None:
    for loss in supervised_loss(showo, *batch(kind), torch.Generator().manual_seed(0)).values():
        grads = torch.autograd.grad(loss, list(showo.model.parameters()), retain_graph=True)
        assert all(float(g.abs().max()) > 0 for g in grads)


def test_the_loss_is_what_the_sampler_maximises(showo: Policy) -> None:
    """Text alone: the negative mean log-probability per token of what the policy itself said, over all tokens of the batch."""
    rollouts = [r for r in showo.generate(prompts("i2t", 12), range(12), showo.sampling) if hand.EOS in r.segments[0].tokens]
    assert len(rollouts) > 2
    outputs = [Output(text=r.output.text) for r in rollouts]
    ends = [hand.ended(r.segments[0].tokens.tolist())[-1] for r in rollouts]
    kept = [i for i, end in enumerate(ends) if end == hand.EOS]
    with torch.no_grad():
        loss = supervised_loss(showo, [rollouts[i].prompt for i in kept], [outputs[i] for i in kept], torch.Generator().manual_seed(0))[
            "text"
        ]
    said = np.concatenate([rollouts[i].segments[0].logprob[rollouts[i].segments[0].commit_step >= 0] for i in kept])
    assert float(loss) == pytest.approx(-said.mean(), rel=1e-4)


@pytest.mark.parametrize(
    ("output", "tokens"),
    [
        (Output("red " * 9, np.zeros((4, 6, 3), np.uint8)), (9, 8)),
        (Output("red <|soi|> circle", np.zeros((4, 6, 3), np.uint8)), ("<|soi|>",)),
        (Output("red", None), ("image", 1)),
        (Output("red", np.zeros((8, 6, 3), np.uint8)), (12, 6)),
    ],
)
def test_targets_that_the_policy_could_never_yield_are_an_error(showo: Policy, output: Output, tokens: tuple[object, ...]) -> None:
    with pytest.raises(ValueError, match=telling(*tokens)):
        supervised_loss(showo, [Prompt("x", "interleaved", "red")], [output], torch.Generator().manual_seed(0))
