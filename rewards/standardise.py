"""Scores without a scale of their own, brought to [0, 1] as ParaRL does it: pure functions of numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pararl.types import Judgement, Score


@dataclass(frozen=True, slots=True)
class Calibration:
    """Mean and standard deviation of raw scores on a share of the data, by which later ones are standardised.

    ``R = (1 + clip((c - mean) / deviation, -1, 1)) / 2`` in [0, 1] (MMaDA-Parallel, arXiv 2511.09611, Section 3.3). Any scale of c gives
    the same R, so it does not matter that a CLIP reward's value is (1 + cosine) / 2. Raises ValueError unless ``deviation`` > 0.
    """

    mean: float
    deviation: float
    count: int
    """Scores that both are estimated on."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and math.isfinite(self.deviation) and self.deviation > 0):
            raise ValueError(f"scores of mean {self.mean} and deviation {self.deviation} cannot be standardised: they must differ")

    @classmethod
    def of(cls, scores: Sequence[Score | None]) -> "Calibration":
        """Of the scores that are not None, with the deviation of a sample (n - 1). Raises ValueError for fewer than two, or all alike."""
        values = [score.value for score in scores if score is not None]
        if len(values) < 2:
            raise ValueError(f"{len(values)} of {len(scores)} outputs have a score: two at least are needed to standardise by")
        mean = math.fsum(values) / len(values)
        deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
        return cls(mean, deviation, len(values))

    def value(self, raw: float) -> float:
        """R of a raw score."""
        return (1 + min(1.0, max(-1.0, (raw - self.mean) / self.deviation))) / 2

    def score(self, score: Score | None) -> Score | None:
        """The score with R in place of its value; None stays None."""
        return None if score is None else replace(score, value=self.value(score.value))

    def judgement(self, judgement: Judgement) -> Judgement:
        """The judgement with R in place of every value, of the final output and of the guesses."""
        return Judgement(self.score(judgement.final), tuple(self.score(score) for score in judgement.steps))
