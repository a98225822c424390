"""Ray actors: what they run under, how they are asked, and how their results and errors come back."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import cycle
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from pararl.rollout.reward_worker import RewardError
from pararl.rollout.waiting import Limit, Pending, TimedOut, Waiter
from pararl.sync import SyncError
from pararl.terminal import NO_BARS


@dataclass(frozen=True, slots=True)
class Call:
    """What an actor is asked."""

    method: str
    arguments: Sequence[Any]
    doing: str
    """The same in words, for errors and for lines on what is waited for: "load the adapter"."""
    limit: Limit


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


class Actors:
    """Actors that each hold an object of one class. Ray must run: see ``start_ray``.

    Ray restarts one that dies and repeats its call, unless ``options`` say otherwise. An error of an actor comes back as RuntimeError
    (SyncError, RewardError where it was one) that names the actor and what it was asked. A call whose time is up raises TimedOut and ends
    the actors, because a process that hangs would keep this one from its own end.
    """

    def __init__(self, kind: Callable[..., Any], named: Sequence[tuple[str, Sequence[Any]]], start: Limit, **options: Any) -> None:
        """Start an actor ``kind(*arguments)`` for each (name, arguments), with ``actor_options(**options)``; ``ready`` waits for them."""
        actor: Any = ray.remote(**actor_options(**options))(Shell)
        self.names = [name for name, _ in named]
        self.handles: list[Any] = [actor.remote(kind, *arguments) for _, arguments in named]
        self.waiter = Waiter()
        self._starting = [
            Pending(handle.ready.remote(), worker, worker, name, "start", start)
            for worker, (handle, name) in enumerate(zip(self.handles, self.names, strict=True))
        ]
        self._unanswered = set(self._starting)

    def ready(self) -> None:
        """Wait until every object is made. Raises RuntimeError with the cause when one cannot be."""
        self._all(self._starting)

    def every(self, call: Call) -> list[Any]:
        """What each actor answers."""
        return self._all([self._send(worker, worker, call) for worker in range(len(self.handles))])

    def whoever_is_free(self, calls: Iterable[Call]) -> Iterator[tuple[int, Any]]:
        """Each call by any actor that is free; yields (place of the call, result) as they finish."""
        left = deque(enumerate(calls))
        sent = [self._send(worker, *left.popleft()) for worker in range(min(len(self.handles), len(left)))]
        while sent:
            done = self._finished(sent)
            sent.remove(done)
            if left:  # at once, not when the caller comes back for more
                sent.append(self._send(done.worker, *left.popleft()))
            yield done.place, _result(done)

    def in_turn(self, calls: Iterable[Call]) -> list[Any]:
        """The calls by one actor after the other, each sent as soon as it comes; the results in the order of the calls."""
        workers = cycle(range(len(self.handles)))
        return self._all([self._send(worker, place, call) for place, (call, worker) in enumerate(zip(calls, workers, strict=False))])

    def close(self) -> None:
        """End the actors, whatever they are at."""
        for call in self._unanswered:
            ray.cancel(call.ref)  # else Ray says on the terminal that it would be repeated
        self._unanswered.clear()
        for handle in self.handles:
            ray.kill(handle)
        self.handles = []

    def _send(self, worker: int, place: int, call: Call) -> Pending:
        handle = self.handles[worker]
        ref = handle.call.remote(call.method, *call.arguments)
        sent = Pending(ref, worker, place, self.names[worker], call.doing, call.limit)
        self._unanswered.add(sent)
        return sent

    def _finished(self, sent: Sequence[Pending]) -> Pending:
        """``Waiter.finished``."""
        try:
            done = self.waiter.finished(sent)
        except TimedOut:
            self.close()
            raise
        self._unanswered.discard(done)
        return done

    def _all(self, sent: Sequence[Pending]) -> list[Any]:
        """The results in the order of ``sent``; waits for all, so that no other failure turns up later, and raises the first.

        An actor answers its calls one by one, so the time of a call runs from the answer to the one before it.
        """
        results, errors = [None] * len(sent), dict[int, RuntimeError]()
        queues = {worker: deque(call for call in sent if call.worker == worker) for worker in range(len(self.handles))}
        while heads := [queue[0] for queue in queues.values() if queue]:
            try:
                done = self._finished(heads)
            except TimedOut as error:
                raise errors[min(errors)] if errors else error from None
            queue = queues[done.worker]
            queue.popleft()
            if queue:
                queue[0].began = time.monotonic()
            try:
                results[done.place] = _result(done)
            except RuntimeError as error:
                errors[done.place] = error
        if errors:
            raise errors[min(errors)]
        return results


def _result(call: Pending) -> Any:
    """What the actor answered. Raises its error in one line: RuntimeError, or SyncError or RewardError where it was one."""
    what = f"{call.who} could not {call.doing}"
    try:
        return ray.get(call.ref)
    except RayTaskError as error:
        if isinstance(error.cause, (SyncError, RewardError)):
            raise type(error.cause)(f"{what}: {error.cause}") from error
        raise RuntimeError(f"{what}: {type(error.cause).__name__}: {error.cause}") from error
    except RayActorError as error:
        raise RuntimeError(f"{what}: its process died and could not be brought back: {error}") from error
    except RayError as error:
        raise RuntimeError(f"{what}: {type(error).__name__}: {error}") from error


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
