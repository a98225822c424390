"""A random scene that satisfies a description.

Free colours are uniform over the colours allowed. Without a relation, cells are uniform. With one, the target's cells are drawn uniformly,
then the subject's among those that stand in the relation to all of them. The draw is repeated when they do not suffice.
"""

import random

import numpy as np

from pararl.scenes.grammar import Description, Group
from pararl.scenes.world import CELL_RELATIONS, CELLS, COLOURS, EMPTY, GRID, SHAPES, Scene, kind

_TRIES = 64
_SIDES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "left of": ((0, 1), (3,)),
    "right of": ((2, 3), (0,)),
    "above": ((0, 1), (3,)),
    "below": ((2, 3), (0,)),
}
"""Lines (columns, or rows for above and below) of subject and target between which a relation always holds; room for 8 and for 4."""
_NARROW: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "left of": ((0,), (2, 3)),
    "right of": ((3,), (0, 1)),
    "above": ((0,), (2, 3)),
    "below": ((3,), (0, 1)),
}
"""The same with room for 4 and for 8."""
_ALL = (1 << CELLS) - 1
_MASKS: dict[str, tuple[int, ...]] = {
    relation: tuple(sum(1 << subject for subject in range(CELLS) if table[subject][target]) for target in range(CELLS))
    for relation, table in CELL_RELATIONS.items()
}
"""Per target cell the bit set of subject cells that stand in the relation to it."""


def satisfy(description: Description, rng: random.Random, avoid: frozenset[tuple[str, str]] = frozenset()) -> Scene:
    """A random scene of which the description is true. ``avoid``: (shape, colour) pairs that no free colour may make.

    Always ends: after 64 draws that leave the subject too few cells, both sides of the relation are put where it must hold.
    """
    placed: list[list[int]] = []
    used: list[int] = []
    if description.relation:
        subjects, targets = _related(description.relation, description.groups[0].count, description.groups[1].count, rng)
        placed, used = [subjects, targets], subjects + targets
    for group in description.groups[len(placed) :]:
        chosen = draw([cell for cell in range(CELLS) if cell not in used], group.count, rng)
        placed.append(chosen)
        used = used + chosen
    cells = [EMPTY] * CELLS
    for group, places in zip(description.groups, placed, strict=True):
        colours = _colours(group, description.negation, avoid)
        for cell in places:
            cells[cell] = kind(SHAPES.index(group.shape), colours[int(rng.random() * len(colours))])
    return Scene(np.array(cells, np.int8).reshape(GRID, GRID))


def draw(options: list[int], count: int, rng: random.Random) -> list[int]:
    """``count`` different options, uniformly."""
    options = list(options)
    for i in range(count):
        # Not rng.sample: of ``random`` alone Python keeps the stream across versions.
        j = i + int(rng.random() * (len(options) - i))
        options[i], options[j] = options[j], options[i]
    return options[:count]


def _colours(group: Group, negation: tuple[str, str | None] | None, avoid: frozenset[tuple[str, str]]) -> list[int]:
    if group.colour is not None:
        return [COLOURS.index(group.colour)]
    return [i for i, colour in enumerate(COLOURS) if (group.shape, colour) not in avoid and (group.shape, colour) != negation]


def _related(relation: str, subjects: int, targets: int, rng: random.Random) -> tuple[list[int], list[int]]:
    masks = _MASKS[relation]
    for _ in range(_TRIES):
        second = draw(list(range(CELLS)), targets, rng)
        allowed = _ALL
        for cell in second:
            allowed &= masks[cell]
        if allowed.bit_count() >= subjects:
            return draw([cell for cell in range(CELLS) if allowed >> cell & 1], subjects, rng), second
    lines = (_SIDES if subjects > GRID else _NARROW)[relation]
    across = relation in ("above", "below")
    first, second = ([cell for cell in range(CELLS) if (cell // GRID if across else cell % GRID) in side] for side in lines)
    return draw(first, subjects, rng), draw(second, targets, rng)
