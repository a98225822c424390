"""Hand-written edits: what each is worth, what its atoms say, which records are refused, and how instructions read."""

import random
from typing import Any

import numpy as np
import pytest

from pararl import scenes
from pararl.scenes.changes import apply, changes, write_edits
from pararl.scenes.edits import OPERATIONS, Edit, read_edit
from pararl.scenes.instructions import compound, instruction
from pararl.scenes.selectors import Selector
from pararl.scenes.world import CELL_NAMES, COLOURS, Scene
from pararl.types import Output, Score
from tests.pararl.scenes.checked import credit, failed, scene
from tests.wording import telling

RED_CIRCLE, BLUE_SQUARE = Selector("circle", "red"), Selector("square", "blue")


SOURCE = ("red circle a1", "blue square c3", "green cross d4")


def spec(*edits: Edit, source: tuple[str, ...] = SOURCE) -> dict[str, Any]:
    return write_edits(edits, scene(*source), "edit")


def after(record: dict[str, Any], *objects: str) -> Score:
    return scenes.check(record, scene(*objects))


def test_any_empty_cell_does_for_a_new_object() -> None:
    record = spec(Edit("add", Selector("circle", "yellow")))
    for cell in CELL_NAMES:
        if cell not in ("a1", "c3", "d4"):
            score = after(record, *SOURCE, f"yellow circle {cell}")
            assert score.strict and score.value == 1.0 and credit(score) == {cell: 1}
    assert [atom.skill for atom in score.atoms] == ["edit", "consistency", "validity"]
    replaced = after(record, "yellow circle a1", *SOURCE[1:])
    assert not replaced.strict and replaced.value == 0, "the new object took the place of another"


def test_right_place_but_wrong_colour_is_half_a_success() -> None:
    record = spec(Edit("add", Selector("circle", "yellow"), cell="b2"))
    score = after(record, *SOURCE, "purple circle b2")
    assert score.value == pytest.approx(0.5) and not score.strict
    assert failed(score) == {"add a yellow circle in b2": "expected yellow circle in b2, found purple circle"}
    assert credit(score) == {"b2": -1}
    assert scenes.axes(record, scene(*SOURCE, "purple circle b2")).image_alignment == pytest.approx(0.5)
    elsewhere = after(record, *SOURCE, "yellow circle b3")
    assert elsewhere.value == 0 and set(failed(elsewhere)) == {"add a yellow circle in b2", "the rest is as it was"}


def test_recolouring_counts_the_new_colour_not_that_something_changed() -> None:
    record = spec(Edit("recolour", RED_CIRCLE, colour="green"))
    assert after(record, "green circle a1", *SOURCE[1:]).strict
    assert after(record, "yellow circle a1", *SOURCE[1:]).value == 0
    assert after(record, "green triangle a1", *SOURCE[1:]).value == pytest.approx(0.5)


def test_consistency_is_the_share_of_untouched_cells() -> None:
    record = spec(Edit("remove", RED_CIRCLE))
    score = after(record, "blue square c3")
    # one of 15 untouched cells is spoilt; the agreement of one object with two is 2/3
    assert score.value == pytest.approx(2 / 3 * (0.6 + 0.4 * 14 / 15))
    assert failed(score) == {"the rest is as it was": "d4 was green cross, is nothing"}
    assert credit(score) == {"a1": 1, "d4": -1}


@pytest.mark.parametrize("split", scenes.splits("edit"))
def test_unchanged_blank_and_noise_are_worth_nothing_and_a_flood_little(split: str) -> None:
    rng = np.random.default_rng(0)
    for index in range(60):
        prompt = scenes.prompt(split, index, task="edit")
        noise = rng.integers(0, 256, (32, 32, 3), np.uint8)
        assert prompt.image is not None
        for image in (prompt.image, scenes.render(Scene.empty()), noise, np.zeros_like(noise)):
            score = scenes.score("edit", prompt.spec, Output(image=image))
            assert score.value == 0 and score.strict is False
        filled = np.where((source := np.array(prompt.spec["source"])) < 0, rng.integers(0, 24, 16), source)
        assert scenes.check(prompt.spec, Scene.from_cells(filled)).value < 0.65


def test_filling_the_grid_with_what_is_asked_for_does_not_pay() -> None:
    record = spec(Edit("add", Selector("circle", "yellow")))
    flood = after(record, *SOURCE, *(f"yellow circle {cell}" for cell in CELL_NAMES if cell not in ("a1", "c3", "d4")))
    assert not flood.strict and flood.value < 0.3
    two = after(record, *SOURCE, "yellow circle a2", "yellow circle a3")
    assert not two.strict and 0.8 < two.value < 0.9 and sorted(credit(two).values()) == [-1, 1]


def test_an_unreadable_cell_fails_validity_and_consistency() -> None:
    record = spec(Edit("remove", RED_CIRCLE))
    image = scenes.render(scene(*SOURCE[1:])).copy()
    image[:8, 24:] = 0
    score = scenes.check(record, scenes.parse(image))
    assert failed(score) == {
        "the rest is as it was": "a4 was nothing, is nothing readable",
        "every cell is readable": "unreadable cells a4",
    }
    assert 0.7 < score.value < 1 and credit(score) == {"a1": 1, "a4": -1}


def test_counts_may_be_met_in_any_way() -> None:
    source = ("red circle a1", "green circle a2", "blue square c3", "blue square c4", "green square d1")
    fewer = spec(Edit("count", Selector("circle"), count=1), source=source)
    assert after(fewer, *source[1:]).strict and after(fewer, source[0], *source[2:]).strict
    assert after(fewer, *source[2:]).strict is False
    equal = spec(Edit("count", Selector("circle"), other=Selector("square")), source=source)
    assert after(equal, *source, "yellow circle d4").strict and after(equal, *source, "red circle b2").strict
    fulfilled_otherwise = after(equal, *source[:4])
    assert fulfilled_otherwise.strict is False and fulfilled_otherwise.value == 0, "one square less would make the numbers equal as well"
    unmoved = after(equal, *source)
    assert unmoved.value == 0 and credit(unmoved) == {}, "no cell is to blame for an object that could be anywhere"


def test_a_relation_gives_the_choice_among_the_cells_where_it_holds() -> None:
    record = spec(Edit("move", RED_CIRCLE, BLUE_SQUARE, "right of"))
    assert after(record, "red circle c4", *SOURCE[1:]).strict and after(record, "red circle b4", *SOURCE[1:]).strict
    beside = after(record, "red circle a4", *SOURCE[1:])
    assert not beside.strict, "above rather than right of"
    assert beside.value == pytest.approx(0.5 * (0.6 + 0.4 * 13 / 14))


def test_a_plan_must_be_the_result_and_agree_with_the_image() -> None:
    record = spec(Edit("add", Selector("cross", "red")))
    one, other = scene(*SOURCE, "red cross b1"), scene(*SOURCE, "red cross b2")
    same = scenes.check(record, one, scenes.plan_text(one))
    assert same.strict and same.value == 1.0 and [atom.skill for atom in same.atoms[-2:]] == ["plan", "output_alignment"]
    differing = scenes.check(record, one, scenes.plan_text(other))
    assert failed(differing) == {"plan and image agree": "plan and image differ in b1, b2"}
    assert differing.value == pytest.approx((1 + 1 + 6 / 8) / 3)
    unchanged = scenes.check(record, scene(*SOURCE), scenes.plan_text(scene(*SOURCE)))
    assert unchanged.value == 0 and not unchanged.strict, "plan and image agree, but on nothing that was asked for"
    for plan in ("", ".", "red cross b1"):
        assert scenes.check(record, one, plan).value == pytest.approx(1 / 3)


def test_two_edits_have_an_atom_each() -> None:
    record = spec(Edit("remove", RED_CIRCLE), Edit("recolour", BLUE_SQUARE, colour="red"))
    assert after(record, "red square c3", "green cross d4").strict
    half = after(record, "blue square c3", "green cross d4")
    assert set(failed(half)) == {"make the blue square red"} and half.value == pytest.approx(0.5)


def edit_record(**fields: Any) -> dict[str, Any]:
    return {"operation": "remove", "subject": {"class": "circle"}} | fields


@pytest.mark.parametrize(
    ("edits", "tokens"),
    [
        ([], ("edit", "[]")),
        ("add", ("edit", "'add'")),
        ([edit_record()] * 3, ("edit", "remove")),
        ([{"operation": "paint"}], ("edit[0]", "'operation'", "'paint'")),
        ([edit_record(count=1)], ("edit[0]", "remove", "any", "count")),
        ([edit_record(operation="recolour")], ("edit[0]", "recolour", "color")),
        ([edit_record(operation="recolour", color="pink")], ("edit[0]", "'pink'")),
        ([edit_record(operation="recolour", color="red")], ("edit[0]", "recolour", "the circle")),
        ([edit_record(operation="move", cell="e1")], ("edit[0]", "'e1'")),
        ([edit_record(operation="move", cell="c3")], ("edit[0]", "move", "cell")),
        ([edit_record(operation="move", relation="above")], ("edit[0]", "move", "relation", "other")),
        ([edit_record(operation="move", relation="above", other={"class": "square"})], ("edit[0]", "the circle", "above", "the square")),
        ([edit_record(operation="count", count=True)], ("edit[0]", "count", True)),
        ([edit_record(operation="count", count=1)], ("edit[0]", 1, "circles")),
        ([edit_record(operation="count", count=17)], ("edit[0]", "count", 17)),
        ([edit_record(operation="count", count=16)], ("edit[0]", 13, 15, "circles")),
        ([edit_record(operation="count", subject={"color": "red"}, count=3)], ("edit[0]", "count", "class")),
        ([edit_record(operation="count", other={"class": "circle", "color": "red"})], ("edit[0]", "circles", "red circles")),
        ([edit_record(subject={"class": "dog"})], ("edit[0] subject", "'dog'")),
        ([edit_record(subject={"class": "circle", "cell": "a1"})], ("edit[0] subject", "'cell'")),
        ([edit_record(subject={})], ("edit[0] subject", "{}")),
        ([edit_record(subject={"class": "triangle"})], ("edit[0]", "'the triangle'", 0)),
        ([edit_record(any=1)], ("edit[0]", "any", 1)),
        ([edit_record(), edit_record(operation="recolour", color="blue")], ("edit[1]", "edit[0]")),
        ([edit_record(), edit_record(operation="add", subject={"class": "cross"})], ("edit[1]", "edit[0]")),
        ([edit_record()] * 2, ("edit[1]", "edit[0]")),
    ],
)  # fmt: skip
def test_edits_that_make_no_sense_are_errors_that_name_the_entry(edits: Any, tokens: tuple[object, ...]) -> None:
    record = {"edit": edits, "source": scene(*SOURCE).cells.ravel().tolist()}
    with pytest.raises(ValueError, match=telling(*tokens)):
        scenes.check(record, Scene.empty())


def test_ambiguous_references_and_empty_results_are_errors() -> None:
    with pytest.raises(ValueError, match=telling("edit[0]", "'the circle'", 2)):
        scenes.check(spec(Edit("remove", Selector("circle")), source=("red circle a1", "blue circle a2")), Scene.empty())
    with pytest.raises(ValueError, match=telling("edit[0]")):
        scenes.check(spec(Edit("remove", Selector("circle")), source=("red circle a1",)), Scene.empty())


@pytest.mark.parametrize("source", [None, [0] * 15, [-1] * 15 + [24], [-2] + [-1] * 15, [True] + [-1] * 15, [0.5] * 16])
def test_a_source_that_is_no_scene_is_an_error(source: Any) -> None:
    with pytest.raises(ValueError, match=telling("source")):
        scenes.check({"edit": [edit_record()], "source": source}, Scene.empty())


def test_records_round_trip() -> None:
    for index in range(400):
        for record in scenes.prompt("pretrain", index, task="edit").spec["edit"]:
            assert read_edit(record, "edit").record() == record


def test_every_operation_has_two_or_more_wordings_which_the_held_out_ones_do_not_share() -> None:
    rng = random.Random(0)
    edits = [
        Edit("add", RED_CIRCLE),
        Edit("add", RED_CIRCLE, cell="b2"),
        Edit("add", RED_CIRCLE, BLUE_SQUARE, "left of"),
        Edit("remove", RED_CIRCLE),
        Edit("remove", RED_CIRCLE, any_one=True),
        Edit("recolour", RED_CIRCLE, colour="blue"),
        Edit("reshape", RED_CIRCLE, shape="cross"),
        Edit("move", RED_CIRCLE, cell="b2"),
        Edit("move", RED_CIRCLE, BLUE_SQUARE, "above"),
        Edit("swap", RED_CIRCLE, BLUE_SQUARE),
        Edit("count", RED_CIRCLE, count=0),
        Edit("count", RED_CIRCLE, other=BLUE_SQUARE),
    ]
    assert {edit.operation for edit in edits} == set(OPERATIONS)
    for edit in edits:
        ordinary, held = ({" ".join(instruction(edit, rng, otherwise)) for _ in range(60)} for otherwise in (False, True))
        assert len(ordinary) >= 2 and len(held) >= 2 and not ordinary & held
    verbs, joints = ("remove", "delete"), ("and", "then")
    said = {" ".join(compound(edits[3:5], rng)) for _ in range(200)}
    assert said == {f"{a} the red circle {joint} {b} a red circle" for a in verbs for b in verbs for joint in joints}


def test_applied_free_colours_avoid_the_pairs_named() -> None:
    rng = random.Random(0)
    edit = Edit("count", Selector("circle"), count=5)
    avoid = frozenset({("circle", "red"), ("circle", "blue")})
    drawn = {apply([edit], scene("green cross a1"), rng, avoid) for _ in range(200)}
    colours = {COLOURS[o.colour] for result in drawn for o in result.objects() if o.shape == 0}
    assert colours == {"green", "yellow", "purple", "orange"}
    assert all(len(result.objects()) == 6 for result in drawn)
    with pytest.raises(ValueError, match=telling("edit[0]", "reshape", "the cross")):
        changes([Edit("reshape", Selector("cross"), shape="cross")], scene("green cross a1").cells.ravel().tolist())


def test_words_of_edited_plans_are_blamed_for_what_they_say() -> None:
    record = spec(Edit("recolour", RED_CIRCLE, colour="blue"))
    plan = "blue circle a1 ; blue square c3 ; red cross d4 ."
    score = scenes.score("t2t", record, Output(text=plan))
    assert score.words is not None and score.words.dtype == np.float32 and score.credit is None
    assert np.flatnonzero(score.words).tolist() == [8] and score.words[8] == -1 and len(score.words) == 12
    drawn = scenes.render(scene("blue circle a1", *SOURCE[1:]))
    both = scenes.score("interleaved", record, Output(plan, drawn))
    assert both.words is not None and both.words.tolist() == score.words.tolist() and credit(both) == {"a1": 1}
    assert scenes.score("interleaved", record, Output("no plan", drawn)).words is None
    moved = scenes.score("t2t", spec(Edit("move", RED_CIRCLE, cell="a3")), Output(text="red circle a4 ; blue square c3 ; green cross d4 ."))
    assert moved.words is not None and np.flatnonzero(moved.words).tolist() == [2]
    described = {"tag": "object", "include": [{"class": "circle", "color": "red", "count": 1}], "exclude": [], "closed": True}
    asked = scenes.score("interleaved", described, Output("red circle a1 ; blue square b1 .", drawn))
    assert asked.words is not None and asked.words.tolist() == [0, 0, 0, 0, -1, -1, -1, 0]
