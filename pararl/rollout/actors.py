"""Ray and its actors: how they are started, what they run under, and how their results and errors come back."""

import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from pararl.config import Config, ConfigError
from pararl.rollout.workers import RewardError
from pararl.sync import SyncError

CLUSTER = ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR")
"""Environment variables of which either says that there is a cluster: the user's choice, and a Ray job's own."""


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
    hub of every trainer that it makes.
    """
    env = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")}
    env |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000", "MALLOC_TOP_PAD_": "1000000000"}
    env |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_TELEMETRY": "1"}
    root = Path(__file__).resolve().parents[2]
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
