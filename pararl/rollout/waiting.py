"""Waiting, in one place: a line where it takes long, and an error that names the cause where it takes too long."""

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray
from tqdm import tqdm

FIRST = 30.0
"""Seconds of waiting after which a line says what is waited for."""
AGAIN = 120.0
"""Seconds after which the next line says it again."""


class TimedOut(RuntimeError):
    """An actor did not answer in time. The message names the actor, what it was asked, for how long, and the setting."""


@dataclass(frozen=True, slots=True)
class Limit:
    """How long a call may take."""

    seconds: float
    """0 = as long as it wants."""
    setting: str
    """Where that is set."""

    def times(self, count: int) -> "Limit":
        """The limit of a call that does the work of ``count`` calls."""
        return Limit(self.seconds * count, self.setting)


@dataclass(eq=False, slots=True)
class Pending:
    """A call that was sent to an actor."""

    ref: Any
    worker: int
    """Place of the actor among others."""
    place: int
    """Of the call among others."""
    who: str
    doing: str
    """What the actor is to do: "load the adapter"."""
    limit: Limit
    began: float = field(default_factory=time.monotonic)
    """When the actor was free for it."""

    @property
    def end(self) -> float:
        """When its time is up."""
        return self.began + self.limit.seconds if self.limit.seconds else float("inf")


class Waiter:
    """Waits for calls. A waiter says at most once in ``AGAIN`` seconds what it waits for, however many calls are slow."""

    def __init__(self) -> None:
        self.quiet_until = 0.0

    def finished(self, sent: Sequence[Pending]) -> Pending:
        """One of ``sent`` that has an answer, or an error; waits for it. Raises TimedOut where the time of one is up first."""
        oldest = min(sent, key=lambda call: call.began)
        next_line = max(oldest.began + FIRST, self.quiet_until)
        while True:
            now = time.monotonic()
            until = min(next_line, *(call.end for call in sent))
            # A second at least: an answer that came while nobody waited may still have to come from another machine.
            done, _ = ray.wait([call.ref for call in sent], num_returns=1, timeout=max(1.0, until - now))
            if done:
                return next(call for call in sent if call.ref == done[0])
            now = time.monotonic()
            if overdue := [call for call in sent if call.end <= now]:
                raise TimedOut(timed_out(overdue[0]))
            if next_line <= now:
                others = f", and for {len(sent) - 1} more" if len(sent) > 1 else ""
                say(f"waiting for {oldest.who} to {oldest.doing}{others}", now - oldest.began)
                next_line = self.quiet_until = now + AGAIN


def timed_out(call: Pending) -> str:
    """What is said of a call whose time is up."""
    seconds, setting = call.limit.seconds, call.limit.setting
    return f"{call.who} did not {call.doing} within {seconds:g} s, and was ended (set --{setting} to wait longer, 0 to wait for ever)"


@contextmanager
def watched(what: str) -> Iterator[None]:
    """Say that ``what`` is waited for while the block lasts: for what cannot be asked in between."""
    began, over = time.monotonic(), threading.Event()

    def tell() -> None:
        pause = FIRST
        while not over.wait(pause):
            say(f"waiting for {what}", time.monotonic() - began)
            pause = AGAIN

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def say(what: str, seconds: float) -> None:
    """A line on stderr with the time since which it is so; a bar that stands on the terminal stays whole."""
    since = time.strftime("%H:%M:%S", time.localtime(time.time() - seconds))
    tqdm.write(f"pararl: {what} since {since} ({seconds:.0f} s)", file=sys.stderr)
