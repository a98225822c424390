"""Outputs of several texts and images in a row: sampled in their order, and measured as they were sampled."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pararl import adapter
from pararl.arms import ARM_SPECS
from pararl.config import Arm, LearnerConfig, PreferConfig
from pararl.learner.credit import image_credit, text_credit
from pararl.learner.learner import Learner
from pararl.learner.prefer import prefer
from pararl.learner.tables import longest, step_table
from pararl.options import Drawing, Sampling
from pararl.types import Judgement, Output, Prompt, Rollout, Score, Task
from policies import Policy
from policies.canvas import Span, Tail
from policies.pretraining import supervised_loss
from tests.policies import showo_by_hand as hand
from tests.policies.conftest import build_policy, build_showo
from tests.policies.subjects import build_chameleon, build_showo2

STEPS = 4
SAMPLING = Sampling(steps=STEPS, recorded=STEPS, guidance=1.0, flow_noise=0.7)
ORDERS = {
    "showo": (build_showo, ("text", "image", "text", "image", "text")),
    "showo images": (build_showo, ("image", "image", "text")),
    "showo2": (build_showo2, ("text", "image", "text", "image")),
    "mmada": (build_policy, ("image", "text", "image", "text")),
    "chameleon": (build_chameleon, ("text", "image", "image", "text")),
}


def turns(build: Any, order: Sequence[str]) -> Policy:
    """A policy whose interleaved outputs have the segments of ``order``, each laid out as in its family."""
    made: Policy = build()
    settings, sp = made.settings, made.settings.specials
    ids: list[int] = []
    spans: list[Span] = []
    for modality in order:
        if modality == "text":
            blank = [sp.pad] * 4 if made.layout.causal else [sp.mask] * 4
            ids += [] if made.layout.causal else [sp.bos]
            spans.append(Span("text", len(ids), len(ids) + 4))
            ids += blank
        else:
            tokens = settings.grid[0] * settings.grid[1]
            ids += [sp.soi, *[sp.mask] * made.layout.columns, sp.eoi]
            spans.append(Span("image", len(ids) - 1 - tokens, len(ids) - 1))

    class Turns(type(made.layout)):  # type: ignore[misc]
        def tail(self, task: Task) -> Tail:
            return Tail(tuple(ids), tuple(spans))

    layout = Turns(made.layout.text, made.layout.images, replace(settings, tasks=("interleaved",)))
    return Policy(
        made.family,
        made.model,
        layout,
        tokens=made.tokens,
        text=made.heads["text"],
        image=made.heads["image"],
        lora_targets=made.lora_targets,
    )


@pytest.fixture(scope="module", params=ORDERS)
def case(request: pytest.FixtureRequest) -> tuple[Policy, tuple[str, ...], list[Rollout]]:
    build, order = ORDERS[request.param]
    policy = turns(build, order)
    return policy, order, sampled(policy)


def sampled(policy: Policy, sampling: Sampling = SAMPLING) -> list[Rollout]:
    words = ("red circle", "a blue square above green circle" if policy.family == "showo2" else "blue square above green circle")
    asked = [Prompt(f"p{i}", "interleaved", words[i]) for i in (0, 0, 1, 1)]
    return [replace(r, index=i % 2) for i, r in enumerate(policy.generate(asked, range(4), sampling))]


Case = tuple[Policy, tuple[str, ...], list[Rollout]]


def test_an_output_has_its_segments_in_order(case: Case) -> None:
    policy, order, made = case
    for rollout in made:
        assert tuple(s.modality for s in rollout.segments) == order
        assert len(rollout.output.parts) == len(order)
        texts = [part.text for part, modality in zip(rollout.output.parts, order, strict=True) if modality == "text"]
        images = [part.image for part, modality in zip(rollout.output.parts, order, strict=True) if modality == "image"]
        assert rollout.output.text == " ".join(str(text) for text in texts) and rollout.output.image is images[-1]
    alone = policy.generate([made[2].prompt], [2], SAMPLING)[0]
    for a, b in zip(alone.segments, made[2].segments, strict=True):
        assert np.allclose(a.tokens, b.tokens, atol=1e-4), "batch mates do not matter"
    first, second = (np.stack([r.segments[place].tokens for r in made]) for place in [i for i, m in enumerate(order) if m == "image"])
    assert not np.allclose(first, second), "the second image is another one"


def test_its_likelihood_at_its_steps_is_that_of_its_sampler(case: Case) -> None:
    """The sampler went from segment to segment behind what it had read; the likelihood looks at whole sequences."""
    policy, _, made = case
    with torch.no_grad():
        table = step_table(policy, policy.prepare(made))
    assert table.logprob.shape[-1] == longest(made) and table.committed.any(-1).any(1).all(), "every modality counts"
    assert torch.allclose(table.logprob, table.behaviour, rtol=0, atol=2e-4 if policy.family == "showo2" else 1e-5)


@pytest.mark.parametrize("order", [ORDERS[name][1] for name in ("showo", "showo images")])
@torch.no_grad()
def test_a_draw_shows_what_is_in_front_and_nothing_of_what_is_behind(order: tuple[str, ...]) -> None:
    """By hand: one unpadded sequence for each segment, with the finished ones in front of it."""
    policy = turns(build_showo, order)
    made = sampled(policy)
    (draw,) = policy.draws(made, 1, torch.Generator().manual_seed(3))
    found = policy.draw_tokens(made, draw)
    for b, rollout in enumerate(made):
        assert rollout.prompt_ids is not None
        front, ends = rollout.prompt_ids.tolist(), {"text": 0, "image": 0}
        for segment in rollout.segments:
            tokens = segment.tokens.tolist()
            place = slice(ends[segment.modality], ends[segment.modality] + len(tokens))
            ends[segment.modality] = place.stop
            got = found[segment.modality].logprob[b, place]
            if segment.modality == "text":
                counted = hand.ended(tokens)
                rows = hand.logits(policy, [*front, *counted])[len(front) - 1 : -1][:, hand.SAYS].log_softmax(-1)
                expected = [rows[i, hand.SAYS.index(token)].item() for i, token in enumerate(counted)]
                assert got[: len(counted)].tolist() == pytest.approx(expected, abs=1e-5) and got[len(counted) :].eq(0).all()
                front += hand.said(tokens)
                continue
            hidden = draw.masks["image"][0, b, place]
            ids = [*front, hand.SOI, *torch.tensor(tokens).where(~hidden, hand.MASK).tolist(), hand.EOI]
            rows = hand.logits(policy, ids)[len(front) + 1 : -1][:, hand.CODES].log_softmax(-1)
            wanted = [rows[i, hand.CODES.index(token)].item() * bool(hidden[i]) for i, token in enumerate(tokens)]
            assert got.tolist() == pytest.approx(wanted, abs=1e-5)
            front += [hand.SOI, *tokens, hand.EOI]


@torch.no_grad()
def test_a_continuous_image_is_drawn_behind_the_finished_one_in_front_of_it() -> None:
    """The second image alone changes with its noise; the first changes what the second is worth."""
    policy = turns(*ORDERS["showo2"])
    made = sampled(policy)
    (draw,) = policy.draws(made, 1, torch.Generator().manual_seed(3))
    n = len(made[0].segments[1].tokens)
    plain = policy.draw_tokens(made, draw)["image"].logprob
    assert draw.noise is not None and plain.shape == (4, 2 * n)
    other = draw.noise.clone()
    other[:, :, :n] += 1
    first = policy.draw_tokens(made, replace(draw, noise=other))["image"].logprob
    assert not torch.allclose(first[:, :n], plain[:, :n]) and torch.allclose(first[:, n:], plain[:, n:], atol=1e-5)
    shifted = [replace(r, segments=(r.segments[0], replace(r.segments[1], tokens=r.segments[1].tokens + 1), *r.segments[2:])) for r in made]
    moved = policy.draw_tokens(shifted, draw)["image"].logprob
    assert not torch.allclose(moved[:, n:], plain[:, n:], atol=1e-4)
    velocities = policy.draw_tokens(made, draw)["image"].velocities
    assert velocities is not None and velocities.shape[:2] == (4, 2 * n)


@pytest.mark.parametrize("arm", ["pararl", "pararl_grpo", "online_dpo"])
def test_a_learner_learns_from_it(case: Case, arm: Arm) -> None:
    """Recorded steps and draws: preferred outputs become likelier than the others, all segments counted."""
    build, order = next(value for value in ORDERS.values() if value[1] == case[1])
    policy = turns(build, order)
    config = LearnerConfig(lr=1e-2, beta=1.0, reference_every=0, likelihood="elbo" if arm == "online_dpo" else "steps")
    learner = Learner(policy, adapter.attach(policy, rank=4, alpha=8, seed=1), config, ARM_SPECS[arm])
    made = sampled(policy)
    judged = [Judgement(Score(float(i % 2)), (Score(float(i % 2)),) * STEPS) for i in range(len(made))]
    feedback = prefer(made, judged, ARM_SPECS[arm], PreferConfig(min_margin=0.0), 0.5, keep=8)

    def gap() -> float:
        with torch.no_grad():
            likelihood = policy.log_likelihood(made, policy.draws(made, 16, torch.Generator().manual_seed(0))).sum(1)
        return float(likelihood[1::2].mean() - likelihood[::2].mean())

    before = gap()
    for _ in range(3):
        metrics = learner.update(made, feedback)
        assert np.isfinite(metrics["loss/total"])
    assert gap() > before


def test_it_is_taught_like_any_other(case: Case) -> None:
    """Its supervised loss has all its segments: another last one changes it, whatever the modality."""
    policy, order, made = case
    prompts = [r.prompt for r in made[::2]]
    words = ["red circle", "blue", "square"]
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*policy.layout.images.size, 3), dtype=np.uint8)
    parts = [Output(text=words[i % 3]) if m == "text" else Output(image=np.roll(image, i, 0)) for i, m in enumerate(order)]
    last = Output(text="green") if order[-1] == "text" else Output(image=255 - image)

    def losses(parts: list[Output]) -> dict[str, float]:
        outputs = [Output.of(parts)] * len(prompts)
        return {m: x.item() for m, x in supervised_loss(policy, prompts, outputs, torch.Generator().manual_seed(0), drop=0.0).items()}

    plain, changed = losses(parts), losses([*parts[:-1], last])
    assert plain.keys() == set(order) and all(np.isfinite(x) and x > 0 for x in plain.values())
    assert plain[order[-1]] != pytest.approx(changed[order[-1]], abs=1e-4)


def test_credit_falls_on_the_last_image_and_on_the_words_of_all_texts(case: Case) -> None:
    policy, order, made = case
    width = longest(made)
    rows, columns = policy.grid
    images, n = order.count("image"), rows * columns
    found = image_credit(policy, made, np.ones((len(made), rows, columns), np.float32), width)
    assert found.sum(1).eq(n).all() and found[:, (images - 1) * n : images * n].eq(1).all()
    for row, rollout in enumerate(made):
        texts = [s for s in rollout.segments if s.modality == "text"]
        counts = [int(policy.words(s).max()) + 1 for s in texts]
        if not sum(counts):
            continue
        credit = np.arange(1, sum(counts) + 1, dtype=np.float32)
        got = text_credit(policy, made, {row: credit}, width)[row].tolist()
        expected: list[float] = []
        for text, start in zip(texts, np.cumsum([0, *counts]).tolist(), strict=False):
            expected += [0.0 if w < 0 else float(start + w + 1) for w in policy.words(text).tolist()]
        assert got == expected + [0.0] * (width - len(expected))
        with pytest.raises(ValueError, match=str(sum(counts) + 1)):
            text_credit(policy, made, {row: np.ones(sum(counts) + 1, np.float32)}, width)


def test_masks_in_blocks_are_for_one_text() -> None:
    policy = turns(*ORDERS["mmada"])
    with pytest.raises(ValueError, match=r"learner\.text_masks"):
        policy.draws(sampled(policy), 1, torch.Generator(), Drawing(text_masks="block"))
