"""Rollout workers as a fleet: in this process, or as Ray actors that may die and come back.

What a fleet returns depends on (prompts, group, version, seeds) and the chunk size only. It never depends on how many workers there are,
which was free first, or whether one was restarted.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import ray

from pararl import sync
from pararl.config import Config
from pararl.rollout.actors import Actors, Call
from pararl.rollout.waiting import Limit
from pararl.rollout.workers import Request, RolloutWorker, WorkerSettings, rollout_seed
from pararl.sync import AdapterBuffer
from pararl.types import Prompt, Receipt, Rollout

if TYPE_CHECKING:
    from policies import Sampling

BASE = -1
"""Version of the policy without any adapter. Version 0 is what a run starts from: the base too, unless the fleet was told of an adapter."""
Chunk = tuple[int, list[Rollout]]
"""Place of its first rollout in the batch, and the rollouts of one chunk."""


def requests_of(prompts: Sequence[Prompt], group: int, run_seed: int, update: int) -> list[Request]:
    """``group`` requests per prompt, prompt by prompt."""
    return [Request(prompt, k, rollout_seed(run_seed, update, prompt.id, k)) for prompt in prompts for k in range(group)]


def chunks_of(requests: Sequence[Request], size: int) -> list[list[Request]]:
    """Consecutive chunks of ``size`` requests. The cut must not depend on the workers: batch mates change a rollout's rounding."""
    return [list(requests[start : start + size]) for start in range(0, len(requests), size)]


def in_order(chunks: Iterator[Chunk]) -> list[Rollout]:
    """The rollouts of all chunks in their places, whatever order the chunks came in."""
    return [rollout for _, rollouts in sorted(chunks, key=lambda chunk: chunk[0]) for rollout in rollouts]


class Fleet(ABC):
    """What the loop asks of rollout workers; below, what differs where they are in this process or in others."""

    def __init__(self, config: Config) -> None:
        self.chunk = config.rollout.chunk
        self.published: AdapterBuffer | None = None
        self._start: Any = None
        """What version 0 is, as a worker takes it; None = the base."""
        self._sent: Any = None
        """The published adapter as a worker takes it."""

    def generate(
        self, prompts: Sequence[Prompt], group: int, version: int, run_seed: int, sampling: "Sampling", update: int | None = None
    ) -> list[Rollout]:
        """``group`` rollouts of each prompt, those of the first prompt first.

        ``version`` must be the published one, 0, or BASE. Seeds derive from ``run_seed`` and ``update`` (default: ``version``). Give
        ``update`` where one version samples the same prompts more than once and the samples should be fresh. Raises ValueError for another
        version, and what a worker raises, from an actor as RuntimeError (SyncError for an adapter that does not land).
        """
        return in_order(self.generate_iter(prompts, group, version, run_seed, sampling, update))

    def generate_iter(
        self, prompts: Sequence[Prompt], group: int, version: int, run_seed: int, sampling: "Sampling", update: int | None = None
    ) -> Iterator[Chunk]:
        """The same rollouts chunk by chunk, in the order in which they are finished."""
        if version > 0 and (self.published is None or self.published.version != version):
            held = "none" if self.published is None else f"version {self.published.version}"
            raise ValueError(f"the workers cannot sample with version {version}: published is {held}; publish it first")
        chunks = chunks_of(requests_of(prompts, group, run_seed, version if update is None else update), self.chunk)
        # Without an adapter a worker samples with its own switched off, which is the base bit for bit.
        sent = {BASE: None, 0: self._start}.get(version, self._sent)
        for place, rollouts in self._run([(chunk, sampling, sent, max(0, version)) for chunk in chunks]):
            yield place * self.chunk, rollouts

    def begin(self, adapter: AdapterBuffer) -> None:
        """From now on version 0 is the base with ``adapter``; each worker has loaded it and proved it. Raises SyncError when it did not."""
        names, self._start, receipts = self._load(adapter)
        sync.verify(receipts, adapter, names)

    def publish(self, adapter: AdapterBuffer) -> list[Receipt]:
        """Load ``adapter`` into every worker; one verified receipt each. Raises SyncError when it did not land."""
        names, sent, receipts = self._load(adapter)
        sync.verify(receipts, adapter, names)
        self.published, self._sent = adapter, sent
        return receipts

    @abstractmethod
    def ready(self) -> None:
        """Wait until every worker has loaded the policy. Raises RuntimeError with the cause when one cannot."""

    @abstractmethod
    def close(self) -> None:
        """Free the workers."""

    @abstractmethod
    def _run(self, calls: list[tuple[Any, ...]]) -> Iterator[tuple[int, list[Rollout]]]:
        """(Place, result) of calls of ``RolloutWorker.generate`` as they finish."""

    @abstractmethod
    def _load(self, adapter: AdapterBuffer) -> tuple[list[str], Any, list[Receipt]]:
        """The workers' names, the adapter as ``generate`` is to be given it, and the workers' receipts."""


class LocalFleet(Fleet):
    """One worker in this process."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.worker = RolloutWorker(WorkerSettings.of(config))

    def ready(self) -> None:
        """The constructor has loaded the policy."""

    def close(self) -> None:
        """Nothing to free."""

    def _run(self, calls: list[tuple[Any, ...]]) -> Iterator[tuple[int, list[Rollout]]]:
        return ((place, self.worker.generate(*call)) for place, call in enumerate(calls))

    def _load(self, adapter: AdapterBuffer) -> tuple[list[str], Any, list[Receipt]]:
        return [self.worker.name], adapter, [self.worker.load(adapter)]


class RayFleet(Fleet):
    """``rollout.workers`` actors; Ray restarts one that dies, and the next chunk brings it the adapter. Ray must run: see ``start_ray``."""

    def __init__(self, config: Config) -> None:
        """Start the actors, which load the policy while this process goes on; ``ready`` waits for them."""
        super().__init__(config)
        rollout, settings = config.rollout, WorkerSettings.of(config)
        named = [(name, (settings, name)) for name in (f"rollout-{i}" for i in range(rollout.workers))]
        self.limit = Limit(config.run.timeout, "run.timeout")
        self.actors = Actors(RolloutWorker, named, self.limit, threads=rollout.threads, gpus=rollout.gpus)

    def ready(self) -> None:
        self.actors.ready()

    def close(self) -> None:
        self.actors.close()

    def _run(self, calls: list[tuple[Any, ...]]) -> Iterator[tuple[int, list[Rollout]]]:
        return self.actors.whoever_is_free([Call("generate", call, f"sample {len(call[0])} rollouts", self.limit) for call in calls])

    def _load(self, adapter: AdapterBuffer) -> tuple[list[str], Any, list[Receipt]]:
        # Once into the object store; workers on the same machine read it where it lies.
        ref = ray.put(adapter)
        return self.actors.names, ref, self.actors.every(Call("load", (ref,), "load the adapter", self.limit))
