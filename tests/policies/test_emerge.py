"""The emerge sampler: every masked image token is revealed by its own chance, and all that the denoising loop promises holds."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from pararl.options import Sampling
from policies import Policy
from policies.canvas import Canvas, Span
from policies.sampling.denoise import SegmentPlan, SegmentTrace, denoise, emerge_plan
from policies.sampling.schedules import reveal_chances
from tests.policies.by_hand import GUIDED, Kind, prompts
from tests.wording import telling

MASK, STEPS = 9, 4
EMERGE = Sampling(steps=STEPS, recorded=STEPS, image_sampler="emerge")


def run(plan: SegmentPlan, logits: Tensor, seed: int = 0) -> SegmentTrace:
    """A loop whose logits [batch, n, codes] never change."""
    batch, n = logits.shape[:2]
    canvas = Canvas(torch.full((batch, n), MASK), torch.ones(batch, n, dtype=torch.bool), (plan.span,))
    noise = torch.rand(2, len(plan.commits), batch, n, generator=torch.Generator().manual_seed(seed))

    def call(ids: Tensor, spans: Sequence[Span]) -> list[tuple[Tensor, Tensor]]:
        return [(logits, logits)]

    (trace,) = denoise(call, canvas.ids, [plan], noise, MASK, [0])
    return trace


@pytest.mark.parametrize("steps", [1, 2, 5, 18])
def test_as_many_tokens_as_the_cosine_schedule_says_are_left_on_average(steps: int) -> None:
    """Staying masked through every step so far has the chance that the schedule gives."""
    stays, expected = 1.0, [math.cos(math.pi / 2 * (step + 1) / steps) for step in range(steps)]
    for chance, left in zip(reveal_chances(steps), expected, strict=True):
        assert 0 < chance <= 1
        stays *= 1 - chance
        assert stays == pytest.approx(left, abs=1e-12)
    assert reveal_chances(steps)[-1] == 1.0, "nothing stays masked"


def test_commit_steps_follow_the_schedule_and_not_the_confidence() -> None:
    """Half of the tokens are nearly certain, half wide open: both are revealed alike. Chi-square with 3 degrees of freedom: above
    21.1 once in ten thousand."""
    logits = torch.zeros(2000, 8, 5)
    logits[:, :4, 0] = 9.0
    trace = run(emerge_plan(Span("image", 0, 8), STEPS, STEPS, 1.0), logits)
    left = [1.0, *(math.cos(math.pi / 2 * (step + 1) / STEPS) for step in range(STEPS))]
    shares = torch.tensor([a - b for a, b in zip(left, left[1:], strict=False)])
    for part in (trace.commit_step[:, :4], trace.commit_step[:, 4:]):
        found = torch.bincount(part.flatten(), minlength=STEPS)
        expected = shares * part.numel()
        assert float(((found - expected) ** 2 / expected).sum()) < 21.1
    counts = (trace.commit_step == 0).sum(1)
    assert counts.float().var() == pytest.approx(8 * float(shares[0] * (1 - shares[0])), rel=0.15), "how many is left to chance too"


def test_the_sampler_has_the_joint_chances_of_the_published_step() -> None:
    """Its code draws a code or MASK at once, code k with the chance p_k (k_t - k_s) / k_t; here from two numbers. By chi-square."""
    logits = torch.tensor([1.0, 0.0, -1.0, 0.5]).expand(20_000, 1, 4)
    trace = run(emerge_plan(Span("image", 0, 1), 3, 3, 1.0), logits)
    p = logits[0, 0].double().softmax(0)
    k_t, k_s = math.cos(0), math.cos(math.pi / 6)
    at_first = trace.commit_step[:, 0] == 0
    found = torch.cat((torch.bincount(trace.tokens[at_first, 0], minlength=4), (~at_first).sum()[None])).double()
    expected = torch.cat((p * (k_t - k_s) / k_t, torch.tensor([k_s / k_t]).double())) * len(trace.tokens)
    assert float(((found - expected) ** 2 / expected).sum()) < 23.5  # 4 degrees of freedom, once in ten thousand


def test_updates_are_spread_over_the_steps_and_the_others_rest() -> None:
    plan = emerge_plan(Span("image", 2, 10), 3, 6, 1.0)
    assert [step for step, chance in enumerate(plan.reveal) if chance] == [1, 3, 5] and plan.reveal[5] == 1.0
    within = plan.within(range(2, 8), 10)
    assert within.reveal == (0.0, 0.0, *plan.reveal, 0.0, 0.0) and len(within.commits) == 10


@pytest.mark.parametrize("kind", GUIDED)
def test_what_a_rollout_records_holds_whatever_was_revealed(policy: Policy, kind: Kind) -> None:
    batch = prompts(kind, 5)
    made = policy.generate(batch, range(5), EMERGE)
    counts = set()
    for rollout in made:
        image = rollout.segment("image")
        assert image is not None and image.commit_step.min() >= 0 and image.commit_step.max() < STEPS
        assert image.tokens.min() >= 16 and image.tokens.max() < 24, "image codes alone"
        counts.add(tuple(np.bincount(image.commit_step, minlength=STEPS)))
        for step in range(STEPS):
            done = image.commit_step <= step
            assert np.array_equal(image.guesses[step][done], image.tokens[done])
        assert np.array_equal(image.guesses[-1], image.tokens)
    assert len(counts) > 1, "rollouts differ in how much they reveal when"
    for modality, tokens in policy.step_tokens(made, [range(STEPS)] * 5).items():
        assert torch.allclose(tokens.logprob, tokens.behaviour, rtol=0, atol=1e-5), f"{modality}: the ratio to the sampler is 1"
        assert tokens.committed.sum(1).eq(1).all()
    for i, rollout in enumerate(made):  # alone, in another batch size
        (alone,) = policy.generate([batch[i]], [i], EMERGE)
        for a, b in zip(alone.segments, rollout.segments, strict=True):
            assert np.array_equal(a.tokens, b.tokens) and np.array_equal(a.commit_step, b.commit_step)


@pytest.mark.parametrize("kind", ["interleaved", "t2t"])
def test_text_is_sampled_as_ever(policy: Policy, kind: Kind) -> None:
    for rollout in policy.generate(prompts(kind), range(5), EMERGE):
        text = rollout.segment("text")
        assert text is not None
        half = len(text.tokens) // 2
        assert text.commit_step[:half].max() < text.commit_step[half:].min()
        expected = [2, 2, 2, 2] if kind == "interleaved" else [2, 1, 2, 1]
        assert np.bincount(text.commit_step, minlength=STEPS).tolist() == expected


def test_the_released_decoding_has_no_emerge_sampler(policy: Policy) -> None:
    with pytest.raises(ValueError, match=telling("emerge", "released")):
        policy.generate(prompts("interleaved", 1), [0], Sampling(steps=STEPS, image_sampler="emerge", decoding="released"))


def test_an_image_that_rests_reveals_nothing(policy: Policy) -> None:
    """Two updates in four steps, of which one is recorded: the others need no forward of the image, and the ratio stays 1."""
    batch = prompts("interleaved", 5)
    made = policy.generate(batch, range(5), Sampling(steps=STEPS, recorded=1, image_steps=2, image_sampler="emerge", guidance=1.0))
    images = [image for rollout in made if (image := rollout.segment("image"))]
    assert {int(step) for image in images for step in image.commit_step} == {1, 3}
    tokens = policy.step_tokens(made, [range(STEPS)] * 5)["image"]
    assert torch.allclose(tokens.logprob, tokens.behaviour, rtol=0, atol=1e-5)
