"""What edits mean in a given scene: the cells they change, and the choices they leave free.

An instruction speaks of the scene as it is given: references and empty cells are those of the source. Two edits in one instruction must be
independent, so that their order does not matter. Neither touches what the other refers to, makes something that the other could mean, or
empties a cell that the other could fill. ``read_changes`` refuses others. An admissible result is then the source with all fixed changes
made and each choice taken, in any way that uses every cell once.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pararl.scenes.edits import Edit, read_edit
from pararl.scenes.place import draw
from pararl.scenes.selectors import CELL_INDEX, Selector, overlap
from pararl.scenes.world import CELL_RELATIONS, CELLS, COLOURS, EMPTY, KINDS, SHAPES, Scene, kind

MAX_EDITS = 2


@dataclass(frozen=True, slots=True)
class Fill:
    """``count`` empty cells out of ``cells`` each get an object of any of the kinds."""

    kinds: tuple[int, ...]
    cells: tuple[int, ...]
    count: int
    reach: frozenset[int]
    """The cells that would do if they were empty; ``cells`` are those that are."""


@dataclass(frozen=True, slots=True)
class Clear:
    """``count`` objects out of those in ``cells`` go."""

    cells: tuple[int, ...]
    count: int


@dataclass(frozen=True, slots=True)
class Change:
    """What one edit changes in a scene."""

    edit: Edit
    fixed: Mapping[int, int] = field(default_factory=dict)
    """New content of cells that hold something in the source."""
    fill: Fill | None = None
    clear: Clear | None = None
    refers: frozenset[int] = frozenset()
    """Cells of all objects that the edit refers to, counts or chooses from."""

    @property
    def touches(self) -> frozenset[int]:
        """Cells of objects that the edit alters or may remove."""
        return frozenset(self.fixed) | frozenset(self.clear.cells if self.clear else ())

    @property
    def empties(self) -> frozenset[int]:
        """Cells of objects that may be gone afterwards."""
        return frozenset(place for place, value in self.fixed.items() if value == EMPTY) | frozenset(self.clear.cells if self.clear else ())

    @property
    def makes(self) -> tuple[int, ...]:
        """Kinds of the objects that are new, altered or moved; all possible ones where the colour is free."""
        return tuple(value for value in self.fixed.values() if value != EMPTY) + (self.fill.kinds if self.fill else ())

    @property
    def gain(self) -> int:
        """How many more objects there are afterwards."""
        filled, cleared = self.fill.count if self.fill else 0, self.clear.count if self.clear else 0
        return filled - cleared - sum(value == EMPTY for value in self.fixed.values())


def change(edit: Edit, cells: Sequence[int]) -> Change:
    """What the edit changes in a scene (16 cells, -1 empty).

    Raises ValueError when a reference does not name exactly one object, the edit changes nothing, or there is no cell for it.
    """
    subject = edit.subject
    match edit.operation:
        case "add":
            return _placed(edit, cells, _kinds(subject), None)
        case "count":
            return _counted(edit, cells)
        case "remove" if edit.any_one:
            places = subject.places(cells)
            if not places:
                raise ValueError(f"there is no {subject.the()[4:]} to remove")
            return Change(edit, clear=Clear(tuple(places), 1), refers=frozenset(places))
    place = _only(subject, cells)
    shape, colour = divmod(cells[place], len(COLOURS))
    match edit.operation:
        case "remove":
            return Change(edit, {place: EMPTY}, refers=frozenset({place}))
        case "move":
            return _placed(edit, cells, (cells[place],), place)
        case "swap":
            other = _only(edit.other or subject, cells)
            fixed = {place: cells[other], other: cells[place]}
        case "recolour":
            fixed = {place: kind(shape, COLOURS.index(edit.colour or ""))}
        case _:
            fixed = {place: kind(SHAPES.index(edit.shape or ""), colour)}
    if fixed[place] == cells[place]:
        raise ValueError(f"{edit.operation} of {subject.the()} changes nothing")
    return Change(edit, fixed, refers=frozenset(fixed))


def _only(selector: Selector, cells: Sequence[int]) -> int:
    places = selector.places(cells)
    if len(places) != 1:
        raise ValueError(f"'{selector.the()}' names {len(places)} objects of the source: it must name one")
    return places[0]


def _kinds(selector: Selector) -> tuple[int, ...]:
    return tuple(value for value in range(KINDS) if selector.admits(value))


def _placed(edit: Edit, cells: Sequence[int], kinds: tuple[int, ...], mover: int | None) -> Change:
    """An object that is added or, when it comes from the cell ``mover``, moved."""
    refers = set() if mover is None else {mover}
    reach = range(CELLS) if edit.cell is None else range(CELL_INDEX[edit.cell], CELL_INDEX[edit.cell] + 1)
    if edit.relation is not None and edit.other is not None:
        target = _only(edit.other, cells)
        holds = CELL_RELATIONS[edit.relation]
        if mover is not None and (target == mover or holds[mover][target]):
            raise ValueError(f"{edit.subject.the()} is {edit.relation} {edit.other.the()} already, or is the same object")
        refers.add(target)
        places = frozenset(place for place in reach if holds[place][target])
    else:
        places = frozenset(reach)
    empty = tuple(place for place in reach if place in places and cells[place] == EMPTY)
    if not empty:
        raise ValueError(f"there is no empty cell to {edit.operation} it to")
    return Change(edit, {} if mover is None else {mover: EMPTY}, Fill(kinds, empty, 1, places), refers=frozenset(refers))


def _counted(edit: Edit, cells: Sequence[int]) -> Change:
    places = edit.subject.places(cells)
    refers = set(places)
    wanted = edit.count or 0
    if edit.other is not None:
        if overlap(edit.subject, edit.other):
            raise ValueError(f"{edit.subject.all()} and {edit.other.all()} are not different objects")
        others = edit.other.places(cells)
        refers.update(others)
        wanted = len(others)
    if wanted == len(places):
        raise ValueError(f"there are {wanted} {edit.subject.all()} already")
    if wanted < len(places):
        return Change(edit, clear=Clear(tuple(places), len(places) - wanted), refers=frozenset(refers))
    empty = tuple(place for place, value in enumerate(cells) if value == EMPTY)
    fill = Fill(_kinds(edit.subject), empty, wanted - len(places), frozenset(range(CELLS)))
    if fill.count > len(empty):
        raise ValueError(f"there are {len(empty)} empty cells for {fill.count} more {edit.subject.all()}")
    return Change(edit, fill=fill, refers=frozenset(refers))


def independent(a: Change, b: Change) -> bool:
    """Whether two edits of one scene neither depend on each other's result nor get in each other's way."""
    if _disturbs(a, b) or _disturbs(b, a):
        return False
    if a.fill and b.fill:
        return len({*a.fill.cells, *b.fill.cells}) >= a.fill.count + b.fill.count
    return True


def _disturbs(a: Change, b: Change) -> bool:
    """Whether ``a`` alters what ``b`` refers to, makes something it could mean, or empties a cell that it could fill."""
    references = [s for s in (None if b.edit.operation == "add" else b.edit.subject, b.edit.other) if s is not None and s.cell is None]
    return (
        not a.touches.isdisjoint(b.refers)
        or any(selector.admits(value) for selector in references for value in a.makes)
        or (b.fill is not None and not a.empties.isdisjoint(b.fill.reach))
    )


def changes(edits: Sequence[Edit], cells: Sequence[int]) -> tuple[Change, ...]:
    """What one or two edits change in a scene.

    Raises ValueError that names the entry of an edit that does not apply, and for edits that depend on each other or leave no object.
    """
    made = []
    for i, edit in enumerate(edits):
        try:
            made.append(change(edit, cells))
        except ValueError as error:
            raise ValueError(f"spec edit[{i}]: {error}") from None
    # Each is read in the scene as given, so edits that depend on each other have no one result.
    if len(made) == MAX_EDITS and not independent(*made):
        raise ValueError("spec edit[1] depends on edit[0], or their cells do not suffice: edits of one instruction must be independent")
    if sum(value != EMPTY for value in cells) + sum(one.gain for one in made) < 1:
        raise ValueError(f"spec edit[{len(made) - 1}]: no object would be left")
    return tuple(made)


def read_source(spec: Mapping[str, Any]) -> list[int]:
    """The 16 cells of a spec's source scene. Raises ValueError when they are not whole numbers -1 .. 23."""
    cells = spec.get("source")
    if not isinstance(cells, list | tuple) or len(cells) != CELLS:
        raise ValueError(f"spec source: a list of {CELLS} cells is needed, got {cells!r}")
    for place, value in enumerate(cells):
        if isinstance(value, bool) or not isinstance(value, int) or not EMPTY <= value < KINDS:
            raise ValueError(f"spec source[{place}]: a cell must be a whole number {EMPTY} .. {KINDS - 1}, got {value!r}")
    return list(cells)


def read_changes(spec: Mapping[str, Any]) -> tuple[list[int], tuple[Change, ...]]:
    """The source cells of an edit spec, and what its edits change. Raises ValueError that names the entry that cannot be."""
    cells = read_source(spec)
    records = spec.get("edit")
    if not isinstance(records, list | tuple) or not 1 <= len(records) <= MAX_EDITS:
        raise ValueError(f"spec edit: a list of one or two edits is needed, got {records!r}")
    return cells, changes([read_edit(record, f"spec edit[{i}]") for i, record in enumerate(records)], cells)


def write_edits(edits: Sequence[Edit], source: Scene, tag: str) -> dict[str, Any]:
    """The spec of an instruction: ``tag``, ``edit``, and the 16 cells of ``source``."""
    return {"tag": tag, "edit": [edit.record() for edit in edits], "source": source.cells.ravel().tolist()}


def apply(edits: Sequence[Edit], scene: Scene, rng: random.Random, avoid: frozenset[tuple[str, str]] = frozenset()) -> Scene:
    """A random admissible result. ``avoid``: (shape, colour) pairs that no free colour may make. Raises ValueError as ``changes`` does."""
    cells: list[int] = scene.cells.ravel().tolist()
    made = changes(edits, cells)
    # The narrower choice first; a choice of several cells has all empty ones, so that what is left always suffices.
    fills = sorted((one.fill for one in made if one.fill), key=lambda fill: len(fill.cells))
    for one in made:
        for place, value in one.fixed.items():
            cells[place] = value
        if one.clear:
            for place in draw(list(one.clear.cells), one.clear.count, rng):
                cells[place] = EMPTY
    for fill in fills:
        free = [place for place in fill.cells if cells[place] == EMPTY]
        for place in draw(free, fill.count, rng):
            kinds = [value for value in fill.kinds if len(fill.kinds) == 1 or _pair(value) not in avoid]
            cells[place] = kinds[int(rng.random() * len(kinds))]
    return Scene.from_cells(cells)


def _pair(value: int) -> tuple[str, str]:
    return SHAPES[value // len(COLOURS)], COLOURS[value % len(COLOURS)]
