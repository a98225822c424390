"""Scenes written as words, and a score read as words."""

import numpy as np

from pararl.scenes.world import CELL_NAMES, COLOURS, SHAPES, Scene
from pararl.types import Score


def scene(*objects: str) -> Scene:
    """A scene from objects written as ``"red circle a1"``."""
    rows = []
    for words in objects:
        colour, shape, cell = words.split()
        rows.append((SHAPES.index(shape), COLOURS.index(colour), *divmod(CELL_NAMES.index(cell), 4)))
    return Scene.of(rows)


def failed(score: Score) -> dict[str, str]:
    """Reason of each failed atom by its statement."""
    assert all(bool(atom.reason) != atom.passed for atom in score.atoms)
    return {atom.statement: atom.reason for atom in score.atoms if not atom.passed}


def credit(score: Score) -> dict[str, float]:
    assert score.credit is not None and score.credit.shape == (4, 4) and score.credit.dtype == np.float32
    return {CELL_NAMES[i]: value for i, value in enumerate(score.credit.ravel().tolist()) if value}
