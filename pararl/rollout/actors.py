"""Ray and its actors: how they are started, what they run under, and how their results and errors come back."""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from itertools import cycle
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util import ActorPool

from pararl.config import Config, ConfigError
from pararl.rollout.reward_worker import RewardError
from pararl.sync import SyncError
from pararl.terminal import NO_BARS

CLUSTER = ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR")
"""Environment variables of which either says that there is a cluster: the user's choice, and a Ray job's own."""


class Shell:
    """An object of a plain class in a process of its own."""

    def __init__(self, kind: Callable[..., Any], *arguments: Any) -> None:
        self.make = partial(kind, *arguments)

    @cached_property
    def held(self) -> Any:
        """Made by the first call, also after a restart: what fails in an actor's ``__init__``, Ray reports as the death of a process."""
        return self.make()

    def ready(self) -> None:
        """Return once the object is made."""
        self.held  # noqa: B018

    def call(self, method: str, *arguments: Any) -> Any:
        """What a method of the object returns."""
        return getattr(self.held, method)(*arguments)

    def numbered(self, place: int, method: str, *arguments: Any) -> tuple[int, Any]:
        """The same with the place of the call among others."""
        return place, self.call(method, *arguments)


class Actors:
    """Actors that each hold an object of one class. Ray restarts one that dies and repeats its call; it must run: see ``start_ray``.

    Errors are those of ``result_of``, with what was asked in front.
    """

    def __init__(self, kind: Callable[..., Any], named: Sequence[tuple[str, Sequence[Any]]], **options: Any) -> None:
        """Start an actor ``kind(*arguments)`` for each (name, arguments), with ``actor_options(**options)``; ``ready`` waits for them."""
        actor: Any = ray.remote(**actor_options(**options))(Shell)
        self.names = [name for name, _ in named]
        self.handles: list[Any] = [actor.remote(kind, *arguments) for _, arguments in named]
        self._ready = [handle.ready.remote() for handle in self.handles]

    def ready(self) -> None:
        """Wait until every object is made. Raises RuntimeError with the cause when one cannot be."""
        results_of(self._ready, [f"{name} could not start" for name in self.names])

    def every(self, what: str, method: str, *arguments: Any) -> list[Any]:
        """The results of one call of each actor; its errors say that the actor ``what``."""
        return results_of([handle.call.remote(method, *arguments) for handle in self.handles], [f"{name} {what}" for name in self.names])

    def whoever_is_free(self, what: str, method: str, calls: Iterable[Sequence[Any]]) -> Iterator[tuple[int, Any]]:
        """One call for each of the arguments ``calls``, by any actor that is free; yields (place of the call, result) as they finish."""
        pool = ActorPool(self.handles)
        # ActorPool does not tell which call a result is of, so each call brings its place back.
        results = pool.map_unordered(lambda handle, given: handle.numbered.remote(given[0], method, *given[1]), list(enumerate(calls)))
        while pool.has_next():
            with _told(what):
                result = next(results)
            # Outside the block: an error of whoever takes the result is not the actor's.
            yield result

    def in_turn(self, what: str, method: str, calls: Iterable[Sequence[Any]]) -> list[Any]:
        """One call for each of ``calls``, sent as soon as its arguments come; the results in the same order.

        Not by ActorPool: it sends a call that had to wait when a result is taken, but we are waiting for the next arguments then.
        """
        sent = [handle.call.remote(method, *given) for given, handle in zip(calls, cycle(self.handles), strict=False)]
        return results_of(sent, [what] * len(sent))

    def close(self) -> None:
        """End the actors."""
        for handle in self.handles:
            ray.kill(handle)
        self.handles = []


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Errors of actors as one line: RuntimeError (SyncError, RewardError where it was one) with ``what`` and the actor's error."""
    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, (SyncError, RewardError)):
            raise type(error.cause)(f"{what}: {error.cause}") from error
        raise RuntimeError(f"{what}: {type(error.cause).__name__}: {error.cause}") from error
    except RayActorError as error:
        raise RuntimeError(f"{what}: its process died and could not be brought back: {error}") from error
    except RayError as error:
        raise RuntimeError(f"{what}: {type(error).__name__}: {error}") from error


def result_of(ref: ray.ObjectRef, what: str) -> Any:
    """The result of an actor call. Raises RuntimeError (SyncError, RewardError where it was one) with ``what`` and the actor's error."""
    with _told(what):
        return ray.get(ref)


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


def starts_own_ray() -> bool:
    """Whether ``start_ray`` starts a private Ray on this machine, whose GPUs are then all there are."""
    return not (ray.is_initialized() or any(name in os.environ for name in CLUSTER))


def start_ray(config: Config) -> None:
    """Connect to the cluster of this process (``RAY_ADDRESS``, or a Ray job's own), else start a private one on this machine.

    Raises ConfigError where no cluster answers, or it has fewer GPUs than the run needs: Ray would wait for them for ever.
    """
    if not ray.is_initialized():
        _connect()
    if told := lacking_gpus(config, ray.cluster_resources().get("GPU", 0.0), "the Ray cluster"):
        raise ConfigError(told)


def lacking_gpus(config: Config, there: float, where: str) -> str | None:
    """What is wrong with a run on ``where``, which has so many GPUs; None = nothing."""
    rollout, learner = config.rollout, config.learner
    wanted = rollout.workers * rollout.gpus + learner.gpus
    if wanted <= there:
        return None
    return (
        f"rollout.workers {rollout.workers} x rollout.gpus {rollout.gpus} + learner.gpus {learner.gpus} = {wanted:g} GPUs, but {where} has "
        f"{there:g} (set --rollout.gpus, --rollout.workers or --learner.gpus)"
    )


def _connect() -> None:
    # Errors of actors come back as exceptions; the rest of their output stays in Ray's log folder, out of the way of the progress bar.
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if any(name in os.environ for name in CLUSTER):
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
    hub of every trainer that it makes. Bars: nobody looks on.
    """
    env = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")}
    env |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000", "MALLOC_TOP_PAD_": "1000000000"}
    env |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_TELEMETRY": "1", **NO_BARS}
    root = Path(__file__).resolve().parents[2]
    if (root / "pyproject.toml").exists():  # a checkout, which need not be installed
        env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    return env


def actor_options(threads: int, gpus: float = 0.0, restarts: int = -1, retries: int = 3) -> dict[str, Any]:
    """Options for ``ray.remote``. Restarting and repeating calls is right for actors whose calls are functions of their arguments.

    Actors claim no CPU. Rollouts, rewards and learning take turns, so we want more actors than cores; on two cores Ray would leave the last
    ones waiting for ever. SPREAD distributes them over the machines of a cluster.
    """
    return {
        "num_cpus": 0,
        "num_gpus": gpus,
        "max_restarts": restarts,
        "max_task_retries": retries,
        "scheduling_strategy": "SPREAD",
        "runtime_env": {"env_vars": actor_env(threads)},
    }
