"""Measuring a policy: soft and strict scores on every split and kind of prompt, at fixed prompts and seeds that all arms share."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain, islice
from itertools import count as counting
from typing import TypeVar

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

T = TypeVar("T")
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

    def first(self, count: int) -> Metrics:
        """``eval/during_...``: what the first ``count`` prompts of each kind of the first split say, as an evaluation of so many does."""
        results = []
        for kind in self.kinds:
            own = [j for r, j in zip(self.rollouts, self.judgements, strict=True) if r.prompt.kind == kind][:count]
            if any(j.final is not None for j in own):
                results.append(split_result(own))
        return pooled(results).metrics("during") if results else {}

    def samples(self, count: int, among: int | None = None) -> list[SampleRow]:
        """``count`` rollouts, as many of each kind as fit, as rows of a contact sheet: of each kind from the easiest to the hardest prompt.

        ``among``: of the first so many prompts of a kind, so that evaluations of different sizes show the same ones; None = of all.
        """
        kinds = list(dict.fromkeys(r.prompt.kind for r in self.rollouts))
        shown: list[SampleRow] = []
        for place, kind in enumerate(kinds):
            index = [i for i, r in enumerate(self.rollouts) if r.prompt.kind == kind][:among]
            index.sort(key=lambda i: difficulty(self.rollouts[i].prompt))
            picked = spread(index, count // len(kinds) + (place < count % len(kinds)))
            shown += [sample_row(self.rollouts[i].prompt, self.rollouts[i].output, self.judgements[i].final) for i in picked]
        return shown


def difficulty(prompt: Prompt) -> tuple[int, int, int]:
    """What prompts are sorted by, the easy ones first: claims of the spec, objects in the picture that it starts from, words."""
    claims, source = prompt.spec.get("atoms"), prompt.spec.get("source")
    objects = sum(isinstance(cell, int) and cell >= 0 for cell in source) if isinstance(source, list | tuple) else 0
    return len(claims) if isinstance(claims, list | tuple) else 0, objects, len(prompt.text.split())


def spread(items: Sequence[T], count: int) -> list[T]:
    """``count`` of the items at even distances, the first and the last among them; all where there are no more."""
    if count >= len(items):
        return list(items)
    return [items[round(i * (len(items) - 1) / max(1, count - 1))] for i in range(count)]


def evaluated_kinds(config: Config) -> tuple[Kind, ...]:
    """The kinds of prompts that a run measures."""
    return tuple(task_shares(config.eval.tasks or config.curriculum.tasks))


def split_prompts(split: str, kind: Kind, count: int, config: Config) -> list[Prompt]:
    """At most ``count`` prompts of a split and kind from ``eval.first`` on, the same for every run and arm; none where it has no such.

    The split ``canary`` holds the ID prompts whose tags are never trained on; no other split has these.
    """
    # The user's prompts have no held-out splits: all of them are the split id.
    if config.eval.file:
        own = [p for p in _own_prompts(Own.of(config, "eval.file")) if p.kind == kind]
        return own[config.eval.first : config.eval.first + count] if split == "id" else []
    canaries = set(config.curriculum.canaries) & set(scenes.TAGS[kind])
    if split == CANARY:
        return _first(count, "id", kind, config, canaries) if canaries else []
    if split not in scenes.splits(*scenes.FORMS[kind]):
        return []
    # two_edits is the tag of ood_ops alone, so no table of ordinary tags has it.
    return _first(count, split, kind, config, {*scenes.TAGS[kind], "two_edits"} - canaries)


def _first(count: int, split: str, kind: Kind, config: Config, tags: set[str]) -> list[Prompt]:
    """The first ``count`` prompts with one of the tags; none where the split has no such among its first ``LOOK``."""
    prompts: Iterator[Prompt] = (scenes.prompt(split, i, 0, *scenes.FORMS[kind]) for i in counting(config.eval.first))
    # The stream is endless: without a bound the search for a tag that a split never has would never end.
    looked = list(islice(prompts, LOOK))
    if not any(prompt.spec["tag"] in tags for prompt in looked):
        return []
    return list(islice((prompt for prompt in chain(looked, prompts) if prompt.spec["tag"] in tags), count))


@cache
# Every evaluation of a run asks for them, and pictures take time to read.
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
    values = [s.value for s in scores]
    error = float(np.std(values, ddof=1)) / len(values) ** 0.5 if len(values) > 1 else None
    return SplitResult(float(np.mean(values)), float(np.mean(strict)) if strict else None, len(scores), error)


def sample_row(prompt: Prompt, output: Output, score: Score | None, all_claims: bool = False) -> SampleRow:
    """One output as a row of a contact sheet: prompt, output, scores, what failed; ``all_claims``: what holds as well."""
    cell = Sample(
        image=output.image,
        value=None if score is None else score.value,
        strict=None if score is None else score.strict,
        failed=() if score is None else tuple(a.reason or a.statement for a in score.atoms if not a.passed),
        text=output.text,
        held=tuple(a.statement for a in score.atoms if a.passed) if all_claims and score else None,
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
