"""Rollout workers as a fleet: in this process, or as Ray actors that may die and come back.

What a fleet returns depends on (prompts, group, version, seeds) and the chunk size only, never on how many workers there are, which of
them was free first, or whether one had to be restarted.
"""

import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from pararl import sync
from pararl.config import Config, ConfigError
from pararl.sync import AdapterBuffer, SyncError
from pararl.types import Prompt, Receipt, Rollout
from pararl.workers import Request, RewardError, RolloutWorker, WorkerSettings, rollout_seed

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


def dispatch(actors: Sequence[Any], jobs: Sequence[Callable[[Any], ray.ObjectRef]], what: str) -> Iterator[tuple[int, Any]]:
    """Run each job, ``job(actor) -> ref``, on whichever actor is free; yields (place of the job, result) as they finish."""
    waiting, idle = deque(enumerate(jobs)), deque(actors)
    running: dict[ray.ObjectRef, tuple[int, Any]] = {}

    def start() -> None:
        while waiting and idle:
            place, job = waiting.popleft()
            actor = idle.popleft()
            running[job(actor)] = place, actor

    start()
    while running:
        (ref,), _ = ray.wait(list(running), num_returns=1)
        place, actor = running.pop(ref)
        result = result_of(ref, what)
        idle.append(actor)
        start()  # before the caller does whatever it does with this result
        yield place, result


def result_of(ref: ray.ObjectRef, what: str) -> Any:
    """The result of an actor call. Raises RuntimeError (SyncError, RewardError where it was one) with ``what`` and the actor's error."""
    try:
        return ray.get(ref)
    except RayTaskError as error:
        if isinstance(error.cause, (SyncError, RewardError)):
            raise type(error.cause)(f"{what}: {error.cause}") from error
        raise RuntimeError(f"{what}: {type(error.cause).__name__}: {error.cause}") from error
    except RayActorError as error:
        raise RuntimeError(f"{what}: its process died and could not be brought back: {error}") from error
    except RayError as error:
        raise RuntimeError(f"{what}: {type(error).__name__}: {error}") from error


def results_of(refs: Sequence[ray.ObjectRef], whats: Sequence[str]) -> list[Any]:
    """``result_of`` each; waits for all, so that no other failure turns up later, and raises the first."""
    results, errors = [], []
    for ref, what in zip(refs, whats, strict=True):
        try:
            results.append(result_of(ref, what))
        except RuntimeError as error:
            errors.append(error)
    if errors:
        raise errors[0]
    return results


# ---- Ray


def start_ray(config: Config) -> None:
    """Connect to the cluster of this process (``RAY_ADDRESS``, or a Ray job's own), else start a private one on this machine.

    Raises ConfigError where no cluster answers, or it has fewer GPUs than the run needs: Ray would wait for them for ever.
    """
    if not ray.is_initialized():
        _connect()
    rollout, learner = config.rollout, config.learner
    wanted, there = rollout.workers * rollout.gpus + learner.gpus, ray.cluster_resources().get("GPU", 0.0)
    if wanted > there:
        raise ConfigError(
            f"rollout.workers {rollout.workers} x rollout.gpus {rollout.gpus} + learner.gpus {learner.gpus} = {wanted:g} GPUs, but the Ray "
            f"cluster has {there:g} (set --rollout.gpus, --rollout.workers or --learner.gpus)"
        )


def _connect() -> None:
    # Errors of actors come back as exceptions; the rest of their output stays in Ray's log folder, out of the way of the progress bar.
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if "RAY_ADDRESS" in os.environ or "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
        try:
            ray.init(**quiet)  # an existing cluster refuses resource counts
        except ConnectionError as error:
            address = os.environ.get("RAY_ADDRESS", "its own cluster")
            raise ConfigError(f"no Ray cluster answers at {address} (start one, or unset RAY_ADDRESS): {error}") from error
        return
    # One CPU, because our actors claim none and Ray would start an idle process for every CPU it is told of.
    ray.init(address="local", num_cpus=1, include_dashboard=False, **quiet)


def actor_env(threads: int) -> dict[str, str]:
    """Environment of an actor with so many threads.

    Threads: two processes with two threads each on two cores take nine times as long as with one each. Allocator: glibc hands freed tensors
    back to the kernel, and the page faults of getting them again take half of a CPU training step. Telemetry: TRL would tell the
    hub of every trainer that it makes.
    """
    env = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")}
    env |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000", "MALLOC_TOP_PAD_": "1000000000"}
    env |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_TELEMETRY": "1"}
    root = Path(__file__).resolve().parent.parent
    if (root / "pyproject.toml").exists():  # a checkout, which need not be installed
        env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    return env


def actor_options(threads: int, gpus: float = 0.0, restarts: int = -1, retries: int = 3) -> dict[str, Any]:
    """Options for ``ray.remote``. Restarting and repeating calls is right for actors whose calls are functions of their arguments.

    Actors claim no CPU: rollouts, rewards and learning take turns, so more actors than cores is what we want, while Ray would leave the
    last ones waiting for ever on a machine of two cores. SPREAD distributes them over the machines of a cluster.
    """
    return {
        "num_cpus": 0,
        "num_gpus": gpus,
        "max_restarts": restarts,
        "max_task_retries": retries,
        "scheduling_strategy": "SPREAD",
        "runtime_env": {"env_vars": actor_env(threads)},
    }
