"""The six axes are independent: each moves with what it names alone."""

import numpy as np
import pytest

from pararl import scenes
from pararl.scenes.changes import write_edits
from pararl.scenes.edits import Edit
from pararl.scenes.selectors import Selector

SOURCE = scenes.Scene.of([(0, 0, 0, 0), (1, 2, 2, 2)])
RESULT = scenes.Scene.of([(0, 1, 0, 0), (1, 2, 2, 2)])
EDIT = write_edits([Edit("recolour", Selector("circle"), colour="green")], SOURCE, "recolour")
DESCRIPTION = {"include": [{"class": "circle", "count": 1}, {"class": "square", "count": 1}], "closed": True}


def of(spec: dict[str, object], seen: scenes.Scene | scenes.Parsed, plan: str | None = None) -> tuple[float | None, ...]:
    found = scenes.axes(spec, seen, plan)
    return (
        found.text_quality,
        found.text_alignment,
        found.image_quality,
        found.image_alignment,
        found.image_consistency,
        found.output_alignment,
    )


def test_right_outputs_have_one_on_every_axis_that_applies() -> None:
    plan = scenes.plan_text(RESULT)
    assert of(EDIT, RESULT, plan) == (1, 1, 1, 1, 1, 1)
    assert of(EDIT, RESULT) == (None, None, 1, 1, 1, None)
    assert of(DESCRIPTION, RESULT, plan) == (1, 1, 1, 1, None, 1)
    assert of(DESCRIPTION, RESULT) == (None, None, 1, 1, None, None)


def test_the_unchanged_source_agrees_with_its_own_plan_and_is_nothing_of_what_was_asked() -> None:
    assert of(EDIT, SOURCE, scenes.plan_text(SOURCE)) == (1, 0, 1, 0, 1, 1)
    assert of(EDIT, RESULT, scenes.plan_text(SOURCE)) == (1, 0, 1, 1, 1, 0.5)
    assert of(EDIT, SOURCE, scenes.plan_text(RESULT)) == (1, 1, 1, 0, 1, 0.5)


def test_a_broken_plan_has_none_of_the_text_axes() -> None:
    for spec in (EDIT, DESCRIPTION):
        assert of(spec, RESULT, "green circle")[:2] == (0, 0) and of(spec, RESULT, "green circle")[5] == 0
        assert of(spec, RESULT, "green circle")[2:5] == of(spec, RESULT)[2:5]
    assert of(EDIT, scenes.Scene.empty(), ".") == (1, 0, 1, 0, pytest.approx(14 / 15), 1)


def test_quality_is_the_share_of_readable_cells_and_consistency_that_of_kept_ones() -> None:
    image = scenes.render(RESULT).copy()
    image[:8, 8:] = np.random.default_rng(0).integers(0, 256, (8, 24, 3))
    found = scenes.axes(EDIT, scenes.parse(image))
    assert found.image_quality == pytest.approx(13 / 16) and found.image_consistency == pytest.approx(12 / 15)


def test_axes_are_one_exactly_where_the_score_is_strict() -> None:
    for index in range(200):
        for form in ("text", "edit"):
            shown, other = (scenes.example("pretrain", i, task="interleaved", form=form) for i in (index, index + 1))
            for image, text in (
                (shown.output.image, shown.output.text),
                (other.output.image, shown.output.text),
                (shown.output.image, other.output.text),
            ):
                assert image is not None
                seen = scenes.parse(image)
                found = of(dict(shown.prompt.spec), seen, text)
                assert all(value is None or 0 <= value <= 1 for value in found)
                assert scenes.check(shown.prompt.spec, seen, text).strict == all(value in (None, 1) for value in found)
