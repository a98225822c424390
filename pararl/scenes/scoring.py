"""One score for the output of any task, from the spec of its prompt."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pararl.scenes.captions import check_caption
from pararl.scenes.changes import Change, read_changes, read_source
from pararl.scenes.edit_verify import UNREADABLE, Outcome, edit_atoms, edit_credit, judge
from pararl.scenes.pixels import Parsed, parse
from pararl.scenes.plans import blame, parse_plan
from pararl.scenes.possible import check_possible
from pararl.scenes.rewording import check_rewording, read_text
from pararl.scenes.spec import read_spec
from pararl.scenes.verify import align, verify, verify_plan
from pararl.scenes.world import CELL_NAMES, Scene
from pararl.types import Atom, Output, Score, Task


def score(task: Task, spec: Mapping[str, Any], output: Output, seen: Scene | Parsed | None = None) -> Score:
    """The score of an output of a prompt with that task and spec.

    ``seen``: what was read from the output's image, where that has been done already; tasks without an image ignore it. ``value`` is 1.0
    exactly when ``strict`` holds. Raises ValueError for a malformed spec or an output without the modality that the task produces.
    """
    if task in ("i2t", "t2t"):
        text = _text(task, output)
        return check_text(task, spec, text)
    if seen is None:
        if output.image is None:
            raise ValueError(f"no image for a prompt of task {task}: it needs uint8 [32, 32, 3]")
        seen = parse(output.image)
    if task == "edit":
        return check_edit(spec, seen)
    return check(spec, seen, _text(task, output) if task == "interleaved" else None)


def _text(task: Task, output: Output) -> str:
    if output.text is None:
        raise ValueError(f"no text for a prompt of task {task}: an empty text is the empty string")
    return output.text


def check(spec: Mapping[str, Any], seen: Scene | Parsed, plan: str | None = None) -> Score:
    """How well a scene, or what was parsed from an image, satisfies a spec: that of a description or, with key ``edit``, of an edit.

    For a description ``verify`` defines the atoms and their soft values, whose mean is ``value``; ``check_edit`` is the other case. With a
    ``plan`` (interleaved outputs) there are two more atoms. ``plan``: it parses and itself satisfies the spec, soft its own score.
    ``output_alignment``: it equals the image cell by cell, soft the F1 over placed objects. ``value`` is 1.0 exactly when ``strict`` holds.

    ``credit`` is float32 [4, 4]: +1 an object that was asked for, -1 one that contradicts the spec or is too much. An unreadable cell has
    -1 too; an empty one, and an object in a relation that does not hold, have 0. ``words`` is -1 a word of the plan that is wrong, else 0
    (``plans.blame``). Raises ValueError for a malformed spec.
    """
    if "edit" in spec:
        return check_edit(spec, seen, plan)
    need = read_spec(spec)
    findings = verify(need, seen)
    words = None
    if plan is not None:
        planned = parse_plan(plan)
        credit = verify_plan(findings, need, seen, planned)
        words = None if planned is None or credit is None else blame(planned, credit)
    return Score(findings.value, findings.strict, tuple(findings.atoms), findings.credit, words)


def check_edit(spec: Mapping[str, Any], seen: Scene | Parsed, plan: str | None = None) -> Score:
    """How well an image shows the source after the edit; ``edit_verify`` defines success, consistency and value.

    Atoms: one per edit (``edit``), ``consistency``, ``validity``. With a ``plan`` there are two more. ``plan``: it is an admissible result,
    soft its own value as an edit. ``output_alignment``: it equals the image, soft the F1 over placed objects times the mean value of both.
    Agreeing on the unchanged source is worth nothing. ``value`` is then the mean of image, plan and alignment. ``credit`` is that
    of ``edit_credit``, ``words`` that of ``plans.blame``. Raises ValueError for a malformed spec.
    """
    source, made = read_changes(spec)
    cells = cells_of(seen)
    outcome = judge(source, made, cells)
    unreadable = [CELL_NAMES[place] for place, value in enumerate(cells) if value == UNREADABLE]
    reason = f"unreadable cells {', '.join(unreadable)}" if unreadable else ""
    atoms = [*edit_atoms(outcome, source, made, cells), Atom("every cell is readable", "validity", not unreadable, reason)]
    value, strict, words = outcome.value, outcome.exact, None
    if plan is not None:
        plan_value, plan_atoms, words = _check_edit_plan(source, made, seen, outcome, plan)
        atoms += plan_atoms
        value = (value + plan_value) / 3
        strict = strict and all(atom.passed for atom in plan_atoms)
    return Score(value, strict, tuple(atoms), edit_credit(outcome, source, made, cells), words)


def _check_edit_plan(
    source: list[int], made: tuple[Change, ...], seen: Scene | Parsed, outcome: Outcome, plan: str
) -> tuple[float, list[Atom], np.ndarray | None]:
    """The sum of the soft values of ``plan`` and ``output_alignment``, their atoms, and the credit of the plan's words."""
    planned = parse_plan(plan)
    statements = ("the plan is the edited scene", "plan"), ("plan and image agree", "output_alignment")
    if planned is None:
        return 0.0, [Atom(*statement, False, "the plan does not parse") for statement in statements], None
    cells = cells_of(planned)
    own = judge(source, made, cells)
    why = "; ".join(atom.reason for atom in edit_atoms(own, source, made, cells) if not atom.passed)
    agreement, agree, reason = align(seen, planned)
    value = own.value + (agreement or 0.0) * (outcome.value + own.value) / 2
    return value, [Atom(*statements[0], own.exact, why), Atom(*statements[1], agree, reason)], _edit_words(own, source, made, planned)


def _edit_words(outcome: Outcome, source: Sequence[int], made: Sequence[Change], planned: Scene) -> np.ndarray:
    """Credit of the words of a plan that should be the scene after an edit."""
    return blame(planned, edit_credit(outcome, source, made, cells_of(planned)), outcome.result)


def cells_of(seen: Scene | Parsed) -> list[int]:
    """The 16 cells of what was seen: -1 empty, -2 unreadable, else the kind."""
    if isinstance(seen, Scene):
        return seen.cells.ravel().tolist()
    cells: list[int] = seen.scene.cells.ravel().tolist()
    return [value if ok else UNREADABLE for value, ok in zip(cells, seen.valid.ravel().tolist(), strict=True)]


def check_text(task: Task, spec: Mapping[str, Any], text: str) -> Score:
    """The score of an output in text alone.

    The keys of the spec say what is asked. ``answer``: exactly these words. ``edit`` (t2t): the plan of the edited scene, soft as an image
    would be. ``text`` (t2t): the same in other words, see ``rewording``. Else (i2t): a caption of ``source``, see ``captions``.
    Raises ValueError for a malformed spec.
    """
    if "answer" in spec:
        return _check_answer(spec, text)
    if task == "i2t":
        return check_caption(read_source(spec), text)
    return check_rewording(spec, text) if "text" in spec else _check_text_edit(spec, text)


def _check_answer(spec: Mapping[str, Any], text: str) -> Score:
    answer = read_answer(spec)
    right = text.split() == answer.split()
    atom = Atom(f"the answer is {answer}", str(spec.get("tag", "answer")), right, "" if right else f"expected {answer!r}, found {text!r}")
    return Score(float(right), right, (atom,))


def _check_text_edit(spec: Mapping[str, Any], text: str) -> Score:
    source, made = read_changes(spec)
    planned = parse_plan(text)
    if planned is None:
        return Score(0.0, False, (Atom("the text is a plan", "plan", False, f"cannot read {text!r}"),))
    cells = cells_of(planned)
    outcome = judge(source, made, cells)
    atoms = (Atom("the text is a plan", "plan", True), *edit_atoms(outcome, source, made, cells))
    return Score(outcome.value, outcome.exact, atoms, words=_edit_words(outcome, source, made, planned))


def read_answer(spec: Mapping[str, Any]) -> str:
    """The answer that a spec expects. Raises ValueError when it is not text."""
    answer = spec.get("answer")
    if not isinstance(answer, str) or not answer.strip():
        raise ValueError(f"spec answer: a text is needed, got {answer!r}")
    return answer


def check_spec(task: Task, spec: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the entry, when no output of that task can be scored by a spec, or none could satisfy it."""
    source = input_scene(task, spec)
    if "answer" in spec and task in ("i2t", "t2t"):
        read_answer(spec)
    elif task == "t2t" and "text" in spec:
        read_text(spec)
    elif task in ("edit", "t2t") or "edit" in spec:
        read_changes(spec)
    elif source is None:
        check_possible(read_spec(spec))


def input_scene(task: Task, spec: Mapping[str, Any]) -> Scene | None:
    """The scene of a prompt's input image: the spec's source for ``i2t``, ``edit`` and ``interleaved`` edits, else None.

    Raises ValueError for a source that is no scene.
    """
    if task in ("i2t", "edit") or (task == "interleaved" and "edit" in spec):
        return Scene.from_cells(read_source(spec))
    return None
