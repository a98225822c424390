"""The exact verifier of edits: how near an output comes to an admissible result, fact by fact.

Against one admissible result, cell by cell:

- *credit* of a cell that had to change: 1 when it is right. 1/2 when it changed and one attribute that had to change, its shape or its
  colour, is right. 0 otherwise, an unchanged cell in particular.
- *agreement*: F1 between the objects of the result and those of the output, place by place. Shape or colour alone counts half. An
  unreadable cell is an object that fits nothing.
- ``success``: the mean credit of the cells that had to change, at most the agreement, so that neither emptying nor flooding the grid pays.
- ``consistency``: the share of the other cells that are as they were.
- ``value`` = success x (0.6 + 0.4 consistency) (the gate of rewards.md, section 5.4); 1.0 exactly when the output is the result.

Where an edit leaves a choice, the admissible result of the highest value counts. It is found exactly. What a choice adds to credit,
agreement and consistency depends on single cells, whose possible contributions are totally ordered: the best cells are taken. Two choices
over the same cells are tried in every way among the best few of each, which always include an optimum.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pararl.scenes.changes import Change, Clear, Fill
from pararl.scenes.instructions import statement
from pararl.scenes.world import CELL_NAMES, CELLS, COLOURS, EMPTY, GRID, SHAPES
from pararl.types import Atom

UNREADABLE = EMPTY - 1
"""Content of a cell of an output that shows nothing known."""
_NAMES: tuple[str, ...] = (*(f"{colour} {shape}" for shape in SHAPES for colour in COLOURS), "nothing readable", "nothing")
"""What a cell holds, in words; -1 and -2 index the end."""
FLOOR = 0.6
"""Share of the success that inconsistency cannot take."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """An output against its best admissible result."""

    success: float
    consistency: float
    exact: bool
    """Whether the output is the result, cell by cell."""
    result: tuple[int, ...]
    chosen: tuple[tuple[int, ...], ...]
    """Per change the cells that it changes in the result."""

    @property
    def value(self) -> float:
        """Success, gated by consistency."""
        return self.success * (FLOOR + (1 - FLOOR) * self.consistency)


def judge(source: Sequence[int], made: Sequence[Change], seen: Sequence[int]) -> Outcome:
    """The output ``seen`` (16 cells) against the admissible result of the highest value; ties go to the one with more right."""
    outcomes = [_against(source, result, chosen, seen) for result, chosen in _candidates(source, made, seen)]
    return max(outcomes, key=lambda found: (found[0].value, found[1]))[0] if len(outcomes) > 1 else outcomes[0][0]


def _candidates(source: Sequence[int], made: Sequence[Change], seen: Sequence[int]) -> list[tuple[list[int], tuple[tuple[int, ...], ...]]]:
    """Admissible results among which one has the highest value, each with the cells that every change takes."""
    result = list(source)
    chosen: list[tuple[int, ...]] = []
    fills: list[tuple[int, Fill]] = []
    for i, one in enumerate(made):
        places = tuple(one.fixed)
        for place, value in one.fixed.items():
            result[place] = value
        if one.clear:
            cleared = _best_to_clear(one.clear, source, seen)
            for place in cleared:
                result[place] = EMPTY
            places += cleared
        if one.fill:
            fills.append((i, one.fill))
        chosen.append(places)
    candidates = []
    for cells in _fillings([fill for _, fill in fills], seen):
        filled, taken = list(result), list(chosen)
        for (i, fill), places in zip(fills, cells, strict=True):
            for place in places:
                filled[place] = _best_kind(fill, seen[place])
            taken[i] += places
        candidates.append((filled, tuple(taken)))
    return candidates


def _fillings(fills: list[Fill], seen: Sequence[int]) -> list[tuple[tuple[int, ...], ...]]:
    """Ways to choose the cells of no, one or two fills, an optimal one among them."""
    ranked = [sorted(fill.cells, key=lambda place, fill=fill: _fill_rank(fill, seen[place])) for fill in fills]  # type: ignore[misc]
    if len(fills) < 2:
        return [tuple(tuple(places[: fill.count]) for fill, places in zip(fills, ranked, strict=True))]
    first, second = fills
    ways: list[tuple[tuple[int, ...], ...]] = []
    # The other choice takes at most its own number of cells, so one of this choice's best (first + second) cells is always free.
    for places in itertools.combinations(ranked[0][: first.count + second.count], first.count):
        rest = [place for place in ranked[1] if place not in places][: second.count]
        if len(rest) == second.count:
            ways.append((places, tuple(rest)))
    return ways


def _fill_rank(fill: Fill, value: int) -> int:
    """What choosing a cell with that output for a new object is worth, 0 the most: right, half right, already spoilt, still empty."""
    if value == EMPTY:
        return 3
    return int(2 - 2 * _likeness(_best_kind(fill, value), value))


def _best_kind(fill: Fill, value: int) -> int:
    """The kind among those allowed that is most like the output of the cell."""
    return value if value in fill.kinds else max(fill.kinds, key=lambda wanted: _likeness(wanted, value))


def _best_to_clear(clear: Clear, source: Sequence[int], seen: Sequence[int]) -> tuple[int, ...]:
    """The objects whose removal agrees best with the output: those that are gone, then the least like what is there."""

    def rank(place: int) -> float:
        return -1.0 if seen[place] == EMPTY else _likeness(source[place], seen[place])

    return tuple(sorted(clear.cells, key=rank)[: clear.count])


def _likeness(wanted: int, value: int) -> float:
    """1 for equal objects, 1/2 for equal shape or colour, else 0, also where either is no object."""
    if wanted < 0 or value < 0:
        return 0.0
    if wanted == value:
        return 1.0
    return 0.5 * (wanted // len(COLOURS) == value // len(COLOURS) or wanted % len(COLOURS) == value % len(COLOURS))


def _credit(before: int, wanted: int, value: int) -> float:
    """What a cell that had to change from ``before`` to ``wanted`` earns."""
    if value == wanted:
        return 1.0
    if value == before or value < 0 or wanted < 0:
        return 0.0
    if before < 0:
        return _likeness(wanted, value)
    right_shape = before // len(COLOURS) != wanted // len(COLOURS) == value // len(COLOURS)
    right_colour = before % len(COLOURS) != wanted % len(COLOURS) == value % len(COLOURS)
    return 0.5 * (right_shape or right_colour)


def _against(
    source: Sequence[int], result: Sequence[int], chosen: tuple[tuple[int, ...], ...], seen: Sequence[int]
) -> tuple[Outcome, float]:
    """The outcome for one admissible result, and how much is right in all, to decide between results of one value."""
    credit = alike = 0.0
    kept = changed = objects = 0
    for before, wanted, value in zip(source, result, seen, strict=True):
        objects += (wanted != EMPTY) + (value != EMPTY)
        if wanted != EMPTY:
            alike += _likeness(wanted, value)
        if before != wanted:
            changed += 1
            credit += _credit(before, wanted, value)
        else:
            kept += value == before
    # Neither divisor is 0: an edit changes a cell and leaves an object (``changes``).
    agreement = 2 * alike / objects
    untouched = CELLS - changed
    consistency = kept / untouched if untouched else 1.0
    outcome = Outcome(min(credit / changed, agreement), consistency, list(seen) == list(result), tuple(result), chosen)
    return outcome, credit + kept


def edit_atoms(outcome: Outcome, source: Sequence[int], made: Sequence[Change], seen: Sequence[int]) -> list[Atom]:
    """One atom per edit (skill ``edit``; soft: the success of all edits together where it failed), then ``consistency``."""
    atoms = []
    for one, places in zip(made, outcome.chosen, strict=True):
        wrong = [place for place in places if seen[place] != outcome.result[place]]
        reason = "; ".join(_reason(one, place, outcome, seen) for place in wrong)
        atoms.append(Atom(statement(one.edit), "edit", not wrong, reason, outcome.success if wrong else 1.0))
    touched = {place for places in outcome.chosen for place in places}
    spoilt = [place for place in range(CELLS) if place not in touched and seen[place] != source[place]]
    reason = "; ".join(f"{CELL_NAMES[place]} was {_NAMES[source[place]]}, is {_NAMES[seen[place]]}" for place in spoilt)
    return [*atoms, Atom("the rest is as it was", "consistency", not spoilt, reason, outcome.consistency)]


def _reason(one: Change, place: int, outcome: Outcome, seen: Sequence[int]) -> str:
    wanted, value = outcome.result[place], seen[place]
    if one.fill and place in one.fill.cells and (len(one.fill.cells) > one.fill.count or len(one.fill.kinds) > 1):
        kind = _NAMES[wanted] if len(one.fill.kinds) == 1 else SHAPES[wanted // len(COLOURS)]
        return f"expected one {kind} more where nothing was, found {_NAMES[value]}" + (f" in {CELL_NAMES[place]}" if value != EMPTY else "")
    if one.clear:
        return f"expected one object less, found {_NAMES[value]} in {CELL_NAMES[place]}"
    return f"expected {_NAMES[wanted]} in {CELL_NAMES[place]}, found {_NAMES[value]}"


def edit_credit(outcome: Outcome, source: Sequence[int], made: Sequence[Change], seen: Sequence[int]) -> np.ndarray:
    """float32 [4, 4]: +1 a cell that had to change and is right, -1 a wrong cell, 0 the others.

    A cell that a free choice would take but the output left as it was is not blamed: any other would have done.
    """
    credit = [0.0] * CELLS
    for place, (before, wanted, value) in enumerate(zip(source, outcome.result, seen, strict=True)):
        if value != wanted:
            credit[place] = -1
        elif before != wanted:
            credit[place] = 1
    for one, places in zip(made, outcome.chosen, strict=True):
        choice = one.fill or one.clear
        if choice is not None and len(choice.cells) > choice.count:
            for place in places:
                if place in choice.cells and seen[place] == source[place]:
                    credit[place] = 0
    return np.array(credit, np.float32).reshape(GRID, GRID)
