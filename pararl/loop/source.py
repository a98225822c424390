"""Where an arm's batches come from: the current policy, the base, or rollouts of the base that were sampled once."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from pararl.arms import ArmSpec
from pararl.config import Config
from pararl.data.curriculum import Curriculum
from pararl.learner.prefer import without_spread
from pararl.loop.static import StaticRollouts, sampled_once
from pararl.options import Sampling
from pararl.rollout.fleet import Chunk, Fleet
from pararl.rollout.reward_workers import RewardWorkers
from pararl.sampling import sampling_of
from pararl.types import Judgement, Prompt, Rollout


@dataclass(frozen=True, slots=True)
class ScoredRollouts:
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


def static_batch(config: Config, rollouts: Sequence[Rollout], ends: Sequence[int], update: int, pairs: bool = False) -> list[int]:
    """Which of the static rollouts an update learns from: whole groups, in an order shuffled by run.seed, each once over the run.

    ``ends``: the updates that the run was to have, each time its rollouts were sampled. Those of an extension are shuffled among
    themselves, so that no update changes what it has learnt from. Groups change places with others of their kind, so every batch keeps its
    task quotas. With ``pairs``, both kinds move alike and a pair stays in one batch. Without the shuffle an offline arm would repeat the
    stream of base samples batch by batch, and be another arm in name only.
    """
    each = config.rollout.prompts
    size = len(rollouts) // (each * ends[-1])
    begin, end = next((a * each, b * each) for a, b in pairwise((0, *ends)) if a < update <= b)
    kinds = [rollouts[k * size].prompt.kind for k in range(begin, end)]
    order, rng = np.arange(begin, end), np.random.default_rng((config.run.seed, end))
    for kind in dict.fromkeys(kinds):
        places = np.flatnonzero([k == kind for k in kinds])
        if pairs:
            rng = np.random.default_rng((config.run.seed, end))
        order[places] = rng.permutation(places) + begin
    first = (update - 1) * each - begin
    return [int(p) * size + k for p in order[first : first + each] for k in range(size)]


class Stream:
    """The rollouts of an update, chunk by chunk as workers finish them; or those that were sampled once, with their scores."""

    def __init__(self, chunks: Iterable[Chunk], scored: list[Judgement] | None = None) -> None:
        self.chunks, self.scored = chunks, scored
        self.began = self.sampled = time.monotonic()

    def __iter__(self) -> Iterator[Chunk]:
        yield from self.chunks
        self.sampled = time.monotonic()


class Source:
    """Gives the scored rollouts of each update in three steps. ``store``: folder in which static rollouts are kept, batch by batch."""

    def __init__(
        self, config: Config, arm: ArmSpec, fleet: Fleet, reward_workers: RewardWorkers, store: Path, say: Callable[[str], None]
    ) -> None:
        self.config, self.arm, self.fleet, self.reward_workers, self.store, self.say = config, arm, fleet, reward_workers, store, say
        self.curriculum = Curriculum(config, arm.paired)
        self._static: StaticRollouts | None = None
        self._seconds = (0.0, 0.0)
        """What sampling and scoring the static rollouts took, until an update has reported it."""

    def prompts(self, update: int) -> list[Prompt]:
        """What an update asks: the next prompts of the curriculum, or those of the static rollouts that it learns from."""
        if self.arm.data != "static":
            return self.curriculum.next()
        rollouts, chosen = self._stored(update)
        return [rollouts[i].prompt for i in chosen if rollouts[i].index == 0]

    def generate(self, prompts: Sequence[Prompt], update: int, version: int) -> Stream:
        """The rollouts of ``prompts``, from adapter ``version`` where the arm wants the current policy, else from the base or the store."""
        if self.arm.data != "static":
            return self._sample(prompts, update, version if self.arm.data == "current" else 0)
        rollouts, chosen = self._stored(update)
        assert self._static is not None
        return Stream([(0, [rollouts[i] for i in chosen])], [self._static.judgements[i] for i in chosen])

    def score(self, stream: Stream) -> ScoredRollouts:
        """Score chunks while later ones are still sampled."""
        if stream.scored is not None:
            # Reward calls count where an update spends them, not where they were made, so that budgets compare update by update.
            ((_, rollouts),) = stream
            seconds, self._seconds = self._seconds, (0.0, 0.0)
            return ScoredRollouts(rollouts, stream.scored, len(rollouts), *seconds)
        # The workers are those of all arms, and so is their count.
        spent = self.reward_workers.calls
        rollouts, judgements = self.reward_workers.stream(stream)
        self.curriculum.told(without_spread(rollouts, judgements))
        calls = self.reward_workers.calls - spent
        return ScoredRollouts(rollouts, judgements, calls, stream.sampled - stream.began, time.monotonic() - stream.sampled)

    def _sample(self, prompts: Sequence[Prompt], update: int, version: int) -> Stream:
        """Seeds depend on (run.seed, update, prompt) alone, so that arms differ by policy only."""
        sampling, group = arm_sampling(self.config, self.arm, update), arm_group(self.config, self.arm)
        return Stream(self.fleet.generate_iter(prompts, group, version, self.config.run.seed, sampling, update))

    def _stored(self, update: int) -> tuple[list[Rollout], list[int]]:
        """All static rollouts, sampled now as far as they are not stored, and which of them an update learns from."""
        if self._static is None:
            self._static, self._seconds = self._sample_once()
        rollouts = self._static.rollouts
        return rollouts, static_batch(self.config, rollouts, self._static.ends, update, self.arm.paired)

    def _sample_once(self) -> tuple[StaticRollouts, tuple[float, float]]:
        """The static rollouts of every update of the run, and the seconds of sampling and scoring those that were not stored."""
        updates, seconds = self.config.run.updates, np.zeros(2)
        found = StaticRollouts.load(self.store)
        if found.updates < updates:
            self.curriculum = Curriculum(self.config, self.arm.paired)
            found.replay(self.curriculum, self.config.rollout.prompts)
        for update in range(found.updates + 1, updates + 1):
            # Update by update, with the seeds of each: the same samples of the base as those of offline_stream.
            batch = self.score(self._sample(self.curriculum.next(), update, 0))
            seconds += (batch.rollout_seconds, batch.reward_seconds)
            found.add(self.store, updates, *sampled_once(batch.rollouts, batch.judgements))
            if update % max(1, updates // 5) == 0:
                self.say(f"sampled {len(found.rollouts)} rollouts of the base once, {update}/{updates} batches")
        return found, (float(seconds[0]), float(seconds[1]))
