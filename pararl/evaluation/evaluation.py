"""Measuring a policy: soft and strict scores on every split and kind of prompt, at fixed prompts and seeds that all arms share."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain, islice
from itertools import count as counting

import numpy as np

from pararl import scenes
from pararl.config import Config, RolloutConfig
from pararl.data.own import Own
from pararl.data.quotas import task_shares
from pararl.evaluation.summary import Kinds, SplitResult, pooled
from pararl.options import Sampling
from pararl.sampling import sampling_of
from pararl.tracking.pictures import Sample, SampleRow
from pararl.types import Judgement, Kind, Metrics, Output, Prompt, Rollout, Score

KL_STEPS = 4
"""Steps of an evaluation's rollouts at which the KL to the base is estimated."""
LOOK = 200
"""Prompts of a split that are looked through for tags before it is taken to have none of them."""
CANARY = "canary"
"""The split of prompts of the tags that are never trained on."""

Generate = Callable[[Sequence[Prompt]], list[Rollout]]
"""Prompts to one rollout each, of the policy and seeds under evaluation."""
Judge = Callable[[Sequence[Rollout]], list[Judgement]]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The metrics of one policy, and the rollouts of the first split for pictures and KL."""

    kinds: Kinds
    """Per kind of prompt, per split."""
    rollouts: tuple[Rollout, ...]
    judgements: tuple[Judgement, ...]

    @property
    def splits(self) -> dict[str, SplitResult]:
        """Per split, all kinds pooled."""
        names = dict.fromkeys(split for results in self.kinds.values() for split in results)
        return {split: pooled([results[split] for results in self.kinds.values() if split in results]) for split in names}

    def samples(self, count: int) -> list[SampleRow]:
        """``count`` rollouts, as many of each kind as fit, as rows of a contact sheet."""
        kinds = list(dict.fromkeys(r.prompt.kind for r in self.rollouts))
        shown: list[SampleRow] = []
        for place, kind in enumerate(kinds):
            index = [i for i, r in enumerate(self.rollouts) if r.prompt.kind == kind]
            wanted = count // len(kinds) + (place < count % len(kinds))
            rollouts = [self.rollouts[i] for i in index[:wanted]]
            scores = [self.judgements[i].final for i in index[:wanted]]
            shown += [sample_row(r.prompt, r.output, score) for r, score in zip(rollouts, scores, strict=True)]
        return shown


def evaluated_kinds(config: Config) -> tuple[Kind, ...]:
    """The kinds of prompts that a run measures."""
    return tuple(task_shares(config.eval.tasks or config.curriculum.tasks))


def split_prompts(split: str, kind: Kind, count: int, config: Config) -> list[Prompt]:
    """At most ``count`` prompts of a split and kind from ``eval.first`` on, the same for every run and arm; none where it has no such.

    The split ``canary`` holds the ID prompts whose tags are never trained on; no other split has these.
    """
    if config.eval.file:
        own = [p for p in _own_prompts(Own.of(config, "eval.file")) if p.kind == kind]
        return own[config.eval.first : config.eval.first + count] if split == "id" else []
    canaries = set(config.curriculum.canaries) & set(scenes.TAGS[kind])
    if split == CANARY:
        return _first(count, "id", kind, config, canaries) if canaries else []
    if split not in scenes.splits(*scenes.FORMS[kind]):
        return []
    return _first(count, split, kind, config, {*scenes.TAGS[kind], "two_edits"} - canaries)


def _first(count: int, split: str, kind: Kind, config: Config, tags: set[str]) -> list[Prompt]:
    """The first ``count`` prompts with one of the tags; none where the split has no such among its first ``LOOK``."""
    prompts: Iterator[Prompt] = (scenes.prompt(split, i, 0, *scenes.FORMS[kind]) for i in counting(config.eval.first))
    looked = list(islice(prompts, LOOK))
    if not any(prompt.spec["tag"] in tags for prompt in looked):
        return []
    return list(islice((prompt for prompt in chain(looked, prompts) if prompt.spec["tag"] in tags), count))


@cache
def _own_prompts(source: Own) -> list[Prompt]:
    return source.prompts()


def eval_sampling(rollout: RolloutConfig) -> Sampling:
    """How evaluations sample: as training does, with steps recorded for the KL only."""
    return replace(sampling_of(rollout), recorded=min(KL_STEPS, rollout.steps), guesses=0)


def evaluate(generate: Generate, judge: Judge, config: Config, splits: Sequence[str], count: int) -> Evaluation:
    """Measure ``count`` prompts of each split and kind, one rollout each; the first split's rollouts are kept."""
    wanted = evaluated_kinds(config)
    kinds: Kinds = {kind: {} for kind in wanted}
    kept: tuple[list[Rollout], list[Judgement]] = ([], [])
    for split in splits:
        prompts = [prompt for kind in wanted for prompt in split_prompts(split, kind, count, config)]
        if not prompts:
            continue
        rollouts = generate(prompts)
        judgements = judge(rollouts)
        for kind, results in kinds.items():
            own = [j for j, p in zip(judgements, prompts, strict=True) if p.kind == kind]
            if own:
                results[split] = split_result(own)
        if not kept[0]:
            kept = (rollouts, judgements)
    return Evaluation(kinds, tuple(kept[0]), tuple(kept[1]))


def split_result(judgements: Sequence[Judgement]) -> SplitResult:
    """Means over outputs that the reward applies to; no strict share where it has none. Raises ValueError when it applies to no output."""
    scores = [j.final for j in judgements if j.final is not None]
    if not scores:
        raise ValueError("the reward applied to no output of the split: it cannot be measured with this reward")
    strict = [s.strict for s in scores if s.strict is not None]
    return SplitResult(float(np.mean([s.value for s in scores])), float(np.mean(strict)) if strict else None, len(scores))


def sample_row(prompt: Prompt, output: Output, score: Score | None) -> SampleRow:
    """One output as a row of a contact sheet: prompt, output, scores, what failed."""
    cell = Sample(
        image=output.image,
        value=None if score is None else score.value,
        strict=None if score is None else score.strict,
        failed=() if score is None else tuple(a.reason for a in score.atoms if not a.passed),
        text=output.text,
    )
    return SampleRow(prompt.text, (cell,), prompt.image)


def metrics(kinds: Kinds, splits: Sequence[str] | None = None) -> Metrics:
    """``eval/<split>_...`` over all kinds and, where there are several, ``eval/<kind>_<split>_...``."""
    found: Metrics = {}
    pool: dict[str, list[SplitResult]] = {}
    for kind, results in kinds.items():
        for split, result in results.items():
            if splits is None or split in splits:
                pool.setdefault(split, []).append(result)
                if len(kinds) > 1:
                    found |= result.metrics(f"{kind}_{split}")
    for split, parts in pool.items():
        found |= pooled(parts).metrics(split)
    return found
