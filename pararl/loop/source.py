"""Where an arm's batches come from: the current policy, the base, or rollouts of the base that were sampled once."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pararl.arms import ArmSpec
from pararl.config import Config
from pararl.data.curriculum import Curriculum
from pararl.learner.prefer import without_spread
from pararl.loop import checkpoint
from pararl.options import Sampling
from pararl.rollout.fleet import Chunk, Fleet
from pararl.rollout.reward_workers import RewardWorkers
from pararl.sampling import sampling_of
from pararl.types import Judgement, Rollout


@dataclass(frozen=True, slots=True)
class Batch:
    """The scored rollouts of one update."""

    rollouts: list[Rollout]
    judgements: list[Judgement]
    calls: int
    """Outputs and guesses that were scored for it."""
    rollout_seconds: float
    """Until the last rollout was there; scoring of earlier chunks goes on beside it."""
    reward_seconds: float
    """What scoring took beyond that."""


def arm_sampling(config: Config, arm: ArmSpec, update: int) -> Sampling:
    """How an arm samples: guesses are decoded only where they are scored."""
    return replace(sampling_of(config.rollout), round=update, guesses=config.rollout.scored if arm.reward == "step" else 0)


def arm_group(config: Config, arm: ArmSpec) -> int:
    """Rollouts per prompt. Arms that score final outputs only sample more, so that every arm makes the same number of reward calls."""
    calls = 1 + config.rollout.scored
    return config.rollout.group * (calls if arm.reward == "final" and config.rollout.equal_calls else 1)


def static_batch(config: Config, rollouts: Sequence[Rollout], update: int, pairs: bool = False) -> list[int]:
    """Which of the static rollouts an update learns from: whole groups, in an order shuffled by run.seed, each once over the run.

    Groups change places with others of their kind, so every batch keeps its task quotas. With ``pairs``, both kinds move alike and a pair
    stays in one batch. Without the shuffle an offline arm would repeat the stream of base samples batch by batch, and be another arm in
    name only.
    """
    prompts = config.rollout.prompts * config.run.updates
    size = len(rollouts) // prompts
    kinds = [rollouts[k * size].prompt.kind for k in range(prompts)]
    order, rng = np.arange(prompts), np.random.default_rng((config.run.seed, prompts))
    for kind in dict.fromkeys(kinds):
        places = np.flatnonzero([k == kind for k in kinds])
        if pairs:
            rng = np.random.default_rng((config.run.seed, prompts))
        order[places] = rng.permutation(places)
    first = (update - 1) * config.rollout.prompts
    return [int(p) * size + k for p in order[first : first + config.rollout.prompts] for k in range(size)]


class Source:
    """Gives the batch of each update. ``store``: folder in which static rollouts are kept for a resume."""

    def __init__(
        self, config: Config, arm: ArmSpec, fleet: Fleet, reward_workers: RewardWorkers, store: Path, say: Callable[[str], None]
    ) -> None:
        self.config, self.arm, self.fleet, self.reward_workers, self.store, self.say = config, arm, fleet, reward_workers, store, say
        self.curriculum = Curriculum(config, arm.paired)
        self._static: tuple[list[Rollout], list[Judgement]] | None = None
        self._seconds = (0.0, 0.0)
        """What sampling and scoring the static rollouts took, until an update has reported it."""

    def batch(self, update: int, version: int) -> Batch:
        """The batch of one update, sampled from adapter ``version`` where the arm wants the current policy."""
        if self.arm.data != "static":
            return self._sample(update, version if self.arm.data == "current" else 0)
        if self._static is None:
            self._static = checkpoint.load_rollouts(self.store) or self._sample_once()
        rollouts, judgements = self._static
        # Reward calls count where an update spends them, not where they were made, so that budgets compare update by update.
        chosen = static_batch(self.config, rollouts, update, self.arm.paired)
        seconds, self._seconds = self._seconds, (0.0, 0.0)
        return Batch([rollouts[i] for i in chosen], [judgements[i] for i in chosen], len(chosen), *seconds)

    def _sample(self, update: int, version: int) -> Batch:
        """Sample and score the rollouts of an update on the next prompts. Seeds depend on (run.seed, update, prompt) alone, so arms differ
        by policy only."""
        began, spent = time.monotonic(), self.reward_workers.calls
        sampling, group = arm_sampling(self.config, self.arm, update), arm_group(self.config, self.arm)
        prompts, sampled = self.curriculum.next(), began

        def chunks() -> Iterator[Chunk]:
            nonlocal sampled
            yield from self.fleet.generate_iter(prompts, group, version, self.config.run.seed, sampling, update)
            sampled = time.monotonic()

        rollouts, judgements = self.reward_workers.stream(chunks())
        self.curriculum.told(without_spread(rollouts, judgements))
        return Batch(rollouts, judgements, self.reward_workers.calls - spent, sampled - began, time.monotonic() - sampled)

    def _sample_once(self) -> tuple[list[Rollout], list[Judgement]]:
        updates = self.config.run.updates
        seconds = np.zeros(2)
        rollouts: list[Rollout] = []
        judgements: list[Judgement] = []
        for update in range(1, updates + 1):
            batch = self._sample(update, 0)
            seconds += (batch.rollout_seconds, batch.reward_seconds)
            # All rollouts of the run are held at once: only what the learner needs stays.
            rollouts += [checkpoint.without_outputs(r) for r in batch.rollouts]
            judgements += [replace(j, final=j.final and replace(j.final, atoms=(), credit=None, words=None)) for j in batch.judgements]
            if update % max(1, updates // 5) == 0:
                self.say(f"sampled {len(rollouts)} rollouts of the base once, {update}/{updates} batches")
        checkpoint.save_rollouts(self.store, rollouts, judgements)
        self._seconds = float(seconds[0]), float(seconds[1])
        return rollouts, judgements
