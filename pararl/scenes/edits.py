"""Edits: what an instruction asks to change in a scene, and its JSON form.

=========== ==================================== ============================================================================
operation   instruction                          fields
=========== ==================================== ============================================================================
add         add a red circle left of the square  subject (what is new, its colour may be free); cell, or relation and other
remove      remove the red circle, ... a circle  subject; any_one: which of them is free
recolour    make the circle blue                 subject, colour
reshape     turn the circle into a square        subject, shape
move        move the circle to b2                subject; cell, or relation and other
swap        swap the circle and the square       subject, other
count       make the number of circles three     subject; count, or other: as many as there are of these
=========== ==================================== ============================================================================

``changes`` says what an edit means in a given scene, ``instructions`` how it is worded.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pararl.scenes.selectors import Selector, read_selector
from pararl.scenes.world import CELL_NAMES, COLOURS, RELATIONS, SHAPES

OPERATIONS: tuple[str, ...] = ("add", "remove", "recolour", "reshape", "move", "swap", "count")


@dataclass(frozen=True, slots=True)
class Edit:
    """One operation with its parameters; which of them it takes is in the table above."""

    operation: str
    subject: Selector
    other: Selector | None = None
    """The object that the relation refers to, the second one of a swap, or the objects whose number is the goal."""
    relation: str | None = None
    cell: str | None = None
    colour: str | None = None
    shape: str | None = None
    count: int | None = None
    any_one: bool = False

    def record(self) -> dict[str, Any]:
        """The JSON form, which ``read_edit`` reads back."""
        record: dict[str, Any] = {"operation": self.operation, "subject": self.subject.record()}
        if self.other is not None:
            record["other"] = self.other.record()
        values = {"relation": self.relation, "cell": self.cell, "color": self.colour, "class": self.shape, "count": self.count}
        record |= {key: value for key, value in values.items() if value is not None}
        return record | ({"any": True} if self.any_one else {})


_PARAMETERS: dict[str, tuple[frozenset[str], ...]] = {
    "add": (frozenset(), frozenset({"cell"}), frozenset({"relation", "other"})),
    "remove": (frozenset(), frozenset({"any"})),
    "recolour": (frozenset({"color"}),),
    "reshape": (frozenset({"class"}),),
    "move": (frozenset({"cell"}), frozenset({"relation", "other"})),
    "swap": (frozenset({"other"}),),
    "count": (frozenset({"count"}), frozenset({"other"})),
}
"""Per operation the sets of keys that its record may have beside ``operation`` and ``subject``."""
_CHOICES: dict[str, tuple[str, ...]] = {"relation": RELATIONS, "cell": CELL_NAMES, "color": COLOURS, "class": SHAPES}


def read_edit(record: Any, where: str) -> Edit:
    """The edit in a JSON record. Raises ValueError that starts with ``where`` and names what cannot be."""
    if not isinstance(record, Mapping) or record.get("operation") not in OPERATIONS:
        raise ValueError(f"{where}: an edit is a record with an 'operation' out of {', '.join(OPERATIONS)}, got {record!r}")
    operation = record["operation"]
    given = frozenset(record) - {"operation", "subject"}
    if given not in _PARAMETERS[operation]:
        options = " or ".join(", ".join(sorted(keys)) or "nothing" for keys in _PARAMETERS[operation])
        raise ValueError(f"{where}: {operation} takes beside its subject {options}, got {', '.join(sorted(given)) or 'nothing'}")
    for key, known in _CHOICES.items():
        if key in given and (not isinstance(record[key], str) or record[key] not in known):
            raise ValueError(f"{where}: unknown {key} {record[key]!r}; use one of {', '.join(known)}")
    count = record.get("count")
    # To Python, JSON's true is an int.
    if "count" in given and (isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= len(CELL_NAMES)):
        raise ValueError(f"{where}: count must be a whole number of 0 .. {len(CELL_NAMES)}, got {count!r}")
    if record.get("any", True) is not True:
        raise ValueError(f"{where}: any must be true where it is given, got {record['any']!r}")
    subject = read_selector(record.get("subject"), f"{where} subject")
    other = read_selector(record["other"], f"{where} other") if "other" in given else None
    kinds = (subject, other) if operation == "count" else (subject,) if operation == "add" or "any" in given else ()
    if any(kind is not None and kind.shape is None for kind in kinds):
        raise ValueError(f"{where}: {operation} needs the class of the objects that it adds, counts or chooses from")
    colour, shape = record.get("color"), record.get("class")
    return Edit(operation, subject, other, record.get("relation"), record.get("cell"), colour, shape, count, "any" in given)
