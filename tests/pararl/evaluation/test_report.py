"""What an evaluation says: checked against numbers worked out by hand."""

import numpy as np
import pytest

from pararl import scenes
from pararl.evaluation.intervals import bootstrap, paired
from pararl.evaluation.report import LEGEND, Scored, cycle_report, differences, diversity_report, geometric_mean, split_report, table, worst
from pararl.scenes.sentences import caption
from pararl.types import Atom, Output, Prompt, Score

SPEC = {
    "tag": "color_attr",
    "include": [{"class": "circle", "count": 1, "color": "red"}, {"class": "square", "count": 1, "color": "blue"}],
    "exclude": [{"class": "circle", "count": 2}, {"class": "square", "count": 2}],
    "closed": True,
}
PROMPT = Prompt("p", "t2i", "a red circle and a blue square", SPEC)
RIGHT = scenes.Scene.of([(0, 0, 0, 0), (1, 2, 2, 2)])
SWAPPED = scenes.Scene.of([(0, 2, 0, 0), (1, 0, 2, 2)])


def scored(scene: scenes.Scene, prompt: Prompt = PROMPT) -> Scored:
    output = Output(image=scenes.render(scene))
    return Scored(prompt, output, scenes.score(prompt.task, prompt.spec, output))


def test_intervals_cover_the_mean_of_the_population_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(300):
        found = bootstrap((rng.random(60) < 0.3).astype(float).tolist(), seed)
        hits += found["low"] <= 0.3 <= found["high"]
    assert 0.90 <= hits / 300 <= 0.985
    assert bootstrap([1.0] * 5) == {"mean": 1.0, "low": 1.0, "high": 1.0, "n": 5}


def test_differences_are_paired_by_prompt() -> None:
    # The same noise in both systems cancels: the interval of the difference is far narrower than that of either.
    noise = np.random.default_rng(0).random(200)
    gain = paired((noise + 0.1).tolist(), noise.tolist())
    assert gain["mean"] == pytest.approx(0.1) and gain["high"] - gain["low"] < 1e-9
    found = differences([scored(RIGHT), scored(RIGHT), None], [scored(SWAPPED), scored(RIGHT), scored(RIGHT)])
    assert found["strict"]["mean"] == 0.5 and found["strict"]["n"] == 2


def test_the_geometric_mean_is_that_of_the_atoms() -> None:
    atoms = (Atom("a", "color", True), Atom("b", "count", False, value=0.25), Atom("c", "count", True, value=1.0))
    assert geometric_mean(Score(0.75, False, atoms)) == pytest.approx(0.25 ** (1 / 3))
    assert geometric_mean(Score(0.5, False, (Atom("a", "color", True), Atom("b", "color", False)))) == 0.0
    assert geometric_mean(Score(0.5)) == 0.5
    assert geometric_mean(scored(RIGHT).score) == 1.0


def test_a_report_tells_skills_tags_and_numbers_of_atoms_apart() -> None:
    single = Prompt("q", "t2i", "a circle", {"tag": "single_object", "include": [{"class": "circle", "count": 1}], "closed": True})
    alone = scenes.Scene.of([(0, 3, 1, 1)])
    report = split_report([scored(RIGHT), scored(SWAPPED), scored(alone, single)])
    assert report["n"] == 3 and report["strict"]["mean"] == pytest.approx(2 / 3)
    assert report["by_tag"]["color_attr"]["strict"]["mean"] == 0.5 and report["by_tag"]["single_object"]["strict"]["mean"] == 1.0
    assert report["by_skill"]["color"]["mean"] == 0.5 and report["by_skill"]["object"]["mean"] == 1.0
    assert {name: group["strict"]["n"] for name, group in report["by_atoms"].items()} == {"3": 1, "6": 2}
    assert report["axes"]["image_quality"]["mean"] == 1.0 and report["axes"]["image_alignment"]["mean"] == report["soft"]["mean"]
    assert "output_alignment" not in report["axes"]
    lines = table({"base": {"t2i": {"id": report}}}).splitlines()
    assert lines[0].split()[4:12] == ["strict", "(95", "%)", "gm", "soft", "TQ", "TA", "IQ"]
    assert lines[1].split()[:5] == ["t2i,", "id", "base", "3", "0.667"]


def test_axes_of_joint_outputs_see_a_plan_that_differs_from_its_image() -> None:
    prompt = Prompt("p", "interleaved", PROMPT.text, SPEC)
    output = Output(scenes.plan_text(RIGHT), scenes.render(SWAPPED))
    axes = split_report([Scored(prompt, output, scenes.score("interleaved", SPEC, output))])["axes"]
    assert axes["text_alignment"]["mean"] == 1.0 and axes["image_alignment"]["mean"] < 1 and axes["output_alignment"]["mean"] == 0.0


def test_cycle_consistency_holds_exactly_where_the_caption_says_what_the_prompt_asked() -> None:
    right = ("a red circle and a blue square", "one blue square and a red circle")
    wrong = ("a blue circle and a red square", "a red circle", "a red circle and a blue square and a green cross", "circle red", "")
    found = [scenes.cycle(SPEC, caption) for caption in right + wrong]
    assert found[:2] == [(1.0, True)] * 2
    assert all(not strict and value < 1 for value, strict in found[2:]) and found[-1] == (0.0, False)
    circle, square = {"class": "circle", "count": 1, "color": "red", "position": ["left of", 0]}, {"class": "square", "count": 1}
    related = {"include": [square | {"color": "blue"}, circle], "closed": True}
    assert scenes.cycle(related, right[0]) == (1.0, True), "captions of this world tell no places"
    report = cycle_report([PROMPT] * 2, [right[0], wrong[0]])
    assert report["strict"]["mean"] == 0.5


def test_captions_of_right_images_close_the_cycle_and_those_of_other_prompts_do_not() -> None:
    examples = [scenes.example("id", i) for i in range(60)]
    said = [caption(e.scene) for e in examples]
    assert all(scenes.cycle(e.prompt.spec, text)[1] for e, text in zip(examples, said, strict=True))
    shifted = [scenes.cycle(e.prompt.spec, text)[1] for e, text in zip(examples, said[1:] + said[:1], strict=True)]
    assert np.mean(shifted) < 0.2


def test_diversity_is_none_for_one_output_said_twice_and_full_for_different_ones() -> None:
    one, other = Output(image=scenes.render(RIGHT)), Output(image=scenes.render(SWAPPED))
    assert diversity_report([[one, one, one]])["unique"]["mean"] == 0.0
    found = diversity_report([[one, other], [one, one]])
    assert found["unique"]["mean"] == 0.5 and found["distance"]["mean"] == pytest.approx(2 / 16 / 2)
    noise = [Output(image=np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)) for i in range(3)]
    assert diversity_report([noise])["unique"]["mean"] == 1.0, "what cannot be read as cells is compared by its pixels"
    assert diversity_report([[Output("a b"), Output("a c")]])["distance"]["mean"] == 0.5
    assert diversity_report([[Output(""), Output("")]])["distance"]["mean"] == 0.0


def test_the_worst_failures_are_the_lowest_scores_that_are_wrong() -> None:
    empty, swapped = scored(scenes.Scene.empty()), scored(SWAPPED)
    found = worst([scored(RIGHT), swapped, empty], 5)
    assert found[0] is empty and found[1] is swapped and len(found) == 2
    assert worst([scored(RIGHT)], 3) == []


def test_the_legend_explains_every_column() -> None:
    figure = {"mean": 0.5, "low": 0.25, "high": 0.75, "n": 4}
    report = {"n": 4, "strict": figure, "soft": figure}
    head = table({"base": {"t2i": {"id": report}}}).splitlines()[0].split()
    assert head[:4] == ["kind,", "split", "system", "n"]
    explained = {word.strip(",:;") for line in LEGEND.splitlines() for part in line.split(";") for word in part.partition(":")[0].split()}
    assert set(head[4:]) - {"(95", "%)"} <= explained and "95 %" in LEGEND
