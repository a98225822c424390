"""A scene has exactly one plan, and only plans parse."""

import random

import numpy as np
import pytest

from pararl.scenes import VOCABULARY, Scene, parse_plan, plan_text
from pararl.scenes.plans import phrase_credit


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


def test_credit_of_a_plan_lies_on_the_words_that_are_right_or_wrong() -> None:
    scene = Scene.of([(1, 2, 2, 3), (0, 0, 0, 0), (2, 1, 3, 3)])
    assert plan_text(scene) == "red circle a1 ; blue square c4 ; green triangle d4 ."
    credit = np.zeros((4, 4), np.float32)
    credit[0, 0], credit[2, 3], credit[3, 3] = 1, -1, -1
    assert phrase_credit(scene, credit).tolist() == [1, 1, 1, 0, -1, -1, -1, 0, -1, -1, -1, 0]
    wanted = [-1] * 16
    wanted[0], wanted[11] = scene.cells[0, 0], 0 * 6 + 2  # a blue circle, where the plan has a blue square; and nothing in d4
    assert phrase_credit(scene, credit, wanted).tolist() == [1, 1, 1, 0, 0, -1, 0, 0, -1, -1, -1, 0]
    assert phrase_credit(Scene.empty(), credit).tolist() == [0]
