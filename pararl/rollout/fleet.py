"""Rollout workers as a fleet: in this process, or as Ray actors that may die and come back.

What a fleet returns depends on (prompts, group, version, seeds) and the chunk size only, never on how many workers there are, which of
them was free first, or whether one had to be restarted.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import ray

from pararl import sync
from pararl.config import Config
from pararl.rollout.actors import actor_options, dispatch, results_of
from pararl.rollout.workers import Request, RolloutWorker, WorkerSettings, rollout_seed
from pararl.sync import AdapterBuffer
from pararl.types import Prompt, Receipt, Rollout

if TYPE_CHECKING:
    from policies import Sampling

Chunk = tuple[int, list[Rollout]]
"""Place of its first rollout in the batch, and the rollouts of one chunk."""


class Fleet(Protocol):
    """What the loop asks of a fleet."""

    def ready(self) -> None:
        """Wait until every worker has loaded the policy. Raises RuntimeError with the cause when one cannot."""

    def generate(
        self, prompts: Sequence[Prompt], group: int, version: int, run_seed: int, sampling: "Sampling", update: int | None = None
    ) -> list[Rollout]:
        """``group`` rollouts of each prompt, those of the first prompt first.

        ``version`` must be the published one, or 0 for the base. Seeds derive from ``run_seed`` and ``update`` (default: ``version``); give
        ``update`` where one version samples the same prompts more than once and the samples should be fresh.
        """

    def generate_iter(
        self, prompts: Sequence[Prompt], group: int, version: int, run_seed: int, sampling: "Sampling", update: int | None = None
    ) -> Iterator[Chunk]:
        """The same rollouts chunk by chunk, in the order in which they are finished."""

    def publish(self, adapter: AdapterBuffer) -> list[Receipt]:
        """Load ``adapter`` into every worker; one verified receipt each. Raises SyncError when it did not land."""

    def close(self) -> None:
        """Free the workers."""


def requests_of(prompts: Sequence[Prompt], group: int, run_seed: int, update: int) -> list[Request]:
    """``group`` requests per prompt, prompt by prompt."""
    return [Request(prompt, k, rollout_seed(run_seed, update, prompt.id, k)) for prompt in prompts for k in range(group)]


def chunks_of(requests: Sequence[Request], size: int) -> list[list[Request]]:
    """Consecutive chunks of ``size`` requests. The cut must not depend on the workers: batch mates change a rollout's rounding."""
    return [list(requests[start : start + size]) for start in range(0, len(requests), size)]


def in_order(chunks: Iterator[Chunk]) -> list[Rollout]:
    """The rollouts of all chunks in their places, whatever order the chunks came in."""
    return [rollout for _, rollouts in sorted(chunks, key=lambda chunk: chunk[0]) for rollout in rollouts]


class LocalFleet:
    """One worker in this process."""

    def __init__(self, config: Config) -> None:
        self.chunk = config.rollout.chunk
        self.worker = RolloutWorker(WorkerSettings.of(config))
        self.published: AdapterBuffer | None = None

    def ready(self) -> None:
        """The constructor has loaded the policy."""

    def generate(
        self, prompts: Sequence[Prompt], group: int, version: int, run_seed: int, sampling: "Sampling", update: int | None = None
    ) -> list[Rollout]:
        """See ``Fleet``."""
        return in_order(self.generate_iter(prompts, group, version, run_seed, sampling, update))

    def generate_iter(
        self, prompts: Sequence[Prompt], group: int, version: int, run_seed: int, sampling: "Sampling", update: int | None = None
    ) -> Iterator[Chunk]:
        """See ``Fleet``."""
        adapter = _held(version, self.published, self.published)
        requests = requests_of(prompts, group, run_seed, version if update is None else update)
        for i, chunk in enumerate(chunks_of(requests, self.chunk)):
            yield i * self.chunk, self.worker.generate(chunk, sampling, adapter, version)

    def publish(self, adapter: AdapterBuffer) -> list[Receipt]:
        """See ``Fleet``."""
        receipts = [self.worker.load(adapter)]
        sync.verify(receipts, adapter, [self.worker.name])
        self.published = adapter
        return receipts

    def close(self) -> None:
        """Nothing to free."""


class RolloutActor:
    """A RolloutWorker in a process of its own."""

    def __init__(self, settings: WorkerSettings, name: str) -> None:
        self.settings, self.name = settings, name

    @cached_property
    def worker(self) -> RolloutWorker:
        """Made by the first call, also after a restart: what fails in an actor's ``__init__``, Ray reports as the death of a process."""
        return RolloutWorker(self.settings, self.name)

    def ready(self) -> str:
        """Its name; returns once the policy is loaded."""
        return self.worker.name

    def load(self, adapter: AdapterBuffer) -> Receipt:
        """See ``RolloutWorker.load``."""
        return self.worker.load(adapter)

    def generate(self, requests: list[Request], sampling: "Sampling", adapter: AdapterBuffer | None, version: int) -> list[Rollout]:
        """See ``RolloutWorker.generate``."""
        return self.worker.generate(requests, sampling, adapter, version)


class RayFleet:
    """``rollout.workers`` actors; Ray restarts one that dies, and the next chunk brings it the adapter. Ray must run: see ``start_ray``."""

    def __init__(self, config: Config) -> None:
        """Start the actors, which load the policy while this process goes on; ``ready`` waits for them."""
        rollout = config.rollout
        self.chunk = rollout.chunk
        self.names = [f"rollout-{i}" for i in range(rollout.workers)]
        actor: Any = ray.remote(**actor_options(rollout.threads, rollout.gpus))(RolloutActor)
        settings = WorkerSettings.of(config)
        self.actors: list[Any] = [actor.remote(settings, name) for name in self.names]
        self.published: AdapterBuffer | None = None
        self._ref: ray.ObjectRef | None = None
        self._ready = [handle.ready.remote() for handle in self.actors]

    def ready(self) -> None:
        """See ``Fleet``."""
        results_of(self._ready, [f"{name} could not start" for name in self.names])

    def generate(
        self, prompts: Sequence[Prompt], group: int, version: int, run_seed: int, sampling: "Sampling", update: int | None = None
    ) -> list[Rollout]:
        """See ``Fleet``. Raises RuntimeError (SyncError for an adapter that does not land) with the worker's own error as its cause."""
        return in_order(self.generate_iter(prompts, group, version, run_seed, sampling, update))

    def generate_iter(
        self, prompts: Sequence[Prompt], group: int, version: int, run_seed: int, sampling: "Sampling", update: int | None = None
    ) -> Iterator[Chunk]:
        """See ``Fleet``. A worker that is free takes the next chunk."""
        ref = _held(version, self.published, self._ref)
        chunks = chunks_of(requests_of(prompts, group, run_seed, version if update is None else update), self.chunk)
        jobs = [lambda handle, chunk=chunk: handle.generate.remote(chunk, sampling, ref, version) for chunk in chunks]
        for i, rollouts in dispatch(self.actors, jobs, "sampling rollouts failed"):
            yield i * self.chunk, rollouts

    def publish(self, adapter: AdapterBuffer) -> list[Receipt]:
        """See ``Fleet``. The buffer goes into the object store once; workers on the same machine read it where it lies."""
        ref = ray.put(adapter)
        pending = [handle.load.remote(ref) for handle in self.actors]
        receipts = results_of(pending, [f"{name} did not load the adapter" for name in self.names])
        sync.verify(receipts, adapter, self.names)
        self.published, self._ref = adapter, ref
        return receipts

    def close(self) -> None:
        """End the actors."""
        for handle in self.actors:
            ray.kill(handle)
        self.actors = []


def _held(version: int, published: AdapterBuffer | None, adapter: Any) -> Any:
    """``adapter``, what was published; None for version 0, the base. Raises ValueError for another version."""
    if version == 0:
        return None
    if published is None or published.version != version:
        held = "none" if published is None else f"version {published.version}"
        raise ValueError(f"the workers cannot sample with version {version}: published is {held}; publish it first")
    return adapter
