"""Hand-written cases, adversarial ones among them: what each atom says, what a score is worth, which cells get credit."""

from typing import Any

import numpy as np
import pytest

from pararl import scenes
from pararl.scenes.world import CELL_NAMES, Scene
from tests.pararl.scenes.checked import credit, failed, scene
from tests.wording import telling

RED_LEFT_OF_SQUARE: dict[str, Any] = {
    "include": [
        {"class": "square", "count": 1, "color": "blue"},
        {"class": "circle", "count": 2, "color": "red", "position": ["left of", 0]},
    ],
    "exclude": [{"class": "square", "count": 2}, {"class": "circle", "count": 3}],
    "closed": True,
}
"""Two red circles left of a blue square."""
RED_AND_BLUE_CIRCLE: dict[str, Any] = {
    "include": [{"class": "circle", "count": 1, "color": "red"}, {"class": "circle", "count": 1, "color": "blue"}],
    "exclude": [{"class": "circle", "count": 2, "color": "red"}, {"class": "circle", "count": 2, "color": "blue"}],
    "closed": True,
}
CIRCLES_BUT_NOT_RED: dict[str, Any] = {
    "include": [{"class": "circle", "count": 2}],
    "exclude": [{"class": "circle", "count": 3}, {"class": "circle", "count": 1, "color": "red"}],
    "closed": True,
}


def test_a_right_scene_scores_one_with_an_atom_per_fact() -> None:
    score = scenes.check(RED_LEFT_OF_SQUARE, scene("red circle a1", "red circle b1", "blue square a4"))
    assert score.value == 1.0 and score.strict is True
    assert [(atom.statement, atom.skill) for atom in score.atoms] == [
        ("one square", "object"),
        ("two circles", "count"),
        ("one square is blue", "color"),
        ("two circles are red", "color"),
        ("red circle left of blue square", "position"),
        ("nothing else", "closed_world"),
        ("every cell is readable", "validity"),
    ]
    assert credit(score) == {"a1": 1, "b1": 1, "a4": 1}


def test_a_missing_object_is_not_made_up_for_by_another() -> None:
    short = scenes.check(RED_LEFT_OF_SQUARE, scene("red circle a1", "blue square a4"))
    assert failed(short) == {
        "two circles": "expected circle = 2, found 1",
        "two circles are red": "expected red circle >= 2, found 1 of 1 (red)",
    }
    replaced = scenes.check(RED_LEFT_OF_SQUARE, scene("red circle a1", "red triangle b1", "blue square a4"))
    assert set(failed(replaced)) == {"two circles", "two circles are red", "nothing else"}
    assert replaced.value < short.value < 1 and not replaced.strict
    assert credit(replaced) == {"a1": 1, "b1": -1, "a4": 1}


def test_an_extra_object_breaks_strict() -> None:
    score = scenes.check(RED_LEFT_OF_SQUARE, scene("red circle a1", "red circle b1", "blue square a4", "green cross d4"))
    assert failed(score) == {"nothing else": "found also green cross in d4"}
    assert not score.strict and 0.9 < score.value < 1
    assert credit(score)["d4"] == -1


def test_one_too_many_of_the_right_kind_breaks_count_and_closed_world() -> None:
    score = scenes.check(RED_LEFT_OF_SQUARE, scene("red circle a1", "red circle b1", "red circle c1", "blue square a4"))
    assert failed(score)["two circles"] == "expected circle = 2, found 3"
    assert set(failed(score)) == {"two circles", "nothing else"}
    assert sorted(credit(score).values()) == [-1, 1, 1, 1]


def test_swapped_attributes_fail_binding_but_not_counts() -> None:
    score = scenes.check(RED_LEFT_OF_SQUARE, scene("blue circle a1", "blue circle b1", "red square a4"))
    assert set(failed(score)) == {"one square is blue", "two circles are red", "red circle left of blue square"}
    assert (
        failed(score)["red circle left of blue square"] == "expected red circle left of blue square, found no red circle and no blue square"
    )
    assert credit(score) == {"a1": -1, "b1": -1, "a4": -1}
    blank = scenes.check(RED_LEFT_OF_SQUARE, Scene.empty())
    assert blank.value == 0 < score.value < 0.6


def test_a_relation_must_hold_between_all_pairs() -> None:
    score = scenes.check(RED_LEFT_OF_SQUARE, scene("red circle a1", "red circle b4", "blue square b3"))
    assert failed(score) == {
        "red circle left of blue square": "expected red circle left of blue square, found red circle in b4 and blue square in b3"
    }
    assert score.value == pytest.approx(6.5 / 7)
    assert credit(score) == {"a1": 1}, "both sides of the broken pair are neutral"


def test_groups_of_one_shape_are_counted_by_colour() -> None:
    assert scenes.check(RED_AND_BLUE_CIRCLE, scene("blue circle a1", "red circle d4")).strict
    twice = scenes.check(RED_AND_BLUE_CIRCLE, scene("red circle a1", "red circle d4"))
    assert failed(twice)["one red circle"] == "expected red circle = 1, found 2"
    assert failed(twice)["one blue circle"] == "expected blue circle = 1, found 0"
    third = scenes.check(RED_AND_BLUE_CIRCLE, scene("blue circle a1", "red circle d4", "green circle a2"))
    assert failed(third) == {"nothing else": "found also green circle in a2"}


def test_negation_forbids_a_colour_of_a_free_group() -> None:
    assert scenes.check(CIRCLES_BUT_NOT_RED, scene("blue circle a1", "green circle a2")).strict
    score = scenes.check(CIRCLES_BUT_NOT_RED, scene("blue circle a1", "red circle a2"))
    assert failed(score) == {"no red circle": "expected red circle < 1, found 1"}
    assert credit(score) == {"a1": 1, "a2": -1}


def test_counts_get_partial_credit() -> None:
    def soft(found: int) -> float:
        spec = {"include": [{"class": "circle", "count": 4}], "exclude": [{"class": "circle", "count": 5}], "closed": True}
        return scenes.check(spec, scene(*(f"red circle {CELL_NAMES[i]}" for i in range(found)))).value

    # atoms: count 1 - |found - 4| / 4, closed world and validity F1 = 2 min(found, 4) / (found + 4)
    for found in range(17):
        f1 = 2 * min(found, 4) / (found + 4)
        assert soft(found) == pytest.approx((max(0, 1 - abs(found - 4) / 4) + 2 * f1) / 3)


@pytest.mark.parametrize("index", range(40))
def test_blank_noise_and_flood_score_low_for_every_prompt(index: int) -> None:
    prompt = scenes.prompt("id", index)
    rng = np.random.default_rng(index)
    noise = rng.integers(0, 256, (32, 32, 3), np.uint8)
    for image, most in (
        (scenes.render(Scene.empty()), 0.0),
        (noise, 0.0),
        (np.full((32, 32, 3), 208, np.uint8), 0.0),
        (np.zeros_like(noise), 0.0),
    ):
        score = scenes.check(prompt.spec, scenes.parse(image))
        assert score.strict is False and score.value <= most
    flood = scenes.check(prompt.spec, Scene(rng.integers(0, 24, (4, 4))))
    assert flood.strict is False and flood.value < 0.65
    assert scenes.check(prompt.spec, scenes.parse(noise)).credit == pytest.approx(-np.ones((4, 4)))


def test_an_unreadable_cell_fails_validity_alone() -> None:
    image = scenes.render(scene("red circle a1", "red circle b1", "blue square a4"))
    image[24:, 24:] = 0
    score = scenes.check(RED_LEFT_OF_SQUARE, scenes.parse(image))
    assert failed(score) == {"every cell is readable": "unreadable cells d4"}
    assert credit(score) == {"a1": 1, "b1": 1, "a4": 1, "d4": -1}


def test_genevals_own_records_are_open_lower_and_upper_bounds() -> None:
    spec = {
        "tag": "counting",
        "include": [{"class": "cross", "count": 2}],
        "exclude": [{"class": "cross", "count": 4}],
        "prompt": "crosses",
    }
    two, three, four = (scene(*(f"red cross a{i}" for i in range(1, n + 1)), "blue square d4") for n in (2, 3, 4))
    assert scenes.check(spec, two).strict and scenes.check(spec, three).strict
    assert failed(scenes.check(spec, four)) == {"fewer than four crosses": "expected cross < 4, found 4"}
    assert failed(scenes.check(spec, scene("red cross a1"))) == {"at least two crosses": "expected cross >= 2, found 1"}
    assert credit(scenes.check(spec, two)) == {"a1": 1, "a2": 1}


def test_one_object_cannot_stand_for_two_overlapping_includes() -> None:
    spec = {"include": [{"class": "circle", "count": 1}, {"class": "circle", "count": 1, "color": "red"}]}
    assert scenes.check(spec, scene("red circle a1", "green circle a2")).strict
    alone = scenes.check(spec, scene("red circle a1"))
    assert failed(alone) == {"different objects for everything asked": "expected 2 objects, found 1"}


def test_a_plan_is_checked_for_the_prompt_and_against_the_image() -> None:
    right = scene("red circle a1", "red circle b1", "blue square a4")
    other = scene("red circle a1", "red circle c1", "blue square a4")
    wrong = scene("red circle a1", "green triangle c1")
    same = scenes.check(RED_LEFT_OF_SQUARE, right, scenes.plan_text(right))
    assert same.strict and same.value == 1.0 and [atom.skill for atom in same.atoms[-2:]] == ["plan", "output_alignment"]
    moved = scenes.check(RED_LEFT_OF_SQUARE, right, scenes.plan_text(other))
    assert failed(moved) == {"plan and image agree": "plan and image differ in b1, c1"}
    assert moved.value == pytest.approx((8 + 2 * 2 / 6) / 9)
    off = scenes.check(RED_LEFT_OF_SQUARE, right, scenes.plan_text(wrong))
    assert set(failed(off)) == {"the plan satisfies the prompt", "plan and image agree"}
    agreed = scenes.check(RED_LEFT_OF_SQUARE, wrong, scenes.plan_text(wrong))
    assert "plan and image agree" not in failed(agreed) and not agreed.strict


@pytest.mark.parametrize("plan", ["", ".", "red circle", "red circle a1 ; .", "a b c d e"])
def test_an_empty_or_broken_plan_earns_nothing(plan: str) -> None:
    right = scene("red circle a1", "red circle b1", "blue square a4")
    score = scenes.check(RED_LEFT_OF_SQUARE, right, plan)
    assert not score.strict and score.value == pytest.approx(7 / 9)
    nothing = scenes.check(RED_LEFT_OF_SQUARE, Scene.empty(), plan)
    assert nothing.value == 0 and not nothing.strict


@pytest.mark.parametrize(
    ("spec", "tokens"),
    [
        ({}, ("'include'", "'exclude'")),
        ({"include": {"class": "circle"}}, ("'include'",)),
        ({"include": [{"class": "dog"}]}, ("include[0]", "'dog'")),
        ({"include": [{"class": ["circle"]}]}, ("include[0]", "['circle']")),
        ({"include": [{"class": "circle", "color": "pink"}]}, ("include[0]", "'pink'")),
        ({"include": [{"class": "circle", "count": 0}]}, ("include[0]", "count", 0)),
        ({"include": [{"class": "circle", "count": True}]}, ("include[0]", "count", True)),
        ({"include": [{"class": "circle", "position": ["left of", 0]}]}, ("include[0]", "position")),
        ({"include": [{"class": "circle"}, {"class": "square", "position": ["behind", 0]}]}, ("include[1]", "'behind'", "left of")),
        ({"exclude": [{"class": "circle", "count": 1.5}]}, ("exclude[0]", "count", 1.5)),
        ({"include": [{"class": "circle"}], "closed": 1}, ("'closed'", 1)),
    ],
)
def test_malformed_specs_are_errors_that_name_the_entry(spec: dict[str, Any], tokens: tuple[object, ...]) -> None:
    with pytest.raises(ValueError, match=telling(*tokens)):
        scenes.check(spec, Scene.empty())
