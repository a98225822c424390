"""The best adapter of an arm by the evaluations during training, kept beside the last one.

``adapters/ARM-best`` is what the last checkpoint says is the best, also after a kill. A better one waits beside it, under the number of its
update, until a checkpoint knows of it.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pararl.evaluation.summary import BestResult, SplitResult


class BestAdapter:
    """Chooses by strict accuracy where the reward has one, else by the mean score; the earlier of two that are equal."""

    def __init__(self, run: Path, arm: str) -> None:
        self.run, self.name = run, f"{arm}-best"
        self.found: BestResult | None = None
        """The best so far."""

    def offer(self, update: int, result: SplitResult, save: Callable[[Path], None]) -> None:
        """Have ``save`` write the adapter where it is better than those before."""
        if self.found is None or value(result) > value(self.found.id):
            save(self._waiting(update))
            self.found = BestResult(update, result, str(Path("adapters") / self.name))

    def state(self) -> dict[str, Any] | None:
        """All that ``load_state`` needs; JSON values."""
        return None if self.found is None else asdict(self.found)

    def load_state(self, state: Mapping[str, Any] | None) -> None:
        """Go on from what a checkpoint kept; adapters of later updates, which are made again, go."""
        self.found = None if state is None else BestResult.from_json(state)
        self.commit()

    def commit(self) -> None:
        """A checkpoint knows of the best: it takes its place, if it has not done so."""
        place = self.run / "adapters" / self.name
        if self.found and (waiting := self._waiting(self.found.update)).exists():
            shutil.rmtree(place, ignore_errors=True)  # a kill here leaves the one that waits
            os.replace(waiting, place)
        for other in place.parent.glob(f".*{self.name}-*"):  # also what a killed writer left of one
            shutil.rmtree(other)

    def _waiting(self, update: int) -> Path:
        return self.run / "adapters" / f".{self.name}-{update}"


def value(result: SplitResult) -> float:
    """What adapters are compared by."""
    return result.soft if result.strict is None else result.strict
