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


def phrase_credit(scene: Scene, credit: np.ndarray, wanted: Sequence[int] | None = None) -> np.ndarray:
    """Credit of each word of ``plan_text(scene)``, float32 [words]: of a phrase that of its cell in ``credit`` [4, 4], of ``;`` and ``.``
    0.

    ``wanted``: what the cells should hold; where a cell should hold another object, the colour or the shape that is right is not blamed.
    """
    words: list[float] = []
    for s, c, row, column in scene.objects():
        value = float(credit[row, column])
        target = EMPTY if wanted is None else wanted[row * GRID + column]
        phrase = [value, value, value, 0.0]
        if value < 0 and target >= 0:
            phrase = [value * (target % len(COLOURS) != c), value * (target // len(COLOURS) != s), 0.0, 0.0]
        words += phrase
    return np.array(words or [0.0], np.float32)


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
