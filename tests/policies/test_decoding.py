"""Sequential, semi-parallel and parallel decoding of joint outputs: the same forwards, the same code, another order."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from pararl.options import Sampling
from pararl.steps import Decoding, late_updates, shared_steps
from pararl.types import Prompt, Rollout, Task
from policies import Policy
from policies.canvas import Span
from policies.heads.masked import MaskedHead
from policies.sampling import released
from policies.sequences import Sequences
from tests.policies.by_hand import picture
from tests.wording import telling

STEPS = 8
WHEN: dict[Decoding, tuple[range, range]] = {
    "parallel": (range(0, 8), range(0, 8)),
    "semi_parallel": (range(0, 6), range(2, 8)),
    "sequential": (range(0, 4), range(4, 8)),
}
"""By hand: the steps of text and of image."""
PROMPTS = [Prompt(f"i{i}", "interleaved", text) for i, text in enumerate(("red circle", "blue square above green circle"))]


def sampled(policy: Policy, decoding: Decoding, task: str = "interleaved") -> list[Rollout]:
    prompts = [replace(p, task=task) for p in PROMPTS]  # type: ignore[arg-type]
    return policy.generate(prompts, [5, 6], Sampling(steps=STEPS, recorded=STEPS, decoding=decoding, choice_temperature=2.0))


@pytest.mark.parametrize("decoding", list(WHEN))
def test_each_modality_is_committed_within_its_own_steps_and_complete_at_the_end(policy: Policy, decoding: Decoding) -> None:
    assert shared_steps(STEPS, decoding) == WHEN[decoding]
    for rollout in sampled(policy, decoding):
        for modality, steps in zip(("text", "image"), WHEN[decoding], strict=True):
            segment = rollout.segment(modality)  # type: ignore[arg-type]
            assert segment is not None
            used = set(segment.commit_step.tolist())
            assert used <= set(steps) and max(used) == steps[-1]
            assert policy.settings.specials.mask not in segment.tokens


def test_all_three_take_one_forward_a_step(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    forwards = [0]
    hidden = policy.model.hidden

    def counted(sequences: Sequences, columns: torch.Tensor) -> torch.Tensor:
        forwards[0] += 1
        return hidden(sequences, columns)

    monkeypatch.setattr(policy.model, "hidden", counted)
    for decoding in WHEN:
        forwards[0] = 0
        sampled(policy, decoding)
        assert forwards[0] == STEPS


@pytest.mark.parametrize("decoding", list(WHEN))
def test_recorded_likelihoods_are_those_of_the_policy_in_every_order(policy: Policy, decoding: Decoding) -> None:
    rollouts = sampled(policy, decoding)
    tokens = policy.step_tokens(rollouts, [r.recorded for r in rollouts])
    for found in tokens.values():
        assert found.committed.any() and torch.allclose(found.logprob, found.behaviour, atol=1e-5)


def test_sequential_text_does_not_see_the_image_and_the_image_sees_all_of_the_text(policy: Policy) -> None:
    """With the image's noise replaced, the text stays what it was; with the text's, the image changes."""
    chance = MaskedHead.chance

    def text_of(change: Callable[[torch.Tensor], None]) -> tuple[np.ndarray, np.ndarray]:
        def changed(head: MaskedHead, generator: torch.Generator, spans: Sequence[Span], sampling: Sampling) -> torch.Tensor:
            drawn = chance(head, generator, spans, sampling)
            change(drawn)
            return drawn

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(MaskedHead, "chance", changed)
            rollouts = sampled(policy, "sequential")
        image, text = (np.stack([r.segments[place].tokens for r in rollouts]) for place in (0, 1))
        return text, image

    images = policy.settings.grid[0] * policy.settings.grid[1]  # the image's span comes first

    def other_image(drawn: torch.Tensor) -> None:
        drawn[..., :images] = 1 - drawn[..., :images].clamp(1e-6)

    def other_text(drawn: torch.Tensor) -> None:
        drawn[..., images:] = 1 - drawn[..., images:].clamp(1e-6)

    plain, image_changed, text_changed = text_of(lambda drawn: None), text_of(other_image), text_of(other_text)
    assert (plain[0] == image_changed[0]).all() and (plain[1] != image_changed[1]).any()
    assert (plain[0] != text_changed[0]).any() and (plain[1] != text_changed[1]).any()


def test_outputs_of_one_modality_do_not_depend_on_the_order(policy: Policy) -> None:
    one, other = (sampled(policy, decoding, "t2i") for decoding in ("parallel", "sequential"))
    for a, b in zip(one, other, strict=True):
        assert (a.segments[0].tokens == b.segments[0].tokens).all() and (a.segments[0].commit_step == b.segments[0].commit_step).all()


def test_steps_that_cannot_be_cut_are_refused(policy: Policy) -> None:
    with pytest.raises(ValueError, match=telling("semi_parallel", 4, 6)):
        shared_steps(6, "semi_parallel")
    with pytest.raises(ValueError, match="sequential"):
        shared_steps(7, "sequential")


# ---- as released


class Noise(released.Chance):
    """The most probable codes, and what stays masked by the confidence noise of one of our rollouts."""

    def __init__(self, uniforms: torch.Tensor, at: list[int]) -> None:
        super().__init__()
        self.gumbel = [-(-uniforms[step].log()).log() for step in at]

    def draw(self, probabilities: torch.Tensor, temperature: float) -> torch.Tensor:
        return probabilities.argmax(-1)

    def stay(self, probabilities: torch.Tensor, counts: torch.Tensor, temperature: float) -> torch.Tensor:
        sure = probabilities.log() + temperature * self.gumbel.pop(0)
        return sure.argsort(-1).argsort(-1) < counts[:, None]


@torch.no_grad()
@pytest.mark.parametrize("image_steps", [3, 6])
@pytest.mark.parametrize("text_guidance", [-2.5, 0.0])
def test_released_decoding_is_that_of_the_released_sampler(policy: Policy, image_steps: int, text_guidance: float) -> None:
    """Row by row by ``released.parallel_m``, which is compared with recorded runs of the reference (test_parity.py)."""
    sampling = Sampling(
        steps=STEPS,
        recorded=STEPS,
        temperature=0,
        choice_temperature=2.0,
        decoding="released",
        image_steps=image_steps,
        guidance=1.5,
        text_guidance=text_guidance,
    )
    first, special = len(policy.layout.text.tokenizer), policy.settings.specials
    for rollout in policy.generate(PROMPTS, [5, 6], sampling):
        shown = policy.layout.shown([rollout.prompt])
        blank, free = (policy.layout.canvases([rollout.prompt], [part], shown)[0] for part in (None, "text"))
        image, text = blank.span("image"), blank.span("text")
        assert image is not None and text is not None
        window = slice(text.start, text.stop)
        shift = blank.ids.shape[1] - free.ids.shape[1]

        def forward(ids: torch.Tensor, text: slice = window, shift: int = shift) -> torch.Tensor:
            """Both rows of a batch without padding: ours pads the shorter prompt on the left, which changes nothing."""
            rows = torch.cat((policy.model(ids[:1]), torch.nn.functional.pad(policy.model(ids[1:, shift:]), (0, 0, shift, 0))))
            never = [*policy.layout.text.vocabulary.forbidden, *range(first, rows.shape[-1])]
            rows[:, text, never] = -1e9
            return rows

        plan = released.Parallel(
            image=torch.arange(image.start, image.stop),
            text=window,
            codes=slice(first, first + policy.layout.images.module.codebook_size),
            mask=special.mask,
            text_steps=STEPS,
            image_steps=image_steps,
            temperature=2.0,
            text_cfg=-text_guidance,
            image_cfg=1.5,
        )
        uniforms = torch.rand(2, STEPS, len(image) + len(text), generator=torch.Generator().manual_seed(rollout.seed))[1, :, : len(image)]
        chance = Noise(uniforms, late_updates(STEPS, image_steps))
        prompt = torch.cat((torch.zeros(1, shift, dtype=torch.long), free.ids[:, : image.start - 1 - shift]), 1)
        last, trace = released.parallel_m(forward, blank.ids, prompt, plan, chance)
        found = {s.modality: s for s in rollout.segments}
        assert found["text"].tokens.tolist() == last[0, window].tolist()
        assert found["image"].tokens.tolist() == (trace[-1].drawn[0] + first).tolist()
        left = [int((found["image"].commit_step > step).sum()) for step in late_updates(STEPS, image_steps)]
        assert left == [*(int(x.left) for x in trace[:-1]), 0], "the released sampler keeps one masked and returns its draw"


@pytest.mark.parametrize("image_steps", [1, 2, STEPS])
def test_released_decoding_leaves_nothing_masked(policy: Policy, image_steps: int) -> None:
    for rollout in policy.generate(PROMPTS, [5, 6], Sampling(steps=STEPS, decoding="released", image_steps=image_steps)):
        assert all((s.commit_step >= 0).all() and policy.settings.specials.mask not in s.tokens for s in rollout.segments)


def test_what_is_recorded_does_not_change_what_is_sampled(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a step that nobody asked for, a segment that rests is left alone, and so is the branch that guides it."""
    rows: list[int] = []
    hidden = policy.model.hidden

    def counted(sequences: Sequences, columns: torch.Tensor) -> torch.Tensor:
        rows.append(len(sequences.ids))
        return hidden(sequences, columns)

    monkeypatch.setattr(policy.model, "hidden", counted)
    sampling = Sampling(steps=STEPS, decoding="released", image_steps=3, guidance=1.5, recorded=STEPS)
    every = policy.generate(PROMPTS, [5, 6], sampling)
    assert rows == [4] * STEPS
    rows.clear()
    few = policy.generate(PROMPTS, [5, 6], replace(sampling, recorded=0))
    assert rows == [4 if step in (2, 4, 7) else 2 for step in range(STEPS)]
    for a, b in zip(every, few, strict=True):
        for x, y in zip(a.segments, b.segments, strict=True):
            assert np.array_equal(x.tokens, y.tokens) and np.array_equal(x.commit_step, y.commit_step)


@pytest.mark.parametrize(("task", "steps"), [("t2t", 6), ("interleaved", 8)])
def test_a_text_is_drawn_block_by_block_as_if_drawn_whole(policy: Policy, task: Task, steps: int) -> None:
    prompts = [replace(p, task=task) for p in PROMPTS]
    every, few = (policy.generate(prompts, [5, 6], Sampling(steps=steps, recorded=n, choice_temperature=2.0)) for n in (steps, 0))
    for a, b in zip(every, few, strict=True):
        for x, y in zip(a.segments, b.segments, strict=True):
            assert np.array_equal(x.tokens, y.tokens) and np.array_equal(x.commit_step, y.commit_step)
            assert np.allclose(x.logprob, y.logprob, rtol=0, atol=1e-5)


@pytest.mark.parametrize("task", ["t2t", "i2t"])
def test_answers_in_text_alone_are_not_guided(policy: Policy, task: Task) -> None:
    asked = [Prompt("a", task, "red circle", image=picture(0) if task == "i2t" else None)]
    plain, pushed = (policy.generate(asked, [3], Sampling(steps=STEPS, text_guidance=s))[0] for s in (0.0, -2.5))
    assert plain.segments[0].tokens.tolist() == pushed.segments[0].tokens.tolist()


def test_the_image_may_take_fewer_steps_than_the_text(policy: Policy) -> None:
    sampling = Sampling(steps=STEPS, image_steps=3, choice_temperature=2.0)
    for rollout in policy.generate(PROMPTS, [5, 6], sampling):
        image, text = rollout.segments
        assert sorted(set(image.commit_step.tolist())) == [1, 4, 7] and len(set(text.commit_step.tolist())) == STEPS
    with pytest.raises(ValueError, match=telling(9, 8)):
        policy.generate(PROMPTS, [5, 6], Sampling(steps=STEPS, image_steps=9))


def test_text_guidance_away_from_the_prompt_changes_text_alone_and_never_yields_forbidden_rows(policy: Policy) -> None:
    plain = Sampling(steps=STEPS, decoding="sequential", choice_temperature=2.0)
    for scale in (-2.5, 3.0):
        pushed = policy.generate(PROMPTS, [5, 6], replace(plain, text_guidance=scale))
        texts = [rollout.segments[1].tokens.tolist() for rollout in pushed]
        assert texts != [rollout.segments[1].tokens.tolist() for rollout in policy.generate(PROMPTS, [5, 6], plain)]
        assert all(
            0 <= t < len(policy.layout.text.tokenizer) and t not in policy.layout.text.vocabulary.forbidden for row in texts for t in row
        )
    images = [policy.generate([replace(p, task="t2i") for p in PROMPTS], [5, 6], replace(plain, text_guidance=s)) for s in (0.0, 3.0)]
    assert all((a.segments[0].tokens == b.segments[0].tokens).all() for a, b in zip(*images, strict=True))
