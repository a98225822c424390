"""Random edits of random scenes.

A reference is drawn among those that name one object alone: shape and colour, shape, colour, or cell. New objects go to any empty cell
(2/5), to a named one (3/10) or to where they stand in a relation to an object (3/10). Moved ones go to a named cell or into a relation. In
a quarter of the prompts the colour of a new object is free, and so is which object goes. A count is a number or, half of the time, the
number of other objects.
"""

import random
from dataclasses import dataclass, replace

from pararl.scenes.changes import change, independent
from pararl.scenes.describe import ALL_PAIRS, MAX_OBJECTS
from pararl.scenes.edits import OPERATIONS, Edit
from pararl.scenes.grammar import pick
from pararl.scenes.place import draw
from pararl.scenes.selectors import Selector, overlap
from pararl.scenes.splits import HELD_PAIRS
from pararl.scenes.world import CELL_NAMES, CELL_RELATIONS, CELLS, COLOURS, EMPTY, SHAPES, kind

Pair = tuple[str, str]
_PAIRS = tuple(pair for pair in ALL_PAIRS if pair not in HELD_PAIRS)


@dataclass(frozen=True, slots=True)
class EditRules:
    """What random edits may use."""

    pairs: tuple[Pair, ...] = _PAIRS
    """(shape, colour) of the objects that are there or made; a pair listed more often is drawn more often."""
    operations: tuple[str, ...] = OPERATIONS
    relations: tuple[str, ...] = ("left of", "right of", "above")
    places: tuple[str, ...] = ("free",) * 4 + ("cell",) * 3 + ("relation",) * 3
    counts: tuple[int, ...] = (0, 1, 2, 3, 4)
    most_before: int = MAX_OBJECTS
    """Objects of the source at most."""
    most_after: int = MAX_OBJECTS


Drawn = tuple[Edit, list[int]]
"""An edit and the 16 cells of its source."""


def draw_edit(rng: random.Random, operation: str, rules: EditRules) -> Drawn | None:
    """One try at an edit of that operation and a scene that it applies to; None when the scene drawn allows none."""
    if operation == "count":
        drawn = _count(rng, rules)
    else:
        # The only object can neither be swapped nor go: an edit leaves at least one.
        least = 2 if operation in ("swap", "remove") else 1
        most = min(rules.most_before, rules.most_after - (operation == "add"))
        cells = _scene(rng, rules, least + int(rng.random() * (most - least + 1)))
        edit = edit_of(rng, operation, cells, rules)
        drawn = None if edit is None else (edit, cells)
    return drawn


def _scene(rng: random.Random, rules: EditRules, count: int) -> list[int]:
    return _place([_kind(*pick(rng, rules.pairs)) for _ in range(count)], rng)


def _place(kinds: list[int], rng: random.Random) -> list[int]:
    """The objects in random cells."""
    cells = [EMPTY] * CELLS
    for value, place in zip(kinds, draw(list(range(CELLS)), len(kinds), rng), strict=True):
        cells[place] = value
    return cells


def _kind(shape: str, colour: str) -> int:
    return kind(SHAPES.index(shape), COLOURS.index(colour))


def edit_of(rng: random.Random, operation: str, cells: list[int], rules: EditRules) -> Edit | None:
    """One try at an edit (any operation but count) of a given scene."""
    full = [place for place, value in enumerate(cells) if value != EMPTY]
    if operation == "add":
        shape, colour = pick(rng, rules.pairs)
        subject = Selector(shape, None if rng.random() < 0.25 else colour)
        return _located(rng, Edit("add", subject), cells, rules, full, pick(rng, rules.places))
    place = pick(rng, full)
    subject = refer(rng, cells, place)
    shape, colour = SHAPES[cells[place] // len(COLOURS)], COLOURS[cells[place] % len(COLOURS)]
    if operation == "remove":
        if rng.random() < 0.25:
            subject = Selector(shape, colour if rng.random() < 0.5 else None)
            return Edit("remove", subject, any_one=True) if len(subject.places(cells)) > 1 else None
        return Edit("remove", subject)
    if operation == "recolour":
        colours = [c for s, c in rules.pairs if s == shape and c != colour]
        return Edit("recolour", subject, colour=pick(rng, colours))
    if operation == "reshape":
        shapes = [s for s, c in rules.pairs if c == colour and s != shape]
        return Edit("reshape", subject, shape=pick(rng, shapes))
    others = [other for other in full if cells[other] != cells[place]]
    if operation == "swap":
        return Edit("swap", subject, refer(rng, cells, pick(rng, others))) if others else None
    where = pick(rng, [option for option in rules.places if option != "free"])
    others = [other for other in full if other != place]
    return _located(rng, Edit("move", subject), cells, rules, others, where, place)


def _located(
    rng: random.Random, edit: Edit, cells: list[int], rules: EditRules, anchors: list[int], where: str, mover: int | None = None
) -> Edit | None:
    """The edit with its place: free, a named cell, or a relation to one of the ``anchors``."""
    if where == "free":
        return edit
    if where == "cell":
        return replace(edit, cell=CELL_NAMES[pick(rng, [place for place, value in enumerate(cells) if value == EMPTY])])
    if not anchors:
        return None
    relation, anchor = pick(rng, rules.relations), pick(rng, anchors)
    holds = CELL_RELATIONS[relation]
    fits = any(value == EMPTY and holds[place][anchor] for place, value in enumerate(cells))
    if not fits or (mover is not None and holds[mover][anchor]):
        return None
    return replace(edit, relation=relation, other=refer(rng, cells, anchor))


def refer(rng: random.Random, cells: list[int], place: int) -> Selector:
    """A reference to the object in a cell that names it alone."""
    shape, colour = SHAPES[cells[place] // len(COLOURS)], COLOURS[cells[place] % len(COLOURS)]
    # A cell alone names every object, so that there is always an option; the weights keep it rare.
    options = (*(Selector(shape, colour),) * 4, *(Selector(shape),) * 2, Selector(None, colour), Selector(cell=CELL_NAMES[place]))
    return pick(rng, [option for option in options if option.places(cells) == [place]])


def _count(rng: random.Random, rules: EditRules) -> Drawn | None:
    """One try at a change of a number: objects of the kind counted, those it is compared with, and a few others."""
    subject = _things(rng, rules)
    # A count that is reasoned takes as many other objects, for which counts of five and six leave no room.
    wanted, reasoned = pick(rng, rules.counts), rng.random() < 0.5 and max(rules.counts) < MAX_OBJECTS - 1
    there = pick(rng, [number for number in range(5) if number != wanted])
    other = _things(rng, rules) if reasoned else None
    compared = wanted if reasoned else 0
    room = min(rules.most_before - there, rules.most_after - wanted) - compared
    if room < 0 or (other is not None and overlap(subject, other)):
        return None
    more = int(rng.random() * (min(room, 3) + 1))
    if not 0 < there + compared + more or not 0 < wanted + compared + more:
        return None
    kinds = [_kind(*pick(rng, _fitting(rules, subject))) for _ in range(there)]
    if other is not None:
        kinds += [_kind(*pick(rng, _fitting(rules, other))) for _ in range(compared)]
    for _ in range(more):
        value = _kind(*pick(rng, rules.pairs))
        if subject.admits(value) or (other is not None and other.admits(value)):
            return None
        kinds.append(value)
    return Edit("count", subject, other, count=None if reasoned else wanted), _place(kinds, rng)


def _things(rng: random.Random, rules: EditRules) -> Selector:
    shape, colour = pick(rng, rules.pairs)
    return Selector(shape, colour if rng.random() < 0.4 else None)


def _fitting(rules: EditRules, selector: Selector) -> list[Pair]:
    return [(shape, colour) for shape, colour in rules.pairs if selector.admits(_kind(shape, colour))]


def draw_two(rng: random.Random, rules: EditRules) -> tuple[list[Edit], list[int]] | None:
    """One try at two independent edits of different operations, and a scene that both apply to."""
    first = pick(rng, rules.operations)
    drawn = draw_edit(rng, first, rules)
    if drawn is None:
        return None
    edit, cells = drawn
    # A count draws a scene of its own, so that it can only come first.
    second = edit_of(rng, pick(rng, [name for name in rules.operations if name not in (first, "count")]), cells, rules)
    if second is None:
        return None
    pair = [edit, second] if rng.random() < 0.5 else [second, edit]
    made = [change(one, cells) for one in pair]
    after = sum(value != EMPTY for value in cells) + sum(one.gain for one in made)
    return (pair, cells) if 0 < after <= rules.most_after and independent(*made) else None
