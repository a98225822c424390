"""The record of a prompt that a verifier reads: GenEval's ``include`` and ``exclude`` with our additions, written and checked here.

Additions:

- ``color``, also in ``exclude``;
- ``closed``: nothing else may be in the scene (GenEval's records have no such key and are open);
- ``atoms``: the same facts as questions with answers, skills, word places and dependencies, for rewards that ask a model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pararl.scenes.grammar import Description, Group, Wording
from pararl.scenes.words import NUMBERS, PLURALS, article, noun
from pararl.scenes.world import COLOURS, RELATIONS, SHAPES

KEYS = ("tag", "include", "exclude", "closed", "atoms", "edit", "source", "answer", "text")
"""The keys of the specs of all tasks."""
ENTRY_KEYS = ("class", "count", "color", "position")
"""Those of an entry of ``include``; one of ``exclude`` has no position."""


@dataclass(frozen=True, slots=True)
class Include:
    """At least ``count`` objects of a shape and colour, indices into SHAPES and COLOURS (None = any colour)."""

    shape: int
    colour: int | None
    count: int
    relation: str | None = None
    target: int = 0
    """Index of the earlier include that the relation refers to."""


@dataclass(frozen=True, slots=True)
class Exclude:
    """Fewer than ``count`` objects of a shape and colour (None = any colour)."""

    shape: int
    colour: int | None
    count: int


@dataclass(frozen=True, slots=True)
class Requirement:
    """A checked spec."""

    include: tuple[Include, ...]
    exclude: tuple[Exclude, ...]
    closed: bool


def write_spec(description: Description, wording: Wording) -> dict[str, Any]:
    """The record of a description: exact counts as include n and exclude n + 1; a relation's target stands before its subject."""
    order = _order(description)
    shapes = [group.shape for group in description.groups]
    include: list[dict[str, Any]] = []
    exclude: list[dict[str, Any]] = []
    for i in order:
        group = description.groups[i]
        entry: dict[str, Any] = {"class": group.shape, "count": group.count}
        bound: dict[str, Any] = {"class": group.shape, "count": group.count + 1}
        if group.colour:
            entry["color"] = group.colour
            # A bound on a shape alone would forbid the objects of the other group of that shape.
            if shapes.count(group.shape) > 1:
                bound["color"] = group.colour
        if description.relation and i == 0:
            entry["position"] = [description.relation, order.index(1)]
        include.append(entry)
        exclude.append(bound)
    if description.negation:
        shape, colour = description.negation
        exclude.append({"class": shape, "count": 1} | ({"color": colour} if colour else {}))
    return {
        "tag": description.tag,
        "include": include,
        "exclude": exclude,
        "closed": True,
        "atoms": _questions(description, wording),
    }


def _order(description: Description) -> list[int]:
    """The groups in the order of ``include``: the target of the relation, then its subject, then the others."""
    rest = list(range(len(description.groups)))
    return [1, 0, *rest[2:]] if description.relation else rest


def _questions(description: Description, wording: Wording) -> list[dict[str, Any]]:
    """The atoms of the record, in the order of the prompt. ``dep``: atoms that must hold for the question to make sense."""
    shapes = [group.shape for group in description.groups]
    atoms: list[dict[str, Any]] = []
    counted: list[int] = []

    def ask(question: str, answer: str, skill: str, words: list[int], dep: list[int]) -> int:
        atoms.append({"id": len(atoms), "q": question, "a": answer, "skill": skill, "words": words, "dep": dep})
        return len(atoms) - 1

    for group, places in zip(description.groups, wording.groups, strict=True):
        shared = group.colour if shapes.count(group.shape) > 1 else None
        things = f"{shared} {PLURALS[group.shape]}" if shared else PLURALS[group.shape]
        skill = "object" if group.count == 1 else "count"
        words = places["count"] + (places["colour"] if shared else []) + places["shape"]
        counted.append(ask(f"how many {things} are there ?", NUMBERS[group.count], skill, words, []))
        if group.colour:
            verb = "is" if group.count == 1 else "are"
            question = f"{verb} the {noun(group.shape, group.count)} {group.colour} ?"
            if shared:
                question = f"{verb} there {f'{article(shared)} ' if group.count == 1 else ''}{shared} {noun(group.shape, group.count)} ?"
            ask(question, "yes", "color", places["colour"] + places["shape"], [counted[-1]])
    if description.relation:
        subject, target = (_phrase(group) for group in description.groups[:2])
        verb = "is" if description.groups[0].count == 1 else "are"
        ask(f"{verb} the {subject} {description.relation} the {target} ?", "yes", "position", wording.relation, counted[:2])
    if description.negation:
        shape, colour = description.negation
        ask(f"are there any {f'{colour} ' if colour else ''}{PLURALS[shape]} ?", "no", "negation", wording.negation, [])
    ask("is there any other object ?", "no", "closed_world", [], [])
    return atoms


def _phrase(group: Group) -> str:
    return f"{f'{group.colour} ' if group.colour else ''}{noun(group.shape, group.count)}"


def read_spec(spec: Mapping[str, Any]) -> Requirement:
    """The requirement in a record.

    Raises ValueError that names the entry when a class, colour, relation, count or index is not one of this world's.
    """
    include, exclude = _asked(spec)
    closed = spec.get("closed", False)
    if not isinstance(closed, bool):
        raise ValueError(f"spec 'closed' must be true or false, got {closed!r}")
    return Requirement(
        tuple(Include(*_selector(entry, f"include[{i}]"), *_position(entry, i)) for i, entry in enumerate(include)),
        tuple(Exclude(*_selector(entry, f"exclude[{i}]")) for i, entry in enumerate(exclude)),
        closed,
    )


def check_keys(spec: Mapping[str, Any]) -> None:
    """Raise ValueError for a key that no scorer of this world reads: it may be misspelt."""
    if unknown := [key for key in spec if key not in KEYS]:
        raise ValueError(f"unknown key {unknown[0]!r} in the spec; this world reads {', '.join(KEYS)}")


def _asked(spec: Mapping[str, Any]) -> tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]]:
    include, exclude = _entries(spec, "include"), _entries(spec, "exclude")
    if not include and not exclude:
        raise ValueError("the spec asks for nothing: give at least one entry in 'include' or 'exclude'")
    return include, exclude


def _entries(spec: Mapping[str, Any], key: str) -> Sequence[Mapping[str, Any]]:
    entries = spec.get(key, [])
    if not isinstance(entries, list | tuple) or not all(isinstance(entry, Mapping) for entry in entries):
        raise ValueError(f"spec '{key}' must be a list of records, got {entries!r}")
    return entries


def _selector(entry: Mapping[str, Any], where: str) -> tuple[int, int | None, int]:
    known = ENTRY_KEYS if where.startswith("include") else ENTRY_KEYS[:-1]
    if unknown := [key for key in entry if key not in known]:
        raise ValueError(f"spec {where}: unknown key {unknown[0]!r}; an entry has {', '.join(known)}")
    shape, colour = entry.get("class"), entry.get("color")
    if not isinstance(shape, str) or shape not in _SHAPE_INDEX:
        raise ValueError(f"spec {where}: unknown class {shape!r}; this world has {', '.join(SHAPES)}")
    if colour is not None and (not isinstance(colour, str) or colour not in _COLOUR_INDEX):
        raise ValueError(f"spec {where}: unknown color {colour!r}; this world has {', '.join(COLOURS)}")
    return _SHAPE_INDEX[shape], None if colour is None else _COLOUR_INDEX[colour], _count(entry, where)


def _count(entry: Mapping[str, Any], where: str) -> int:
    count = entry.get("count", 1)
    # To Python, JSON's true is an int.
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"spec {where}: count must be a whole number of at least 1, got {count!r}")
    return count


def _position(entry: Mapping[str, Any], place: int) -> tuple[str | None, int]:
    position = entry.get("position")
    if position is None:
        return None, 0
    if not isinstance(position, list | tuple) or len(position) != 2 or position[0] not in RELATIONS:
        raise ValueError(f"spec include[{place}]: position must be [relation, index] with {', '.join(RELATIONS)}, got {position!r}")
    target = position[1]
    if isinstance(target, bool) or not isinstance(target, int) or not 0 <= target < place:
        raise ValueError(f"spec include[{place}]: position must point at an earlier include, 0 .. {place - 1}, got {target!r}")
    return position[0], target


_SHAPE_INDEX = {shape: i for i, shape in enumerate(SHAPES)}
_COLOUR_INDEX = {colour: i for i, colour in enumerate(COLOURS)}
