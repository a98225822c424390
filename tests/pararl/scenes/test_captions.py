"""Captions: the parser reads every prompt back, and the score is the share of true statements and of described objects."""

import itertools
import random

import numpy as np
import pytest

from pararl import scenes
from pararl.scenes.captions import agreement, check_caption
from pararl.scenes.grammar import Group
from pararl.scenes.sentences import caption
from pararl.scenes.splits import draft, random_stream
from pararl.scenes.world import COLOURS, SHAPES, Scene
from pararl.types import Score
from tests.pararl.scenes.checked import scene

THREE = scene("red circle a1", "red circle b1", "blue square a4")


def said(text: str, of: Scene = THREE) -> Score:
    return check_caption(of.cells.ravel().tolist(), text)


def failed(score: Score) -> set[str]:
    assert all(bool(atom.reason) != atom.passed for atom in score.atoms) and score.credit is None
    assert (score.value == 1.0) == (score.strict is True) == all(atom.passed for atom in score.atoms)
    return {atom.statement for atom in score.atoms if not atom.passed}


@pytest.mark.parametrize("split", scenes.SPLITS)
def test_every_prompt_is_read_back_as_what_it_was_made_from(split: str) -> None:
    for index in range(500):
        description, wording = draft(split, random_stream(split, index, 0))
        read = scenes.parse_caption(wording.text)
        assert read is not None, wording.text
        assert (read.groups, read.relation, read.negation) == (description.groups, description.relation, description.negation)


@pytest.mark.parametrize(
    "text",
    [
        "", "  ", "a", "a red", "red circle", "the red circle", "a red circles", "two circle", "two red circle", "no circles",
        "zero circles",
        "a circle and", "and a circle", "a circle a square", "a circle left a square", "a circle left of", "left of a circle",
        "a circle and a square left of a cross", "a circle left of a square above a cross", "a circle and no", "a circle and no red",
        "a circle and no square and a cross", "a circle . a square", "a circle that is", "a circle that are red",
        "a red circle that is blue",
        "a picture of", "draw", "draw show a circle", "a circle can be", "A circle", "a circle.", "a dog", "seven",
        "red circle a1 .", "\x00",
    ],
)  # fmt: skip
def test_other_texts_are_no_captions_and_earn_nothing(text: str) -> None:
    assert scenes.parse_caption(text) is None
    score = said(text)
    assert (score.value, score.strict) == (0.0, False) and [atom.skill for atom in score.atoms] == ["validity"]


def test_random_words_never_raise() -> None:
    rng = random.Random(0)
    words = ("a", "two", "red", "circle", "circles", "and", "no", "above")  # of which one sequence in two hundred makes sense
    parsed = sum(scenes.parse_caption(" ".join(rng.choice(words) for _ in range(rng.randrange(7)))) is not None for _ in range(20000))
    assert 50 < parsed < 1000


def test_a_full_caption_in_any_order_is_right() -> None:
    for text in (
        "two red circles and a blue square",
        "one blue square and two red circles",
        "a picture of two red circles left of a blue square and no crosses",
        "there are two circles that are red together with one square that is blue",
        "a red circle and a red circle and a blue square",
    ):
        assert said(text).strict and failed(said(text)) == set(), text


def test_statements_are_judged_one_by_one() -> None:
    assert failed(said("two red circles")) == {"every object is described with its colour"}
    assert said("two red circles").value == pytest.approx(2 * 4 / (4 + 6))
    extra = said("two red circles and a blue square and a green cross")
    assert failed(extra) == {"one green cross"} and extra.value == pytest.approx(12 / 14)
    swapped = said("two blue circles and a red square")
    assert failed(swapped) == {"two blue circles", "one red square", "every object is described with its colour"}
    assert swapped.value == pytest.approx(0.5), "three shapes of six facts"
    three = said("three red circles and a blue square")
    assert failed(three) == {"three red circles"} and three.value == pytest.approx(12 / 14)


def test_colours_left_out_are_described_in_part_only() -> None:
    plain = said("two circles and a square")
    assert failed(plain) == {"every object is described with its colour"} and plain.value == pytest.approx(2 * 3 / (3 + 6))


def test_a_false_relation_or_negation_costs_and_a_true_one_earns_nothing() -> None:
    full = "two red circles {} a blue square{}"
    assert said(full.format("and", " and no crosses")).value == 1.0
    wrong = said(full.format("above", ""))
    assert failed(wrong) == {"red circle above blue square"} and wrong.value == pytest.approx(12 / 13)
    assert failed(said(full.format("and", " and no squares"))) == {"no square"}
    assert said("a green triangle left of a green cross and no yellow cross").value == 0.0
    assert said("a red circle and no yellow cross").value == said("a red circle").value


def test_a_caption_that_lists_everything_scores_low() -> None:
    everything = " and ".join(f"a {colour} {shape}" for shape in SHAPES for colour in COLOURS)
    assert said(everything).value < 0.25 and said(everything).strict is False
    fits = " and ".join(f"six {colour} {shape}s" for colour, shape in itertools.product(COLOURS[:3], ("circle", "square")))
    assert said(fits).value < 0.2
    shapes = "six circles and six squares and six triangles and six crosses"
    assert said(shapes).value == pytest.approx(2 * 3 / (24 + 6))


def most_true(stated: list[tuple[int, int | None]], there: list[tuple[int, int]]) -> int:
    """The largest number of true shapes and colours over all ways to give every stated object one that is there, or none."""
    if not stated:
        return 0
    (shape, colour), rest = stated[0], stated[1:]
    best = most_true(rest, there)
    for i, (s, c) in enumerate(there):
        if s == shape:
            best = max(best, 1 + (c == colour) + most_true(rest, there[:i] + there[i + 1 :]))
    return best


def test_agreement_is_the_best_over_all_matchings() -> None:
    rng = random.Random(1)
    for _ in range(3000):
        colours = (None, "red", "green", "blue")
        groups = [Group(SHAPES[rng.randrange(2)], rng.choice(colours), rng.choice((1, 1, 2, 3))) for _ in range(rng.randint(1, 3))]
        objects = [rng.randrange(2) * 6 + rng.randrange(3) for _ in range(rng.randrange(6))]
        stated = [(SHAPES.index(g.shape), None if g.colour is None else COLOURS.index(g.colour)) for g in groups for _ in range(g.count)]
        if len(stated) <= 6:
            true, said_facts, facts = agreement(groups, objects)
            assert true == most_true(stated, [divmod(value, 6) for value in objects])
            assert said_facts == sum(1 + (colour is not None) for _, colour in stated) and facts == 2 * len(objects)


def test_written_captions_are_short_and_exactly_right() -> None:
    rng = np.random.default_rng(0)
    for _ in range(1500):
        cells = np.full(16, -1)
        cells[rng.permutation(16)[: rng.integers(1, 7)]] = rng.integers(0, rng.choice([3, 24]), 1)
        full = cells >= 0
        cells[full] = rng.integers(0, 8, full.sum())
        shown = Scene.from_cells(cells)
        text = caption(shown)
        assert len(text.split()) <= 23 and set(text.split()) <= set(scenes.VOCABULARY)
        assert said(text, shown).strict
        other = Scene.from_cells(np.where(np.arange(16) == np.flatnonzero(full)[0], (cells + 1) % 24, cells))
        assert said(text, other).strict is False or sorted(other.cells.ravel()) == sorted(cells)
