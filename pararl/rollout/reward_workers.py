"""Reward workers: in this process, or as Ray actors that score while others still roll out."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from itertools import tee

from pararl.config import Config
from pararl.rollout.actors import Actors, Call
from pararl.rollout.fleet import Chunk
from pararl.rollout.reward_worker import RewardWorker, reward_calls
from pararl.rollout.waiting import Limit
from pararl.types import Judgement, Rollout
from rewards import names


class RewardWorkers(ABC):
    """What the loop asks of reward workers; below, what differs where they are in this process or in others."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.calls = 0
        """Outputs scored so far, final ones and guesses: the reward budget that has been spent."""

    def score(self, rollouts: Sequence[Rollout]) -> list[Judgement]:
        """The judgement of each rollout; every worker gets an equal share. Raises RewardError when the reward does."""
        share = max(1, -(-len(rollouts) // self.workers))
        return self.stream((start, list(rollouts[start : start + share])) for start in range(0, len(rollouts), share))[1]

    def stream(self, chunks: Iterable[Chunk]) -> tuple[list[Rollout], list[Judgement]]:
        """Score chunks while later ones are still sampled (``fleet.generate_iter``); rollouts and judgements in the order of the batch.

        Raises RewardError when the reward does.
        """
        # Scoring takes chunks while others are sampled, and every chunk is wanted once more beside its scores.
        taken, given = tee(chunks)
        scored = self._run(rollouts for _, rollouts in given)
        # Chunks come as samplers finish; the batch must not depend on who was first.
        parts = sorted(zip(taken, scored, strict=True), key=lambda part: part[0][0])
        rollouts = [rollout for (_, rollouts), _ in parts for rollout in rollouts]
        self.calls += reward_calls(rollouts)
        return rollouts, [judgement for _, judgements in parts for judgement in judgements]

    @abstractmethod
    def ready(self) -> None:
        """Wait until every worker has passed the self-test of the reward. Raises RuntimeError with the cause when one has not."""

    @abstractmethod
    def close(self) -> None:
        """Free the workers."""

    @abstractmethod
    def _run(self, chunks: Iterable[list[Rollout]]) -> list[list[Judgement]]:
        """What ``RewardWorker.score`` says of each chunk."""


class LocalRewardWorkers(RewardWorkers):
    """One reward worker in this process: chunks one after the other."""

    def __init__(self, config: Config) -> None:
        super().__init__(workers=1)
        self.worker = RewardWorker(config.reward.name)

    def ready(self) -> None:
        """The constructor has run the self-test."""

    def close(self) -> None:
        """Nothing to free."""

    def _run(self, chunks: Iterable[list[Rollout]]) -> list[list[Judgement]]:
        return [self.worker.score(rollouts) for rollouts in chunks]


class RayRewardWorkers(RewardWorkers):
    """``reward.workers`` actors, which take the chunks in turn. Ray must run: see ``start_ray``."""

    def __init__(self, config: Config) -> None:
        """Start the actors; ``ready`` waits for them."""
        super().__init__(config.reward.workers)
        self.limit, self.chunk = Limit(config.reward.timeout, "reward.timeout"), config.rollout.chunk
        # Absolute, because actors run in folders of their own.
        name, start = names.absolute(config.reward.name), Limit(config.run.timeout, "run.timeout")
        which = [f", worker {worker} of {self.workers}" if self.workers > 1 else "" for worker in range(1, self.workers + 1)]
        self.actors = Actors(RewardWorker, [(f"reward {config.reward.name!r}{worker}", (name,)) for worker in which], start, threads=1)

    def ready(self) -> None:
        self.actors.ready()

    def close(self) -> None:
        self.actors.close()

    def _run(self, chunks: Iterable[list[Rollout]]) -> list[list[Judgement]]:
        return self.actors.in_turn(self._scoring(rollouts) for rollouts in chunks)

    def _scoring(self, rollouts: list[Rollout]) -> Call:
        """Evaluations give every worker its share at once, which may be several chunks long."""
        limit = self.limit.times(-(-len(rollouts) // self.chunk))
        return Call("score", (rollouts,), f"score {len(rollouts)} rollouts", limit)
