"""The exact verifier of captions: how much of what a sentence says is true of a scene, and how much of the scene it says.

A caption states the shapes of objects and, where it names them, their colours. A scene has the shape and colour of each object to state.
Stated and true objects are matched one to one so that most agrees. A named colour that is right counts; a wrong one leaves the shape. Then

- precision: the share of stated shapes and colours that are true. A false relation or negation adds one false statement; a true one earns
  nothing, because it would be cheap to add;
- recall: the share of the scene's shapes and colours that are stated;
- ``value``: F1 of both. ``strict``: every statement is true and every object described in full.
"""

from collections import Counter
from collections.abc import Sequence

from pararl.scenes.grammar import Description, Group
from pararl.scenes.selectors import Selector
from pararl.scenes.sentences import parse_caption
from pararl.scenes.world import CELL_NAMES, CELL_RELATIONS, COLOURS, EMPTY, SHAPES
from pararl.types import Atom, Score


def check_caption(cells: Sequence[int], text: str) -> Score:
    """The score of a caption of a scene (16 cells), as above. A text that is no sentence of the grammar gets 0 and one failed atom."""
    description = parse_caption(text)
    if description is None:
        return Score(0.0, False, (Atom("the caption is a sentence of the grammar", "validity", False, f"cannot read {text!r}"),))
    there = [value for value in cells if value != EMPTY]
    atoms = [Atom("the caption is a sentence of the grammar", "validity", True)]
    for group in description.groups:
        selector = Selector(group.shape, group.colour)
        found = len(selector.places(cells))
        reason = "" if found >= group.count else f"expected {_label(selector)} >= {group.count}, found {found}"
        skill = "object" if group.count == 1 else "count"
        atoms.append(Atom(_amount(group), skill, found >= group.count, reason))
    claims = _claims(description, cells)
    true, stated, facts = agreement(description.groups, there)
    atoms.extend(claims)
    reason = "" if true == facts else f"{true} of {facts} shapes and colours described"
    atoms.append(Atom("every object is described with its colour", "recall", true == facts, reason))
    false = sum(not claim.passed for claim in claims)
    return Score(2 * true / (stated + false + facts), true == stated == facts and not false, tuple(atoms))


def agreement(groups: Sequence[Group], objects: Sequence[int]) -> tuple[int, int, int]:
    """How many shapes and colours are both stated by the groups and true of the objects (kinds), how many are stated, how many there are.

    The largest number over all one-to-one matchings. Of each shape that is as many pairs as both sides have. Of these, as many have the
    right colour named as both sides have of that colour.
    """
    true = stated = 0
    for s, shape in enumerate(SHAPES):
        said = [group for group in groups if group.shape == shape]
        there = Counter(value % len(COLOURS) for value in objects if value // len(COLOURS) == s)
        named: Counter[int] = Counter()
        for group in said:
            if group.colour is not None:
                named[COLOURS.index(group.colour)] += group.count
        slots = sum(group.count for group in said)
        true += min(slots, there.total()) + (named & there).total()
        stated += slots + named.total()
    return true, stated, 2 * len(objects)


def _claims(description: Description, cells: Sequence[int]) -> list[Atom]:
    """The atoms of relation and negation."""
    atoms = []
    if description.relation:
        subject, target = (Selector(group.shape, group.colour) for group in description.groups[:2])
        subjects, targets = subject.places(cells), target.places(cells)
        holds = CELL_RELATIONS[description.relation]
        wrong = [(a, b) for a in subjects for b in targets if not holds[a][b]]
        passed = bool(subjects and targets and not wrong)
        statement = f"{_label(subject)} {description.relation} {_label(target)}"
        where = f"{CELL_NAMES[wrong[0][0]]} and {CELL_NAMES[wrong[0][1]]}" if wrong else "no such objects"
        atoms.append(Atom(statement, "position", passed, "" if passed else f"expected {statement}, found {where}"))
    if description.negation:
        selector = Selector(*description.negation)
        found = len(selector.places(cells))
        reason = f"expected {_label(selector)} < 1, found {found}" if found else ""
        atoms.append(Atom(f"no {_label(selector)}", "negation", not found, reason))
    return atoms


def _label(selector: Selector) -> str:
    return selector.the().removeprefix("the ")


def _amount(group: Group) -> str:
    return Selector(group.shape, group.colour).several(group.count)
