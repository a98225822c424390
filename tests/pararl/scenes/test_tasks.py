"""Examples of every task and split are pure functions, right, short, in the vocabulary, and keep apart what is held out."""

import collections
import hashlib
import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from pararl import scenes
from pararl.scenes.splits import HELD_PAIRS, is_id_text
from pararl.scenes.world import COLOURS, SHAPES
from pararl.types import Kind, Task

ROOT = Path(__file__).parents[3]
FORMS: list[tuple[Task, scenes.Form]] = [*((task, "text") for task in scenes.TASKS), ("interleaved", "edit")]
EACH = [(task, form, split) for task, form in FORMS for split in scenes.splits(task, form)]
PARAPHRASE_WORDS = {"place", "create", "keep", "paint", "repaint", "replace", "exchange", "after", "show", "decrease", "new", "as", "same"}


def digest(count: int) -> str:
    """Hash of the first examples of every task, form and split."""
    found = hashlib.sha256()
    for (task, form, split), index in itertools.product(EACH, range(count)):
        shown = scenes.example(split, index, 3, task, form)
        found.update(json.dumps([shown.prompt.id, shown.prompt.text, dict(shown.prompt.spec), shown.output.text]).encode())
        for image in (shown.prompt.image, shown.output.image):
            found.update(b"" if image is None else image.tobytes())
    return found.hexdigest()


def test_a_fresh_process_draws_the_same_examples() -> None:
    code = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]; import test_tasks; print(test_tasks.digest(4))"
    fresh = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"})
    assert fresh.stdout.strip() == digest(4)


@pytest.mark.parametrize(("task", "form", "split"), EACH)
def test_examples_are_exactly_right_short_and_in_the_vocabulary(task: Task, form: scenes.Form, split: str) -> None:
    vocabulary = set(scenes.VOCABULARY)
    for index in range(150):
        shown = scenes.example(split, index, 5, task, form)
        prompt, output = shown.prompt, shown.output
        again = scenes.prompt(split, index, 5, task, form)
        assert (again.id, again.text, again.spec) == (prompt.id, prompt.text, prompt.spec)
        score = scenes.score(task, prompt.spec, output)
        assert score.strict is True and score.value == 1.0 and all(atom.passed for atom in score.atoms), (prompt.text, output.text, score)
        assert (output.image is None) == (task in ("i2t", "t2t")) and (output.text is None) == (task in ("t2i", "edit"))
        assert (prompt.image is None) == (task in ("t2i", "t2t") or (task == "interleaved" and form == "text"))
        assert {*prompt.text.split(" "), *(output.text or ".").split(" ")} <= vocabulary, (prompt.text, output.text)
        assert 1 < len(prompt.text.split()) <= 28
        assert len((output.text or "").split()) <= (24 if task == "interleaved" else 23)
        assert len(shown.scene.objects()) <= 6 and (task == "t2t" or shown.scene.objects())
        json.dumps(dict(prompt.spec))


def test_interleaved_edits_are_learnt_from_those_of_pictures_and_asked_of_smaller_scenes() -> None:
    for index in range(20):
        edit, both = (scenes.example("pretrain", index, 0, *scenes.FORMS[kind]) for kind in ("edit", "interleaved_edit"))
        assert edit.prompt.text == both.prompt.text and edit.scene == both.scene
        assert scenes.parse_plan(both.output.text or "") == both.scene
    for split in scenes.splits("interleaved", "edit")[:-1]:
        before, after = zip(*(sizes(split, index) for index in range(300)), strict=True)
        assert max(before) <= 3 and max(after) <= 6 and len(set(before)) > 1


def sizes(split: str, index: int) -> tuple[int, int]:
    """Objects before and after an interleaved edit."""
    shown = scenes.example(split, index, task="interleaved", form="edit")
    return sum(value >= 0 for value in shown.prompt.spec["source"]), len(shown.scene.objects())


def test_prompts_are_named_after_split_index_task_and_seed() -> None:
    assert scenes.prompt("id", 3).id == scenes.prompt("id", 3, task="interleaved").id == "id-3"
    assert scenes.prompt("id", 3, task="edit").id == "id-3-edit"
    assert scenes.prompt("id", 3, 5, "interleaved", "edit").id == "id-3-interleaved-s5"
    assert scenes.prompt("id", 3, task="i2t").id == "id-3-i2t" and scenes.prompt("id", 3, task="t2t").id == "id-3-t2t"


def pairs(cells: list[int]) -> set[tuple[str, str]]:
    return {(SHAPES[value // 6], COLOURS[value % 6]) for value in cells if value >= 0}


@pytest.mark.parametrize("kind", ["edit", "interleaved_edit"])
def test_edits_of_each_split_hold_what_it_is_named_after_and_nothing_else_that_is_held_out(kind: Kind) -> None:
    count, form = 700, scenes.FORMS[kind]
    drawn = {split: [scenes.example(split, index, 0, *form) for index in range(count)] for split in scenes.splits(*form)}

    def held(shown: scenes.Example) -> set[str]:
        words, edits, source = set(shown.prompt.text.split()), shown.prompt.spec["edit"], shown.prompt.spec["source"]
        result = shown.scene.cells.ravel().tolist()
        named = {(entry.get("class"), entry.get("color")) for edit in edits for entry in (edit["subject"], edit.get("other", {}))}
        counts = {SHAPES[shape]: sum(value // 6 == shape for value in result if value >= 0) for shape in range(4)}
        return {
            name
            for name, there in {
                "ood_pair": bool((pairs(source) | pairs(result) | named) & HELD_PAIRS),
                "ood_rel": bool(words & {"below", "under"}),
                "ood_count": any(edit.get("count", 0) > 4 and counts[edit["subject"]["class"]] >= edit["count"] for edit in edits),
                "ood_ops": len(edits) == 2,
                "para": bool(words & PARAPHRASE_WORDS) or "to the left of" in shown.prompt.text or "to the right of" in shown.prompt.text,
            }.items()
            if there
        }

    for split in ("train", "id"):
        for shown in drawn[split]:
            assert not held(shown), shown.prompt.text
            assert is_id_text(shown.prompt.text) == (split == "id")
    for split in ("ood_pair", "ood_rel", "ood_count", "ood_ops"):
        assert all(held(shown) == {split} for shown in drawn[split])
    assert all(held(shown) <= {"para"} for shown in drawn["para"])
    ordinary = {shown.prompt.text for split in ("train", "id", "ood_pair", "ood_rel", "ood_count") for shown in drawn[split]}
    assert not ordinary & {shown.prompt.text for shown in drawn["para"]}
    share = sum(bool(held(shown)) for shown in drawn["pretrain"]) / count
    assert 0.12 < share < 0.24
    assert set.union(*(held(shown) for shown in drawn["pretrain"])) == {"ood_pair", "ood_rel", "ood_count", "ood_ops", "para"}
    for split in ("train", "id", "para"):
        operations = collections.Counter(shown.prompt.spec["tag"] for shown in drawn[split])
        assert len(operations) == 7 and all(0.08 < number / count < 0.21 for number in operations.values()), operations
    assert {shown.prompt.spec["tag"] for shown in drawn["ood_ops"]} == {"two_edits"}


def test_the_stream_that_the_shipped_base_was_pretrained_on_is_pinned() -> None:
    """Texts, specs, scenes and answers of its first 200 examples of every kind; with another stream the recipe makes another base."""
    recorded: dict[Kind, str] = {
        "t2t": "41d4d70682ddac67",
        "i2t": "ec7459c51119552e",
        "t2i": "579aa8f0d394d1e3",
        "edit": "16f4a159af82606c",
        "interleaved": "14c1427813f3d964",
        "interleaved_edit": "437378fa0cd57f9e",
    }
    for kind, digest in recorded.items():
        found = hashlib.sha256()
        for index in range(200):
            shown = scenes.example("pretrain", index, 0, *scenes.FORMS[kind])
            line = [shown.prompt.text, dict(shown.prompt.spec), shown.scene.cells.tolist(), shown.output.text]
            found.update(json.dumps(line).encode())
        assert found.hexdigest()[:16] == digest, kind
