"""References to objects: ``the red circle``, ``the circle``, ``the red object``, ``the object in b2``, ``red circles``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pararl.scenes.words import NUMBERS, PLURALS, article
from pararl.scenes.world import CELL_NAMES, COLOURS, EMPTY, SHAPES

CELL_INDEX: dict[str, int] = {name: place for place, name in enumerate(CELL_NAMES)}


@dataclass(frozen=True, slots=True)
class Selector:
    """The objects of a shape, of a colour, of both, or the one in a cell; None leaves that open."""

    shape: str | None = None
    colour: str | None = None
    cell: str | None = None
    """Stands alone: the object in that cell, whatever it is."""

    def admits(self, kind: int) -> bool:
        """Whether an object of that kind (0 .. 23) has the shape and colour."""
        shape, colour = divmod(kind, len(COLOURS))
        return (self.shape is None or SHAPES[shape] == self.shape) and (self.colour is None or COLOURS[colour] == self.colour)

    def places(self, cells: Sequence[int]) -> list[int]:
        """The cells (16 values, -1 empty) that hold such an object, in raster order."""
        if self.cell is not None:
            place = CELL_INDEX[self.cell]
            return [place] if cells[place] != EMPTY else []
        return [place for place, value in enumerate(cells) if value != EMPTY and self.admits(value)]

    @property
    def pair(self) -> tuple[str, str] | None:
        """Shape and colour where both are named."""
        return (self.shape, self.colour) if self.shape and self.colour else None

    def the(self) -> str:
        """The definite phrase: ``the red circle``."""
        return f"the {self._noun()}"

    def one(self) -> str:
        """The indefinite phrase: ``a red circle``."""
        noun = self._noun()
        return f"{article(noun)} {noun}"

    def all(self) -> str:
        """The plural: ``red circles``."""
        return f"{f'{self.colour} ' if self.colour else ''}{PLURALS[self.shape] if self.shape else 'objects'}"

    def several(self, count: int) -> str:
        """A number of them: ``no circles``, ``one circle``, ``two circles``."""
        return f"{NUMBERS[count]} {self._noun() if count == 1 else self.all()}"

    def _noun(self) -> str:
        if self.cell is not None:
            return f"object in {self.cell}"
        return f"{f'{self.colour} ' if self.colour else ''}{self.shape or 'object'}"

    def record(self) -> dict[str, str]:
        """The JSON form, with GenEval's keys: ``class``, ``color``, and ``cell``."""
        named = {"class": self.shape, "color": self.colour, "cell": self.cell}
        return {key: value for key, value in named.items() if value is not None}


def overlap(a: Selector, b: Selector) -> bool:
    """Whether one object could be meant by both; for selectors without a cell."""
    return (a.shape is None or b.shape is None or a.shape == b.shape) and (a.colour is None or b.colour is None or a.colour == b.colour)


def read_selector(record: Any, where: str) -> Selector:
    """The selector in a JSON record. Raises ValueError that starts with ``where`` for anything that ``Selector.record`` does not write."""
    if not isinstance(record, Mapping) or not record or not record.keys() <= {"class", "color", "cell"}:
        raise ValueError(f"{where}: an object needs 'class', 'color' or both, or 'cell' alone, got {record!r}")
    shape, colour, cell = record.get("class"), record.get("color"), record.get("cell")
    for key, value, known in (("class", shape, SHAPES), ("color", colour, COLOURS), ("cell", cell, CELL_NAMES)):
        if key in record and (not isinstance(value, str) or value not in known):
            raise ValueError(f"{where}: unknown {key} {value!r}; this world has {', '.join(known)}")
    if cell is not None and len(record) > 1:
        raise ValueError(f"{where}: 'cell' stands alone, got {dict(record)!r}")
    return Selector(shape, colour, cell)
