"""Plans: a scene in words, as the text half of an interleaved output.

``red circle a1 ; blue square c4 .`` lists the objects in raster order; the empty scene is a lone ``.``.
"""

from collections.abc import Sequence

import numpy as np

from pararl.scenes.world import CELL_NAMES, COLOURS, EMPTY, GRID, SHAPES, Scene, kind

_KINDS = {(COLOURS[c], SHAPES[s]): kind(s, c) for s in range(len(SHAPES)) for c in range(len(COLOURS))}
_CELLS = {name: place for place, name in enumerate(CELL_NAMES)}


def plan_text(scene: Scene) -> str:
    """The plan of a scene: at most 4 words an object, 24 for six objects."""
    objects = [f"{COLOURS[c]} {SHAPES[s]} {CELL_NAMES[row * GRID + column]}" for s, c, row, column in scene.objects()]
    return " ; ".join(objects) + " ." if objects else "."


def blame(scene: Scene, credit: np.ndarray, wanted: Sequence[int] | None = None) -> np.ndarray:
    """Credit of each word of ``plan_text(scene)``, float32 [words]: -1 where its phrase has credit -1 in ``credit`` [4, 4], else 0.

    ``wanted``: what the 16 cells should hold. An object that is right but in a wrong cell is blamed for its cell alone. One that replaces
    another in its cell is blamed for the colour or shape that differs.
    """
    words: list[bool] = []
    for s, c, row, column in scene.objects():
        wrong = bool(credit[row, column] < 0)
        colour = shape = cell = wrong
        if wrong and wanted is not None:
            there = wanted[row * GRID + column]
            value = kind(s, c)
            if any(want == value != has for want, has in zip(wanted, scene.cells.ravel().tolist(), strict=True)):
                colour = shape = False
            elif there != EMPTY:
                colour, shape, cell = there % len(COLOURS) != c, there // len(COLOURS) != s, False
        words += [colour, shape, cell, False]
    # The plan of the empty scene is a word too, its full stop.
    return -np.array(words or [False], np.float32)


def parse_plan(text: str) -> Scene | None:
    """The scene that a plan describes, or None when it is not exactly of the form that ``plan_text`` writes.

    Words may be parted by any white space. Cells must rise in raster order, so that every scene has one plan. Never raises.
    """
    words = text.split()
    if words == ["."]:
        return Scene.empty()
    if len(words) % 4 or not words or words[3::4] != [";"] * (len(words) // 4 - 1) + ["."]:
        return None
    cells = np.full(GRID * GRID, EMPTY, np.int8)
    last = -1
    for colour, shape, name in zip(words[0::4], words[1::4], words[2::4], strict=True):
        place, value = _CELLS.get(name, -1), _KINDS.get((colour, shape))
        if place <= last or value is None:
            return None
        cells[place], last = value, place
    return Scene(cells.reshape(GRID, GRID))
