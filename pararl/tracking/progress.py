"""Progress of one arm in the terminal: a bar on a terminal, plain lines in a log file or a Ray job."""

import sys
import time
from collections.abc import Callable
from statistics import median
from types import TracebackType
from typing import Self, TextIO

from tqdm import tqdm


class Progress:
    """Shows update, reward, strict accuracy, KL and seconds per update while an arm trains.

    On a terminal it is one tqdm bar. Elsewhere it prints a line for the first and the last update, and for every tenth of the run. It also
    prints one ten seconds after the last line: a log stays short and is never silent.
    """

    def __init__(
        self,
        total: int,
        arm: str,
        done: int = 0,
        reward: str = "reward",
        stream: TextIO | None = None,
        every_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`total` updates of `arm`, of which `done` came before a resume; `reward` is what the reward is called.

        `stream` defaults to standard output.
        """
        self._total, self._arm, self._done, self._reward = total, arm, done, reward
        self._stream = sys.stdout if stream is None else stream
        self._every_seconds, self._clock = every_seconds, clock
        self._every_updates = max(1, total // 10)
        self._seconds: list[float] = []
        self._last_line = -float("inf")
        self._bar: tqdm | None = None
        if self._stream.isatty():
            self._bar = tqdm(total=total, initial=done, desc=arm, unit="update", file=self._stream, dynamic_ncols=True)

    def step(self, reward: float | None, strict: float | None, kl: float | None, seconds: float) -> None:
        """One update is done; `reward` and `strict` in [0, 1], `kl` in nats, `seconds` of this update. None shows as a dash."""
        self._done += 1
        self._seconds.append(seconds)
        metrics = f"{self._reward} {_number(reward, 3)}  strict {_number(strict, 3)}  KL {_number(kl, 4)}  {seconds:.1f} s/update"
        if self._bar is not None:
            self._bar.set_postfix_str(metrics, refresh=False)
            self._bar.update(1)
        elif self._line_is_due():
            self.note(f"{self._arm}  update {self._done}/{self._total}  {metrics}  {self._remaining()} left")
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

    def _line_is_due(self) -> bool:
        if len(self._seconds) == 1 or self._done == self._total or self._done % self._every_updates == 0:
            return True
        return self._clock() - self._last_line >= self._every_seconds

    def _remaining(self) -> str:
        # The median: single updates take longer, such as the first.
        minutes, seconds = divmod(round(median(self._seconds) * (self._total - self._done)), 60)
        return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
