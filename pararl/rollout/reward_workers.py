"""Reward workers: in this process, or as Ray actors that score while others still roll out."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import cycle
from typing import Any, Protocol

import ray

from pararl.config import Config
from pararl.rollout.actors import actor_options, results_of
from pararl.rollout.fleet import Chunk
from pararl.rollout.workers import RewardWorker, reward_calls
from pararl.types import Judgement, Rollout
from rewards import names


class RewardWorkers(Protocol):
    """What the loop asks of reward workers."""

    calls: int
    """Outputs scored so far, final ones and guesses: the reward budget that has been spent."""

    def ready(self) -> None:
        """Wait until every worker has passed the self-test of the reward. Raises RuntimeError with the cause when one has not."""

    def score(self, rollouts: Sequence[Rollout]) -> list[Judgement]:
        """The judgement of each rollout. Raises RewardError when the reward does."""

    def stream(self, chunks: Iterable[Chunk]) -> tuple[list[Rollout], list[Judgement]]:
        """Score chunks while later ones are still sampled (``fleet.generate_iter``); rollouts and judgements in the order of the batch."""

    def close(self) -> None:
        """Free the workers."""


class LocalRewardWorkers:
    """One reward worker in this process."""

    def __init__(self, config: Config) -> None:
        self.worker = RewardWorker(config.reward.name)
        self.calls = 0

    def ready(self) -> None:
        """The constructor has run the self-test."""

    def score(self, rollouts: Sequence[Rollout]) -> list[Judgement]:
        """See ``RewardWorkers``."""
        judgements = self.worker.score(rollouts)
        self.calls += reward_calls(rollouts)
        return judgements

    def stream(self, chunks: Iterable[Chunk]) -> tuple[list[Rollout], list[Judgement]]:
        """See ``RewardWorkers``; here one after the other."""
        return _ordered([(start, rollouts, self.score(rollouts)) for start, rollouts in chunks])

    def close(self) -> None:
        """Nothing to free."""


class RewardActor:
    """A RewardWorker in a process of its own."""

    def __init__(self, reward_name: str) -> None:
        self.reward_name = reward_name

    @cached_property
    def worker(self) -> RewardWorker:
        """Made by the first call, as in ``fleet.RolloutActor``."""
        return RewardWorker(self.reward_name)

    def ready(self) -> str:
        """The name of the reward; returns once its self-test has passed."""
        return self.worker.reward.name

    def score(self, rollouts: list[Rollout]) -> list[Judgement]:
        """See ``RewardWorker.score``."""
        return self.worker.score(rollouts)


class RayRewardWorkers:
    """``reward.workers`` actors; Ray restarts one that dies and repeats its call. Ray must run: see ``fleet.start_ray``."""

    def __init__(self, config: Config) -> None:
        """Start the actors; ``ready`` waits for them."""
        self.name = config.reward.name
        actor: Any = ray.remote(**actor_options(threads=1))(RewardActor)
        # Actors run in folders of their own.
        self.actors: list[Any] = [actor.remote(names.absolute(self.name)) for _ in range(config.reward.workers)]
        self.calls = 0
        self._ready = [handle.ready.remote() for handle in self.actors]

    def ready(self) -> None:
        """See ``RewardWorkers``."""
        results_of(self._ready, [f"reward {self.name!r} could not start"] * len(self._ready))

    def score(self, rollouts: Sequence[Rollout]) -> list[Judgement]:
        """See ``RewardWorkers``; every actor gets an equal share."""
        share = max(1, -(-len(rollouts) // len(self.actors)))
        return self.stream((start, list(rollouts[start : start + share])) for start in range(0, len(rollouts), share))[1]

    def stream(self, chunks: Iterable[Chunk]) -> tuple[list[Rollout], list[Judgement]]:
        """See ``RewardWorkers``; the actors take the chunks in turn."""
        turns = cycle(self.actors)
        sent = [(start, rollouts, next(turns).score.remote(rollouts)) for start, rollouts in chunks]
        scored: list[list[Judgement]] = results_of([ref for _, _, ref in sent], ["scoring failed"] * len(sent))
        self.calls += sum(reward_calls(rollouts) for _, rollouts, _ in sent)
        return _ordered([(start, rollouts, judgements) for (start, rollouts, _), judgements in zip(sent, scored, strict=True)])

    def close(self) -> None:
        """End the actors."""
        for handle in self.actors:
            ray.kill(handle)
        self.actors = []


def _ordered(parts: list[tuple[int, list[Rollout], list[Judgement]]]) -> tuple[list[Rollout], list[Judgement]]:
    parts = sorted(parts, key=lambda part: part[0])
    return [r for _, rollouts, _ in parts for r in rollouts], [j for _, _, judgements in parts for j in judgements]
