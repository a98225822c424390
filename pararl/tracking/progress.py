"""Progress in the terminal: a bar on a terminal, plain lines now and then in a log file or a Ray job."""

import sys
import time
from collections.abc import Callable
from statistics import median
from types import TracebackType
from typing import Self, TextIO

from tqdm import tqdm


class Bar:
    """Counts steps of known number. On a terminal it is a tqdm bar; elsewhere it prints whole lines: a log stays short.

    A line is due ``every_seconds`` after the last; with ``parts`` also for the first and the last step and for every such part of all.
    """

    def __init__(
        self,
        total: int,
        name: str,
        unit: str,
        done: int = 0,
        parts: int = 0,
        every_seconds: float = 30.0,
        stream: TextIO | None = None,
        leave: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``total`` steps, of which ``done`` came before a resume. ``stream`` defaults to standard error; ``leave``: whether a bar that is
        full stays on the terminal."""
        self._total, self._name, self._unit, self._done = total, name, unit, done
        self._stream = sys.stderr if stream is None else stream
        self._every_steps = max(1, total // parts) if parts else 0
        self._every_seconds, self._clock = every_seconds, clock
        self._before, self._seconds = self._clock(), list[float]()
        self._last_line = self._before
        self._bar: tqdm | None = None
        if self._stream.isatty():
            self._bar = tqdm(
                total=total, initial=done, desc=name, unit=unit, file=self._stream, leave=leave, dynamic_ncols=True, disable=False
            )

    def step(self, said: str = "", count: int = 1, seconds: float | None = None) -> None:
        """``count`` steps are done; ``said`` stands beside them. ``seconds`` each, for the time that is left; None = since the last."""
        now = self._clock()
        self._seconds.append((now - self._before) / count if seconds is None else seconds)
        self._before, before, self._done = now, self._done, self._done + count
        if self._bar is not None:
            self._bar.set_postfix_str(said, refresh=False)
            self._bar.update(count)
        elif self._line_is_due(before):
            parts = [self._name, f"{self._unit} {self._done:,}/{self._total:,}", *([said] if said else []), f"{self._remaining()} left"]
            self.note("  ".join(parts))
            self._last_line = self._clock()

    def note(self, line: str) -> None:
        """Print a line of text without breaking the bar."""
        if self._bar is not None:
            self._bar.write(line, file=self._stream)
        else:
            print(line, file=self._stream, flush=True)

    def close(self) -> None:
        """Leave the bar as it stands and end its line."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _line_is_due(self, before: int) -> bool:
        if self._every_steps and (len(self._seconds) == 1 or self._done >= self._total):
            return True
        if self._every_steps and self._done // self._every_steps > before // self._every_steps:
            return True
        return self._clock() - self._last_line >= self._every_seconds

    def _remaining(self) -> str:
        # The median: single updates take longer, such as the first.
        minutes, seconds = divmod(round(median(self._seconds[-100:]) * (self._total - self._done)), 60)
        return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"


class Progress(Bar):
    """Shows update, reward, strict accuracy, KL and seconds per update while an arm trains.

    Its lines are those of the first and the last update, of every tenth of the run, and those ten seconds after the last.
    """

    def __init__(
        self,
        total: int,
        arm: str,
        done: int = 0,
        reward: str = "reward",
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`total` updates of `arm`, of which `done` came before a resume; `reward` is what the reward is called.

        `stream` defaults to standard output.
        """
        super().__init__(total, arm, "update", done, 10, 10.0, sys.stdout if stream is None else stream, clock=clock)
        self._reward = reward

    def update(self, reward: float | None, strict: float | None, kl: float | None, seconds: float) -> None:
        """One update is done; `reward` and `strict` in [0, 1], `kl` in nats, `seconds` of this update. None shows as a dash."""
        values = f"{self._reward} {_number(reward, 3)}  strict {_number(strict, 3)}  KL {_number(kl, 4)}"
        self.step(f"{values}  {seconds:.1f} s/update", seconds=seconds)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
