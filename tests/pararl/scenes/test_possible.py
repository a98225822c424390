"""What no scene can hold is told while prompts are read; what some scene holds never is."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pararl import scenes
from pararl.config import ConfigError
from pararl.data.prompts import read_prompts
from pararl.scenes import possible
from pararl.scenes.possible import check_possible
from pararl.scenes.spec import read_spec
from pararl.scenes.world import CELLS, COLOURS, GRID, KINDS, RELATIONS, SHAPES


def entry(shape: str, count: int = 1, colour: str | None = None, position: list[Any] | None = None) -> dict[str, Any]:
    return {"class": shape, "count": count} | ({"color": colour} if colour else {}) | ({"position": position} if position else {})


def told(spec: dict[str, Any]) -> str:
    try:
        check_possible(read_spec(spec))
    except ValueError as error:
        return str(error)
    return ""


IMPOSSIBLE: list[tuple[list[dict[str, Any]], list[dict[str, Any]], str]] = [
    ([entry("circle", 17)], [], "17 objects, a scene has 16 cells"),
    ([entry("circle", 10), entry("square", 7)], [], "17 objects"),
    ([entry("circle")], [entry("circle")], "asks for one circle and excludes one circle"),
    ([entry("circle", 2, "red")], [entry("circle", 2, "red")], "asks for two red circles and excludes two red circles"),
    ([entry("circle", 2, "red")], [entry("circle")], "asks for two circles and excludes one circle"),
    ([entry("circle", 1, "red"), entry("circle", 1, "blue")], [entry("circle", 2)], "asks for two circles and excludes two circles"),
    ([entry("circle", 2)], [entry("circle", 1, colour) for colour in COLOURS], "excludes all of their colours"),
    ([entry("circle", 7)], [entry("circle", 2, colour) for colour in COLOURS], "excludes all of their colours"),
    ([entry("circle"), entry("circle", 1, "red", ["left of", 0])], [], "may be the same object"),
    (
        [entry("circle", 1, "red"), entry("square", 1, None, ["left of", 0]), entry("circle", 1, "red", ["left of", 1])],
        [],
        "one red circle left of one square",
    ),
    ([entry("circle"), *(entry(shape, 1, None, ["above", 0]) for shape in ("square",) * 13)], [], "no scene of 16 cells"),
]
CHAIN = [entry("circle", 1, "blue")]
for place, (shape, colour) in enumerate([("square", None), ("triangle", None), ("cross", None), ("circle", "red")]):
    CHAIN.append(entry(shape, 1, colour, ["left of", place]))


@pytest.mark.parametrize(("include", "exclude", "message"), [*IMPOSSIBLE, (CHAIN, [], "no scene of 16 cells")])
def test_what_cannot_hold_together_is_told(include: list[dict[str, Any]], exclude: list[dict[str, Any]], message: str) -> None:
    assert message in told({"include": include, "exclude": exclude})


def test_where_the_search_is_given_up_a_spec_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(possible, "TRIES", 0)
    assert not told({"include": CHAIN}), "the search did not end, so nothing is known of it"


def test_what_just_fits_is_taken() -> None:
    assert not told({"include": [entry("circle", 9), entry("square", 7)]})
    assert not told({"include": CHAIN[:4]}), "four columns hold four objects in a row"
    assert not told({"include": [entry("circle", 2)], "exclude": [entry("circle", 3), entry("circle", 1, "red"), entry("square")]})
    assert not told({"include": [entry("circle", 6)], "exclude": [entry("circle", 2, colour) for colour in COLOURS]})


def test_every_spec_of_a_scene_is_taken() -> None:
    """Specs that are read off random scenes hold in them, so none may be refused."""
    rng = np.random.default_rng(0)
    relations_seen = 0
    for _ in range(300):
        cells = np.where(rng.random(CELLS) < rng.random(), rng.integers(0, KINDS, CELLS), -1)
        if (cells < 0).all():
            continue
        include: list[dict[str, Any]] = []
        for value in np.unique(cells[cells >= 0]).tolist():
            include.append(entry(SHAPES[value // 6], int((cells == value).sum()), COLOURS[value % 6]))
        for subject, relation in product(range(1, len(include)), RELATIONS):
            given = [*include[:subject], include[subject] | {"position": [relation, 0]}]
            spec = {"include": given, "exclude": [e | {"count": e["count"] + 1} for e in include]}
            if scenes.check(spec, scenes.Scene(cells.reshape(GRID, GRID))).strict:
                relations_seen += 1
                assert not told(spec), (cells, spec)
        assert not told({"include": include, "exclude": [e | {"count": e["count"] + 1} for e in include], "closed": True})
    assert relations_seen > 50


def line(tmp_path: Path, record: dict[str, Any]) -> str:
    (tmp_path / "own.jsonl").write_text(json.dumps({"prompt": "a circle"} | record) + "\n")
    return str(tmp_path / "own.jsonl")


CIRCLE = [entry("circle")]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"include": CIRCLE, "exclud": CIRCLE}, "unknown key 'exclud' in the spec"),
        ({"include": [{"class": "circle", "colour": "red"}]}, r"include\[0\]: unknown key 'colour'"),
        ({"include": CIRCLE, "exclude": [entry("square", position=["left of", 0])]}, r"exclude\[0\]: unknown key 'position'"),
        ({"include": [entry("circle", 0)]}, r"include\[0\]: count must be"),
        ({"include": [entry("circle", 99)]}, "99 objects"),
        ({"include": CIRCLE, "exclude": CIRCLE}, "excludes one circle"),
        ({"include": CIRCLE, "spec": {"prompt": "another"}}, "'prompt' belongs into the record"),
    ],
)
def test_specs_that_the_scene_reward_cannot_take_are_told_with_their_line(tmp_path: Path, record: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"line 1: .*{message}"):
        read_prompts(line(tmp_path, record))
    assert read_prompts(line(tmp_path, record), "mine:judge"), "another reward's spec may hold anything"


def test_keys_beside_those_of_genevals_belong_to_a_reward_that_shares_the_specs(tmp_path: Path) -> None:
    source = line(tmp_path, {"tag": "single_object", "include": CIRCLE, "level": 3})
    with pytest.raises(ConfigError, match="unknown key 'level'"):
        read_prompts(source)
    (prompt,) = read_prompts(source, shared=True)
    assert prompt.spec["level"] == 3


def test_every_key_that_the_world_writes_is_known() -> None:
    from pararl.scenes.spec import KEYS

    written = {key for form in scenes.FORMS.values() for i in range(40) for key in scenes.prompt("train", i, 0, *form).spec}
    assert written == set(KEYS)
