"""Examining one policy: it samples, a reward scores, ``pararl.evaluation.report`` says what came out. Used by ``pipelines/evaluate.py``."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from peft import PeftModel

import rewards
from pararl import adapter
from pararl.cli.validation import validate
from pararl.config import Config, ConfigError, changed, measuring
from pararl.evaluation.evaluation import eval_sampling, evaluated_kinds, split_prompts
from pararl.evaluation.report import Scored, cycle_report, diversity_report, split_report, worst
from pararl.learner.tables import kl_metrics, step_table
from pararl.rollout.fleet import chunks_of, requests_of
from pararl.tracking.progress import Bar
from pararl.types import Kind, Prompt, Rollout
from policies import Policy

ASKING = "describe the picture"
"""What the policy is asked for a caption of its own image."""
KL_ROLLOUTS = 64
"""Rollouts of a kind and split on which the KL to the base is estimated."""


@dataclass(frozen=True, slots=True)
class Examination:
    """What came out."""

    report: dict[Kind, dict[str, Any]]
    """Per kind of prompt, per split, what ``report.split_report`` and the rest say; JSON values."""
    scored: dict[Kind, dict[str, list[Scored | None]]]
    """The outputs themselves, in the order of the prompts; None where the reward did not apply."""

    def worst(self, count: int) -> list[Scored]:
        """The worst outputs of the first split of each kind."""
        firsts = [next(iter(splits.values())) for splits in self.scored.values() if splits]
        return [s for first in firsts for s in worst([s for s in first if s is not None], count)]


def captions_fit(config: Config) -> bool:
    """Whether the policy describes pictures, in the steps that the run has."""
    try:
        # Asked of the checks that a run has: they know whether the policy does the task, and whether the steps fit its blocks.
        validate(changed(config, {"eval.tasks": ("i2t",), "eval.splits": ("id",), "eval.file": ""}))
    except ConfigError:
        return False
    return True


class Examiner:
    """Measures a policy, or its adapter, as a run's evaluation does, and in more detail."""

    def __init__(self, config: Config, policy: Policy, model: PeftModel | None, name: str) -> None:
        self.config, self.policy, self.model, self.name = config, policy, model, name
        self.reward = rewards.load(measuring(config))
        self.sampling = eval_sampling(config.rollout)
        self.captions = captions_fit(config)

    def examine(self, count: int, diversity: int, samples: int) -> Examination:
        """``count`` prompts a kind and split; of the first split's prompts ``diversity`` are sampled ``samples`` times.

        Raises ValueError where the reward applies to no output of a kind and split.
        """
        kinds = evaluated_kinds(self.config)
        found = Examination({kind: {} for kind in kinds}, {kind: {} for kind in kinds})
        for place, split in enumerate(self.config.eval.splits):
            prompts = [p for kind in kinds for p in split_prompts(split, kind, count, self.config)]
            scored, rollouts = self._scored(prompts, split)
            for kind in kinds:
                index = [i for i, p in enumerate(prompts) if p.kind == kind]
                if not index:
                    continue
                own = [s for i in index if (s := scored[i]) is not None]
                if not own:
                    raise ValueError(
                        f"the reward applied to no output of kind {kind}, split {split}: it cannot be measured with this reward"
                    )
                found.scored[kind][split] = [scored[i] for i in index]
                found.report[kind][split] = split_report(own) | self._more(kind, split, own, [rollouts[i] for i in index])
                if place == 0 and diversity and samples > 1:
                    found.report[kind][split]["diversity"] = self._diversity([prompts[i] for i in index[:diversity]], samples)
        return found

    def _scored(self, prompts: Sequence[Prompt], split: str) -> tuple[list[Scored | None], list[Rollout]]:
        rollouts = list(self._generate(prompts, 1, 0, split))
        judgements = rewards.score_rollouts(self.reward, rollouts)
        pairs = zip(rollouts, judgements, strict=True)
        return [None if j.final is None else Scored(r.prompt, r.output, j.final) for r, j in pairs], rollouts

    def _generate(self, prompts: Sequence[Prompt], group: int, update: int, what: str) -> Iterator[Rollout]:
        """Rollouts with the seeds and the batches of a run's own evaluation."""
        requests = requests_of(prompts, group, self.config.eval.seed, update)
        if not sys.stderr.isatty():  # which would show the bar
            print(f"{self.name} {what}: {len(requests)} samples", file=sys.stderr, flush=True)
        with Bar(len(requests), f"{self.name} {what}", "sample", leave=False) as bar:
            for chunk in chunks_of(requests, self.config.rollout.chunk):
                yield from self.policy.generate([r.prompt for r in chunk], [r.seed for r in chunk], self.sampling)
                bar.step(count=len(chunk))

    def _more(self, kind: Kind, split: str, scored: Sequence[Scored], rollouts: Sequence[Rollout]) -> dict[str, Any]:
        """What needs the policy again: captions of its own images, and the base's likelihoods."""
        found: dict[str, Any] = {}
        # Cycles are checked against specs of the scene world, which the user's prompts need not have.
        if kind in ("t2i", "interleaved") and self.captions and not self.config.eval.file:
            asked = [Prompt(f"cycle-{s.prompt.id}", "i2t", ASKING, image=s.output.image) for s in scored]
            captions = [r.output.text or "" for r in self._generate(asked, 1, 0, f"captions of {split}")]
            found["cycle"] = cycle_report([s.prompt for s in scored], captions)
        if self.model is not None:
            # The rollouts come from the adapter, whose chances they hold: the base's are what is missing for the KL.
            with adapter.base(self.model):
                found["kl"] = kl_metrics(step_table(self.policy, self.policy.prepare(rollouts[:KL_ROLLOUTS])))
        return found

    def _diversity(self, prompts: Sequence[Prompt], samples: int) -> dict[str, Any]:
        # Update 1: at update 0 the first sample of each prompt would be the one that was scored.
        rollouts = list(self._generate(prompts, samples, 1, "diversity"))
        return diversity_report([[r.output for r in rollouts[i : i + samples]] for i in range(0, len(rollouts), samples)])
