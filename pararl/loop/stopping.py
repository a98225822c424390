"""How a run ends on a signal: behind the update at work, with its checkpoint, or at once where that takes too long."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Ctrl-C; and what schedulers, ``docker stop`` and ``ray job stop`` send, 10 to 30 seconds before they kill."""
GRACE = 8.0
"""Seconds that an update at work is given to end."""


class Stop:
    """A wish to stop, taken from the signals of this process. Everywhere but in an update it is a KeyboardInterrupt at once."""

    def __init__(self, say: Callable[[str], None] = print) -> None:
        self.say = say
        self.asked: int | None = None
        """The signal that asked for it; None = nobody has."""
        self._waiting = False

    @property
    def code(self) -> int:
        """The exit code that tells of the signal, as shells have it: 130 or 143."""
        return 128 + (self.asked or signal.SIGINT)

    @contextmanager
    def listening(self) -> Iterator["Stop"]:
        """Take the signals for as long as the block lasts. Only the main thread may: in others the block is as it is."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before: dict[signal.Signals, Any] = {number: signal.getsignal(number) for number in (*SIGNALS, signal.SIGALRM)}
        self.listen()
        try:
            yield self
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in before.items():
                signal.signal(number, handler)

    def listen(self) -> None:
        """Take the signals (again): Ray's start sets a handler of SIGTERM that ends the process without a word."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._heard)
            signal.signal(signal.SIGALRM, self._overdue)

    @contextmanager
    def update(self) -> Iterator[None]:
        """What is at work here may end first; ``asked`` is to be looked at behind it."""
        self._waiting = True
        try:
            yield
        finally:
            self._waiting = False
            if self.asked is not None:
                signal.setitimer(signal.ITIMER_REAL, 0)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        again, self.asked = self.asked is not None, number
        if again or not self._waiting:
            raise KeyboardInterrupt
        signal.setitimer(signal.ITIMER_REAL, GRACE)
        self.say(f"stopping behind this update, or in {GRACE:.0f} s (once more stops at once)")

    def _overdue(self, number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt
