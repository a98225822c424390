"""Measuring a policy: soft and strict scores on every split, at fixed prompts and seeds that all arms share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pararl import scenes
from pararl.config import Config, RolloutConfig
from pararl.pictures import Sample
from pararl.summary import SplitResult
from pararl.types import Judgement, Prompt, Rollout
from policies.base import Sampling

KL_STEPS = 4
"""Steps of an evaluation's rollouts at which the KL to the base is estimated."""

Generate = Callable[[Sequence[Prompt]], list[Rollout]]
"""Prompts to one rollout each, of the policy and seeds under evaluation."""
Judge = Callable[[Sequence[Rollout]], list[Judgement]]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The figures of one policy, and the rollouts of the first split for pictures and KL."""

    splits: dict[str, SplitResult]
    rollouts: tuple[Rollout, ...]
    judgements: tuple[Judgement, ...]

    def samples(self, count: int) -> list[Sample]:
        """The first ``count`` rollouts as cells of a contact sheet."""
        return [sample(r, j) for r, j in zip(self.rollouts[:count], self.judgements[:count], strict=True)]


def split_prompts(split: str, count: int, config: Config) -> list[Prompt]:
    """``count`` prompts of a split from ``eval.first`` on, the same for every run and arm."""
    return [scenes.prompt(split, config.eval.first + i, task=config.rollout.task) for i in range(count)]  # type: ignore[arg-type]


def eval_sampling(rollout: RolloutConfig) -> Sampling:
    """How evaluations sample: as training does, with steps recorded for the KL only."""
    return Sampling(
        steps=rollout.steps,
        recorded=min(KL_STEPS, rollout.steps),
        guesses=0,
        temperature=rollout.temperature,
        choice_temperature=rollout.choice_temperature,
        guidance=rollout.guidance,
    )


def evaluate(generate: Generate, judge: Judge, config: Config, splits: Sequence[str], count: int) -> Evaluation:
    """Measure ``count`` prompts of each split, one rollout each; the first split's rollouts are kept."""
    results: dict[str, SplitResult] = {}
    kept: tuple[list[Rollout], list[Judgement]] = ([], [])
    for split in splits:
        rollouts = generate(split_prompts(split, count, config))
        judgements = judge(rollouts)
        results[split] = split_result(judgements)
        if not kept[0]:
            kept = (rollouts, judgements)
    return Evaluation(results, tuple(kept[0]), tuple(kept[1]))


def split_result(judgements: Sequence[Judgement]) -> SplitResult:
    """Means over outputs that the reward applies to; no strict share where it has none. Raises ValueError when it applies to no output."""
    scores = [j.final for j in judgements if j.final is not None]
    if not scores:
        raise ValueError("the reward applied to no output of the split: it cannot be measured with this reward")
    strict = [s.strict for s in scores if s.strict is not None]
    return SplitResult(float(np.mean([s.value for s in scores])), float(np.mean(strict)) if strict else None, len(scores))


def sample(rollout: Rollout, judgement: Judgement) -> Sample:
    """One rollout as a cell of a contact sheet: image, scores, what failed."""
    score = judgement.final
    assert rollout.output.image is not None
    return Sample(
        image=rollout.output.image,
        value=None if score is None else score.value,
        strict=None if score is None else score.strict,
        failed=() if score is None else tuple(a.reason for a in score.atoms if not a.passed),
        text=rollout.output.text,
    )
