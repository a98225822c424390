"""Random descriptions, one function per tag; every choice comes from the given random stream.

Tags are drawn uniformly. Within a tag:

- ``counting``: two to four objects, half of the time with a second group.
- ``position``: two groups, each with a colour half of the time, and with two objects instead of one a fifth of the time.
- ``negation``: one or two groups. Three times in five a group that leaves its colour free gets one forbidden. Else the negation names an
  absent shape.
- ``complex``: three groups (3/5) or two, each colour named 7/10 of the time. Counts are one (.6), two (.25) or three (.15). There is a
  relation 3/5 of the time, always with two groups, and a negation 3/10 of the time.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from pararl.scenes.grammar import Description, Group, pick
from pararl.scenes.world import COLOURS, SHAPES

MAX_OBJECTS = 6


@dataclass(frozen=True, slots=True)
class Rules:
    """What a random description may use."""

    pairs: tuple[tuple[str, str], ...]
    """(shape, colour) pairs that may be named; a pair listed more often is drawn more often."""
    relations: tuple[str, ...]
    tags: tuple[str, ...]


def describe(rng: random.Random, rules: Rules) -> Description:
    """A random description within the rules."""
    return _BY_TAG[pick(rng, rules.tags)](rng, rules)


def describe_many(rng: random.Random, rules: Rules) -> Description:
    """A description with five or six objects of one kind, at times with a single other object: the counts held out."""
    count = 5 + int(rng.random() * 2)
    many = _group(rng, rules, 0.5, count)
    if count == MAX_OBJECTS or rng.random() < 0.5:
        return Description("counting", (many,))
    other = _distinct(rng, rules, [many], 0.5, 1)
    groups = (many, other) if rng.random() < 0.5 else (other, many)
    relation = pick(rng, rules.relations) if rng.random() < 0.3 else None
    return Description("complex", groups, relation)


def _group(rng: random.Random, rules: Rules, colour: float, count: int) -> Group:
    """A random group whose colour is named with probability ``colour``."""
    if rng.random() < colour:
        return Group(*pick(rng, rules.pairs), count)
    return Group(pick(rng, SHAPES), None, count)


def _distinct(rng: random.Random, rules: Rules, groups: list[Group], colour: float, count: int) -> Group:
    """A random group that no object of the others could belong to."""
    while True:
        group = _group(rng, rules, colour, count)
        if not any(_overlap(group, other) for other in groups):
            return group


def _overlap(a: Group, b: Group) -> bool:
    return a.shape == b.shape and (a.colour is None or b.colour is None or a.colour == b.colour)


def _single(rng: random.Random, rules: Rules) -> Description:
    return Description("single_object", (_group(rng, rules, 0.0, 1),))


def _two(rng: random.Random, rules: Rules) -> Description:
    first = _group(rng, rules, 0.0, 1)
    return Description("two_object", (first, _distinct(rng, rules, [first], 0.0, 1)))


def _counting(rng: random.Random, rules: Rules) -> Description:
    first = _group(rng, rules, 0.0, 2 + int(rng.random() * 3))
    if rng.random() < 0.5:
        return Description("counting", (first,))
    count = 1 + int(rng.random() * min(4, MAX_OBJECTS - first.count))
    return Description("counting", (first, _distinct(rng, rules, [first], 0.0, count)))


def _colors(rng: random.Random, rules: Rules) -> Description:
    return Description("colors", (_group(rng, rules, 1.0, 1),))


def _color_attr(rng: random.Random, rules: Rules) -> Description:
    first = _group(rng, rules, 1.0, 1)
    return Description("color_attr", (first, _distinct(rng, rules, [first], 1.0, 1)))


def _position(rng: random.Random, rules: Rules) -> Description:
    first = _group(rng, rules, 0.5, 2 if rng.random() < 0.2 else 1)
    second = _distinct(rng, rules, [first], 0.5, 2 if rng.random() < 0.2 else 1)
    return Description("position", (first, second), pick(rng, rules.relations))


def _negation(rng: random.Random, rules: Rules) -> Description:
    groups = [_group(rng, rules, 0.3, _small_count(rng))]
    if rng.random() < 0.5:
        groups.append(_distinct(rng, rules, groups, 0.5, _small_count(rng)))
    return Description("negation", tuple(groups), negation=_forbidden(rng, rules, groups))


def _complex(rng: random.Random, rules: Rules) -> Description:
    groups: list[Group] = []
    wanted = 3 if rng.random() < 0.6 else 2
    for place in range(wanted):
        # One object is left for every group that is still to come.
        left = MAX_OBJECTS - sum(group.count for group in groups) - (wanted - 1 - place)
        groups.append(_distinct(rng, rules, groups, 0.7, min(_small_count(rng), left)))
    related = wanted == 2 or rng.random() < 1 / 3
    relation = pick(rng, rules.relations) if related else None
    return Description("complex", tuple(groups), relation, _forbidden(rng, rules, groups) if rng.random() < 0.3 else None)


def _small_count(rng: random.Random) -> int:
    return pick(rng, (1,) * 12 + (2,) * 5 + (3,) * 3)


def _forbidden(rng: random.Random, rules: Rules, groups: list[Group]) -> tuple[str, str | None]:
    """What the negation names: a colour of a group whose colour is free, or something else that no group asks for."""
    free = [group.shape for group in groups if group.colour is None]
    if free and rng.random() < 0.6:
        shape = pick(rng, free)
        return shape, pick(rng, [colour for other, colour in rules.pairs if other == shape])
    # Never empty: there are four shapes and at most three groups.
    absent = [shape for shape in SHAPES if all(group.shape != shape for group in groups)]
    shape = pick(rng, absent)
    return shape, pick(rng, [c for s, c in rules.pairs if s == shape]) if rng.random() < 0.5 else None


_BY_TAG: dict[str, Callable[[random.Random, Rules], Description]] = {
    "single_object": _single,
    "two_object": _two,
    "counting": _counting,
    "colors": _colors,
    "position": _position,
    "color_attr": _color_attr,
    "negation": _negation,
    "complex": _complex,
}
TAGS: tuple[str, ...] = tuple(_BY_TAG)
"""GenEval's six tags, negation and complex."""
ALL_PAIRS: tuple[tuple[str, str], ...] = tuple((shape, colour) for shape in SHAPES for colour in COLOURS)
