"""A scene has exactly one plan, and only plans parse."""

import random

import numpy as np
import pytest

from pararl.scenes import VOCABULARY, Scene, parse_plan, plan_text
from pararl.scenes.plans import blame


def test_plan_of_a_known_scene() -> None:
    scene = Scene.of([(1, 2, 2, 3), (0, 0, 0, 0)])
    assert plan_text(scene) == "red circle a1 ; blue square c4 ."
    assert plan_text(Scene.empty()) == "."


def test_plans_round_trip_and_stay_in_the_vocabulary() -> None:
    rng = np.random.default_rng(0)
    for _ in range(2000):
        scene = Scene(np.where(rng.random((4, 4)) < rng.random(), rng.integers(0, 24, (4, 4)), -1))
        words = plan_text(scene).split(" ")
        assert set(words) <= set(VOCABULARY)
        assert len(words) == max(1, 4 * len(scene.objects()))
        assert parse_plan(" ".join(words)) == scene


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "red circle a1",
        "red circle a1 ;",
        "red circle a1 ; .",
        "; red circle a1 .",
        "red circle a1 . .",
        "red circle a1 . blue square c4 .",
        "red circle a1 ; blue square c4 ;",
        "blue square c4 ; red circle a1 .",
        "red circle a1 ; blue square a1 .",
        "circle red a1 .",
        "red circle e1 .",
        "red circle a5 .",
        "red circles a1 .",
        "Red circle a1 .",
        "red circle a1.",
        ". .",
        ";",
        "\x00\n",
    ],
)
def test_anything_else_is_none(text: str) -> None:
    assert parse_plan(text) is None


def test_random_words_never_raise_and_parse_only_when_canonical() -> None:
    rng = random.Random(0)
    words = ("red", "circle", "a1", "b2", ";", ".", "blue", "square", "the")
    parsed = 0
    for _ in range(20000):
        text = " ".join(rng.choice(words) for _ in range(rng.choice((1, 4))))
        scene = parse_plan(text)
        if scene is not None:
            parsed += 1
            assert plan_text(scene) == text
    assert parsed > 0


def test_the_words_of_a_plan_that_are_wrong_are_blamed() -> None:
    scene = Scene.of([(1, 2, 2, 3), (0, 0, 0, 0), (3, 1, 3, 3)])
    assert plan_text(scene) == "red circle a1 ; blue square c4 ; green cross d4 ."
    credit = np.zeros((4, 4), np.float32)
    credit[0, 0], credit[2, 3], credit[3, 3] = 1, -1, -1
    assert blame(scene, credit).tolist() == [0, 0, 0, 0, -1, -1, -1, 0, -1, -1, -1, 0]
    red_circle, blue_circle, green_cross = (shape * 6 + colour for shape, colour in ((0, 0), (0, 2), (3, 1)))
    wanted = [-1] * 16
    wanted[0], wanted[11] = red_circle, blue_circle
    assert blame(scene, credit, wanted).tolist() == [0, 0, 0, 0, 0, -1, 0, 0, -1, -1, -1, 0], (
        "a square that should be a circle, a cross too many"
    )
    wanted[3] = green_cross
    assert blame(scene, credit, wanted).tolist() == [0, 0, 0, 0, 0, -1, 0, 0, 0, 0, -1, 0], "the cross is in the wrong cell"
    assert blame(Scene.empty(), credit).tolist() == [0]
