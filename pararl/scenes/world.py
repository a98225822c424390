"""The world: a 4 x 4 grid whose cells are empty or hold one coloured shape, and the relations between cells."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

GRID = 4
"""Cells along each side."""
CELLS = GRID * GRID
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "cross")
COLOURS: tuple[str, ...] = ("red", "green", "blue", "yellow", "purple", "orange")
KINDS = len(SHAPES) * len(COLOURS)
"""Different objects; the kind of an object is ``shape * 6 + colour``."""
EMPTY = -1
CELL_NAMES: tuple[str, ...] = tuple(f"{row}{column}" for row in "abcd" for column in "1234")
"""Names of the cells in raster order, as plans write them: a1 is top left, d4 bottom right."""
RELATIONS: tuple[str, ...] = ("left of", "right of", "above", "below")
DOMINANCE = 0.5
"""A relation holds when its component of the unit offset between two centres exceeds this (GenEval's rule)."""


class SceneObject(NamedTuple):
    """One object of a scene: indices into SHAPES and COLOURS, and its cell."""

    shape: int
    colour: int
    row: int
    column: int


def kind(shape: int, colour: int) -> int:
    """The kind 0 .. 23 of an object, from indices into SHAPES and COLOURS."""
    return shape * len(COLOURS) + colour


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """What lies in each cell. Equal scenes compare and hash equal; the array is read-only.

    Raises ValueError when ``cells`` is not an integer array [4, 4] of values -1 .. 23.
    """

    cells: np.ndarray
    """int8 [4, 4]: -1 for an empty cell, else shape * 6 + colour."""

    def __post_init__(self) -> None:
        """Check the array and keep a read-only copy of it."""
        cells = np.asarray(self.cells)
        if cells.shape != (GRID, GRID) or cells.dtype.kind not in "iu":
            raise ValueError(f"a scene needs integer cells [{GRID}, {GRID}], got {cells.dtype} {list(cells.shape)}")
        if any(not EMPTY <= value < KINDS for value in cells.ravel().tolist()):
            raise ValueError(f"scene cells must lie in {EMPTY} .. {KINDS - 1}, got {cells.tolist()}")
        cells = cells.astype(np.int8)
        cells.flags.writeable = False
        object.__setattr__(self, "cells", cells)

    @classmethod
    def empty(cls) -> "Scene":
        """The scene without objects."""
        return cls(np.full((GRID, GRID), EMPTY, np.int8))

    @classmethod
    def of(cls, objects: Iterable[tuple[int, int, int, int]]) -> "Scene":
        """The scene that holds these (shape, colour, row, column); raises ValueError for an index out of range or two in one cell."""
        cells = np.full((GRID, GRID), EMPTY, np.int8)
        for shape, colour, row, column in objects:
            if not (0 <= shape < len(SHAPES) and 0 <= colour < len(COLOURS) and 0 <= row < GRID and 0 <= column < GRID):
                raise ValueError(f"no such object or cell: shape {shape}, colour {colour}, row {row}, column {column}")
            if cells[row, column] != EMPTY:
                raise ValueError(f"two objects in cell {CELL_NAMES[row * GRID + column]}: a cell holds one object")
            cells[row, column] = kind(shape, colour)
        return cls(cells)

    @classmethod
    def from_cells(cls, cells: Iterable[int]) -> "Scene":
        """The scene with these 16 cells in raster order: -1 empty, else the kind. Raises ValueError for other values or another number."""
        values = np.array(list(cells))
        return cls(values.reshape(GRID, GRID) if len(values) == CELLS else values)

    def objects(self) -> list[SceneObject]:
        """The objects in raster order (row by row, left to right)."""
        return [
            SceneObject(value // len(COLOURS), value % len(COLOURS), place // GRID, place % GRID)
            for place, value in enumerate(self.cells.ravel().tolist())
            if value != EMPTY
        ]

    def __eq__(self, other: object) -> bool:
        """Whether both hold the same in every cell."""
        return isinstance(other, Scene) and self.cells.tobytes() == other.cells.tobytes()

    def __hash__(self) -> int:
        """Hash of the cells."""
        return hash(self.cells.tobytes())

    def __reduce__(self) -> tuple[type["Scene"], tuple[np.ndarray]]:
        """Pickle through the constructor, so that a copy is checked and read-only as well."""
        return Scene, (self.cells,)


def relation_holds(relation: str, subject: tuple[float, float], target: tuple[float, float], slack: float = 0.0) -> bool:
    """Whether ``subject`` lies ``relation`` ``target``: its component of the unit offset between the centres exceeds 0.5.

    Centres are (x, y) with y downwards. ``slack`` is taken off the size of both offset components first, for boxes: GenEval
    uses 0.1 x the sum of the two boxes' sides. Two relations may hold at once (a diagonal neighbour is left of and above).
    Raises ValueError for an unknown relation. Source: GenEval, arXiv 2310.11513, ``evaluate_images.py``.
    """
    if relation not in RELATIONS:
        raise ValueError(f"unknown relation {relation!r}: use one of {', '.join(RELATIONS)}")
    dx, dy = (np.sign(d) * max(abs(d) - slack, 0.0) for d in (subject[0] - target[0], subject[1] - target[1]))
    length = float(np.hypot(dx, dy))
    if length == 0:
        return False
    component = {"left of": -dx, "right of": dx, "above": -dy, "below": dy}[relation]
    return bool(component / length > DOMINANCE)


def _centre(cell: int) -> tuple[float, float]:
    return cell % GRID + 0.5, cell // GRID + 0.5


CELL_RELATIONS: dict[str, tuple[tuple[bool, ...], ...]] = {
    relation: tuple(
        tuple(relation_holds(relation, _centre(subject), _centre(target)) for target in range(CELLS)) for subject in range(CELLS)
    )
    for relation in RELATIONS
}
"""``CELL_RELATIONS[relation][subject][target]`` for cells in raster order: ``relation_holds`` on their centres."""
