"""The supervised losses equal a plain recomputation on full logits at the masks that were drawn."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import policies.pretraining
from pararl.types import Output, Prompt, Task
from policies.mmada import MMadaPolicy
from policies.pretraining import noise_levels, supervised_loss

IMAGE_RATIOS, TEXT_RATIOS = torch.tensor([0.9, 0.5, 0.7, 0.2]), torch.tensor([0.8, 0.5, 0.3, 0.6])
ANSWERS = ("red circle above blue square", "green", "", "red red red red red red red red")
PROMPTS = ("red circle", "blue", "green square above red", "circle")


def batch(task: Task) -> tuple[list[Prompt], list[Output]]:
    images = np.random.default_rng(0).integers(0, 256, (4, 4, 6, 3), dtype=np.uint8)
    prompts = [Prompt(str(i), task, text) for i, text in enumerate(PROMPTS)]
    return prompts, [Output(text if task == "interleaved" else None, image) for text, image in zip(ANSWERS, images, strict=True)]


@pytest.fixture
def seen(policy: MMadaPolicy, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """What the backbone was given, and mask ratios that are known."""
    given: list[tuple[Tensor, Tensor]] = []
    hidden = policy.model.hidden

    def watched(ids: Tensor, attention: Tensor) -> Tensor:
        given.append((ids.clone(), attention.clone()))
        return hidden(ids, attention)

    monkeypatch.setattr(policy.model, "hidden", watched)
    monkeypatch.setattr(policies.pretraining, "noise_levels", lambda batch, generator: (IMAGE_RATIOS, TEXT_RATIOS))
    return given


def clean_targets(policy: MMadaPolicy, outputs: list[Output]) -> tuple[Tensor, Tensor]:
    """Image ids [batch, 6] and text ids [batch, 8]: the words, then end of sequence to the end of the window."""
    images = torch.stack([torch.from_numpy(o.image).permute(2, 0, 1) for o in outputs if o.image is not None]).float() / 255 * 2 - 1
    ids = [[policy.tokenizer.convert_tokens_to_ids(w) for w in (o.text or "").split()] for o in outputs]
    eos = policy.settings.specials.eos
    return policy.images.get_code(images) + 16, torch.tensor([(row + [eos] * 8)[:8] for row in ids])


@torch.no_grad()
@pytest.mark.parametrize("task", ["t2i", "interleaved"])
def test_losses_equal_a_recomputation_on_full_logits(policy: MMadaPolicy, seen: list[tuple[Tensor, Tensor]], task: Task) -> None:
    prompts, outputs = batch(task)
    losses = supervised_loss(policy, prompts, outputs, torch.Generator().manual_seed(0), drop=0.0)
    ((ids, attention),) = seen
    start = 1 + int(attention.shape[1] - (1 + 6 + 1 + (9 if task == "interleaved" else 0)))
    image, text = clean_targets(policy, outputs)
    logits = policy.model.head(policy.model.hidden(ids, attention)).double()
    mask = policy.settings.specials.mask
    hide = ids[:, start : start + 6] == mask
    assert torch.equal(ids[:, start : start + 6][~hide], image[~hide]) and 0 < int(hide.sum()) < hide.numel()
    logp = logits[:, start : start + 6, 16:24].log_softmax(-1).gather(-1, image[..., None] - 16).squeeze(-1)
    assert torch.allclose(losses["image"].double(), -logp[hide].mean(), rtol=1e-5)
    assert set(losses) == ({"image", "text"} if task == "interleaved" else {"image"})
    if task == "interleaved":
        hide = ids[:, -8:] == mask
        assert torch.equal(ids[:, -8:][~hide], text[~hide]) and 0 < int(hide.sum()) < hide.numel()
        allowed = [policy.settings.specials.eos, *range(10, 16)]
        logp = logits[:, -8:].gather(-1, text[..., None]).squeeze(-1) - logits[:, -8:, allowed].logsumexp(-1)
        rows = [-(logp[b][hide[b]].sum() / 8 / float(TEXT_RATIOS[b])) for b in range(4)]
        assert torch.allclose(losses["text"].double(), sum(rows) / torch.tensor(4.0).double(), rtol=1e-5)


@torch.no_grad()
def test_tokens_are_hidden_at_the_drawn_ratios(policy: MMadaPolicy, seen: list[tuple[Tensor, Tensor]]) -> None:
    prompts, outputs = batch("interleaved")
    for seed in range(200):
        supervised_loss(policy, prompts, outputs, torch.Generator().manual_seed(seed))
    hidden = torch.stack([ids[:, -16:] == policy.settings.specials.mask for ids, _ in seen]).float()
    assert (hidden[..., :6].mean((0, 2)) - IMAGE_RATIOS).abs().max() < 4 * 0.5 / 1200**0.5
    assert (hidden[..., -8:].mean((0, 2)) - TEXT_RATIOS).abs().max() < 4 * 0.5 / 1600**0.5
    assert hidden[..., 6:8].sum() == 0, "<eoi> and <bos> stay"


@torch.no_grad()
@pytest.mark.parametrize(("drop", "kept"), [(0.0, 1.0), (1.0, 0.0), (0.3, 0.7)])
def test_prompts_are_dropped_at_their_rate(policy: MMadaPolicy, seen: list[tuple[Tensor, Tensor]], drop: float, kept: float) -> None:
    prompts, outputs = batch("t2i")
    for seed in range(100):
        supervised_loss(policy, prompts, outputs, torch.Generator().manual_seed(seed), drop)
    with_words = [bool(((row >= 10) & (row < 16)).any()) for ids, _ in seen for row in ids]
    share = sum(with_words) / len(with_words)
    assert abs(share - kept) <= (0 if drop in (0.0, 1.0) else 4 * 0.5 / 20)


def test_both_modalities_run_on_one_clock() -> None:
    image, text = noise_levels(1000, torch.Generator().manual_seed(0))
    assert torch.allclose(image, torch.sin(text * math.pi / 2), atol=1e-2) and float(text.min()) >= 1e-3
    assert (text[image.argsort()].diff() >= -1e-3).all(), "what hides more of the image hides more text"
    assert abs(float(text.mean()) - 0.5) < 4 / 12**0.5 / 1000**0.5


def test_the_losses_have_gradients(policy: MMadaPolicy) -> None:
    losses = supervised_loss(policy, *batch("interleaved"), torch.Generator().manual_seed(0))
    for loss in losses.values():
        grads = torch.autograd.grad(loss, list(policy.model.parameters()), retain_graph=True)
        assert all(float(g.abs().max()) > 0 for g in grads)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (Output("red " * 9, np.zeros((4, 6, 3), np.uint8)), "text of 9 tokens does not fit the window of 8"),
        (Output("a yellow circle", np.zeros((4, 6, 3), np.uint8)), "which a text position never yields"),
        (Output("red", None), "1 of 1 outputs have no image"),
        (Output("red", np.zeros((8, 6, 3), np.uint8)), "make 12 tokens, but the policy's grid has 6"),
    ],
)
def test_targets_that_the_policy_could_never_yield_are_an_error(policy: MMadaPolicy, output: Output, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        supervised_loss(policy, [Prompt("x", "interleaved", "red")], [output], torch.Generator().manual_seed(0))
