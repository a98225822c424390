"""Standardised scores are those of the paper's formula, worked out by hand."""

import math

import pytest

from pararl.types import Atom, Judgement, Score
from rewards import Calibration
from tests.wording import telling


def test_mean_and_deviation_are_those_of_the_scores_that_there_are() -> None:
    # 1, 2, 3, 6: mean 3; squares 4 + 1 + 0 + 9 = 14; 14 / 3 = 4.666...
    found = Calibration.of([Score(1.0), None, Score(2.0), Score(3.0), Score(6.0)])
    assert (found.mean, found.count) == (3.0, 4) and found.deviation == pytest.approx(math.sqrt(14 / 3))


def test_one_deviation_on_either_side_of_the_mean_is_spread_over_zero_to_one() -> None:
    scale = Calibration(mean=0.3, deviation=0.1, count=10)
    for raw, expected in ((0.3, 0.5), (0.35, 0.75), (0.275, 0.375), (0.4, 1.0), (0.2, 0.0), (0.9, 1.0), (-1.0, 0.0)):
        assert scale.value(raw) == pytest.approx(expected), raw


def test_the_scale_of_the_raw_scores_does_not_matter() -> None:
    """A CLIP reward's value is (1 + cosine) / 2, PickScore a hundred cosines: R is the same."""
    cosines = [0.21, 0.24, 0.3, 0.19, 0.27]
    plain = Calibration.of([Score(c) for c in cosines])
    for a, b in ((0.5, 0.5), (100.0, 0.0)):
        other = Calibration.of([Score(a * c + b) for c in cosines])
        assert [other.value(a * c + b) for c in cosines] == pytest.approx([plain.value(c) for c in cosines])


def test_final_and_guesses_are_mapped_and_nothing_else_changes() -> None:
    atoms = (Atom("a circle", "object", True),)
    given = Judgement(Score(0.5, True, atoms), (None, Score(0.625)))
    assert Calibration(0.5, 0.25, 9).judgement(given) == Judgement(Score(0.5, True, atoms), (None, Score(0.75)))
    assert Calibration(0.5, 0.25, 9).judgement(Judgement(None)) == Judgement(None)


@pytest.mark.parametrize(
    ("scores", "tokens"), [([], (0,)), ([Score(1.0)], (1,)), ([None, Score(1.0)], (1, 2)), ([Score(0.5)] * 8, ("mean 0.5", 0.0))]
)
def test_scores_without_a_deviation_are_refused(scores: list[Score | None], tokens: tuple[object, ...]) -> None:
    with pytest.raises(ValueError, match=telling(*tokens)):
        Calibration.of(scores)
