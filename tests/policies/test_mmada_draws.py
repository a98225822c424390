"""ELBOs of the mmada policy at draws: their exact expectation, what a draw hides, and what of it counts."""

import itertools
import math
from collections import defaultdict
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch

from pararl.options import Drawing, Sampling
from pararl.types import MODALITIES, Modality, Prompt, Rollout
from policies import Policy
from tests.policies.by_hand import KINDS, SPOKEN, Kind, prompts, rollouts, token_logprobs
from tests.policies.conftest import MakePolicy

RATIOS: dict[Modality, tuple[float, float]] = {"image": (0.6, 1.0), "text": (0.25, 1.0)}


def states(modality: Modality, n: int, blocks: int, clock: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """The equally likely (hidden, counted) masks of a modality at a clock: of the block that the clock stands in, ceil(r s) of its s
    tokens count, r going from low to high through the block; those behind it are hidden."""
    size, (low, high) = n // blocks, RATIOS[modality]
    behind = math.ceil(clock * blocks) - 1
    first = (blocks - 1 - behind) * size
    k = math.ceil((low + (high - low) * (clock * blocks - behind)) * size)
    out = []
    for some in itertools.combinations(range(first, first + size), k):
        counted = np.isin(np.arange(n), some)
        out.append((counted | (np.arange(n) >= first + size), counted))
    return out


def exact_elbo(policy: Policy, rollout: Rollout, text_blocks: int) -> dict[Modality, float]:
    """The ELBO's expectation by enumeration: every mask of every modality on one clock, which is uniform on (0, 1]; a set of k of n tokens
    has weight n / k."""
    sizes = {s.modality: len(s.tokens) for s in rollout.segments}
    total: dict[Modality, float] = dict.fromkeys(sizes, 0.0)
    chances: defaultdict[tuple[tuple[Modality, bytes, bytes], ...], float] = defaultdict(float)
    cells = 1200  # counts change at multiples of 1 / 1200 alone, as sizes and ratios are here
    for cell in range(cells):
        each = [states(m, n, text_blocks if m == "text" else 1, (cell + 0.5) / cells) for m, n in sizes.items()]
        alike = math.prod(len(some) for some in each)
        for state in itertools.product(*each):
            chances[tuple((m, h.tobytes(), c.tobytes()) for m, (h, c) in zip(sizes, state, strict=True))] += 1 / alike / cells
    for key, chance in chances.items():
        hidden = {m: np.frombuffer(h, bool) for m, h, _ in key}
        logp = token_logprobs(policy, rollout, hidden)
        for modality, _, c in key:
            counted = np.frombuffer(c, bool)
            total[modality] += chance * float(logp[modality][counted].sum()) / counted.sum()
    return total


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "text_masks"),
    [*((kind, "random") for kind in KINDS), *((kind, "block") for kind in SPOKEN)],
)
def test_the_elbo_has_the_expectation_that_enumeration_gives(
    make_policy: MakePolicy, kind: Kind, text_masks: Literal["random", "block"]
) -> None:
    sizes = {"grid": (1, 3), "text_tokens": 4, "text_block": 2, "answer_tokens": 4, "answer_block": 2}
    tiny = make_policy(**sizes, image_ratio=RATIOS["image"], text_ratio=RATIOS["text"])
    prompt = prompts(kind, 1)[0]
    (one,) = tiny.generate([replace(prompt, image=None if prompt.image is None else prompt.image[:2])], [0], Sampling(steps=4))
    exact = exact_elbo(tiny, one, 2 if text_masks == "block" else 1)
    # Copies under other prompt ids get draws of their own.
    copies = [replace(one, prompt=replace(one.prompt, id=str(i))) for i in range(256)]
    values = tiny.log_likelihood(copies, tiny.draws(copies, 8, torch.Generator().manual_seed(0), Drawing(text_masks=text_masks)))
    assert exact.keys() == {s.modality for s in one.segments}
    for modality, expected in exact.items():
        column = values[:, MODALITIES.index(modality)]
        error = float(column.std()) / 256**0.5
        assert abs(float(column.mean()) - expected) < 4 * error
        assert 0 < error < 0.02 * abs(expected), "the bound is tight enough to mean something"


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("drawing", [Drawing(), Drawing(text_masks="block", image_rows="all", image_ratio=0.0, text_ratio=0.5)])
def test_a_draw_equals_a_plain_recomputation(policy: Policy, kind: Kind, drawing: Drawing) -> None:
    batch = rollouts(policy, kind)
    draws = policy.draws(batch, 3, torch.Generator().manual_seed(1), drawing)
    found = policy.log_likelihood(batch, draws)
    assert found.shape == (len(batch), 2) and found.dtype == torch.float32
    tokens = [policy.draw_tokens(batch, draw) for draw in draws]
    for b, rollout in enumerate(batch):
        expected = np.zeros(2)
        for d in range(3):
            hidden = {m: mask[d, b].numpy() for m, mask in draws.masks.items()}
            for modality, logp in token_logprobs(policy, rollout, hidden, drawing.image_rows).items():
                counted = draws.counted[modality][d, b].numpy()
                own = logp[counted].sum() / len(logp) * float(draws.weights[modality][d, b]) / 3
                expected[MODALITIES.index(modality)] += own
                assert np.allclose(tokens[d][modality].logprob[b].numpy(), np.where(counted, logp, 0), rtol=1e-5, atol=1e-5)
        assert np.allclose(found[b].numpy(), expected, rtol=1e-5, atol=1e-5)


# ---- draws


def test_draws_hide_tokens_at_the_ratio_of_their_weight(make_policy: MakePolicy) -> None:
    wide = make_policy(grid=(20, 20), image_ratio=(0.6, 1.0))
    prompts = [Prompt(str(i), "t2i", "red") for i in range(6)]
    batch = wide.generate(prompts, range(6), Sampling(steps=1))
    draws = wide.draws(batch, 4, torch.Generator().manual_seed(0))
    ratio = 1 / draws.weights["image"]
    assert draws.masks["image"].shape == (4, 6, 400)
    assert float(ratio.min()) > 0.6 and float(ratio.max()) <= 1 + 1e-6
    assert torch.allclose(draws.masks["image"].float().mean(-1), ratio)
    places = (ratio - 0.6) / 0.4 * 4 - 1e-3  # a count is rounded up
    assert all(int(places[i, b]) == i for i in range(4) for b in range(6)), "one ratio in each quarter of the range"


def test_images_are_hidden_from_their_published_ratio_on_by_default(make_policy: MakePolicy) -> None:
    own = make_policy(grid=(20, 20))
    batch = own.generate([Prompt(str(i), "t2i", "red") for i in range(20)], range(20), Sampling(steps=1))
    shares = own.draws(batch, 4, torch.Generator().manual_seed(0)).counted["image"].float().mean(-1)
    assert 0.6 < float(shares.min()) < 0.63 and float(shares.max()) > 0.97


@pytest.mark.parametrize("low", [0.0, 0.3, 0.9, 1.0])
def test_the_lowest_ratio_of_an_image_or_a_text_is_as_asked(make_policy: MakePolicy, low: float) -> None:
    wide = make_policy(grid=(20, 20), text_tokens=400, text_block=100, prompt_tokens=8)
    batch = wide.generate([Prompt(str(i), "interleaved", "red") for i in range(20)], range(20), Sampling(steps=4))
    draws = wide.draws(batch, 4, torch.Generator().manual_seed(0), Drawing(image_ratio=low, text_ratio=low))
    for weights in draws.weights.values():
        assert float((1 / weights).min()) > low - 1e-6 and float((1 / weights).max()) <= 1 + 1e-6
        assert float((1 / weights).min()) <= low + (1 - low) / 4, "and no higher"
    block = wide.draws(batch, 4, torch.Generator().manual_seed(0), Drawing(text_ratio=low, text_masks="block"))
    shares = block.counted["text"].unflatten(-1, (4, 100)).float().mean(-1).amax(-1)
    assert float(shares.min()) > low - 1e-6 and torch.allclose(1 / block.weights["text"], shares / 4)
    assert torch.equal(block.masks["image"], wide.draws(batch, 4, torch.Generator().manual_seed(0)).masks["image"])


@pytest.mark.parametrize("kind", SPOKEN)
def test_block_masks_follow_the_blocks_of_the_sampler(policy: Policy, kind: Kind) -> None:
    """Whatever a draw shows the model, the sampler may have shown it too: the first half of the text before the second."""
    batch = rollouts(policy, kind, group=2)
    draws = policy.draws(batch, 8, torch.Generator().manual_seed(0), Drawing(text_masks="block"))
    first, second = draws.masks["text"].unflatten(-1, (2, -1)).unbind(-2)
    early = first.any(-1)
    assert second[early].all() and not draws.counted["text"].unflatten(-1, (2, -1))[..., 1, :][early].any()
    assert early.sum(0).eq(4).all(), "eight stratified draws see either block four times"
    assert second[~early].any(-1).all() and not second[~early].all(-1).all()


def test_a_shorter_last_block_is_one_too(make_policy: MakePolicy) -> None:
    """Five tokens in blocks of three: the sampler's second block has two."""
    own = make_policy(answer_tokens=5, answer_block=3)
    batch = own.generate(prompts("t2t", 4), range(4), Sampling(steps=4))
    draws = own.draws(batch, 25, torch.Generator().manual_seed(0), Drawing(text_masks="block"))
    first = draws.counted["text"][..., :3].any(-1)
    assert first.sum(0).eq(15).all(), "drawn as often as it has tokens"
    assert draws.masks["text"][first][:, 3:].all() and not draws.counted["text"][first][:, 3:].any()
    assert not draws.masks["text"][~first][:, :3].any() and draws.counted["text"][~first][:, 3:].any(-1).all()


def test_draws_follow_the_generator(policy: Policy) -> None:
    batch = rollouts(policy, "t2i")
    a, b, c = (policy.draws(batch, 3, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(a.masks["image"], b.masks["image"]) and not torch.equal(a.masks["image"], c.masks["image"])
