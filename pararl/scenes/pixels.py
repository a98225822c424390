"""Scenes to pixels and back: an exact renderer, and a parser that takes the nearest glyph of every cell.

Glyphs are flat and differ from one another by at least 50 grey levels RMSE over a cell. A cell is read as its nearest glyph when that lies
within ``MAX_RMSE`` and is clearly nearer than the second. Anything else (noise, blends, half-drawn shapes) is invalid.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pararl.scenes.world import COLOURS, EMPTY, GRID, KINDS, SHAPES, Scene

CELL_PIXELS = 8
SIDE = GRID * CELL_PIXELS
"""Pixels along each side of an image."""
BACKGROUND = (208, 208, 208)
# Chosen so that no even blend of two glyphs, red and yellow above all, comes near a third.
PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (200, 0, 60),
    "green": (0, 150, 60),
    "blue": (0, 60, 230),
    "yellow": (255, 238, 65),
    "purple": (160, 30, 180),
    "orange": (255, 115, 0),
}
MAX_RMSE = 30.0
"""Largest root mean square difference of a cell from its glyph, in grey levels of 255."""
MAX_RATIO = 0.85
"""Largest ratio of the distances to the nearest and to the second nearest glyph: above it the cell is ambiguous."""

_MASKS: dict[str, tuple[str, ...]] = {
    "circle": ("..####..", ".######.", "########", "########", "########", "########", ".######.", "..####.."),
    "square": ("#######.", "#######.", "##...##.", "##...##.", "##...##.", "#######.", "#######.", "........"),
    "triangle": ("...##...", "...##...", "..####..", "..####..", ".######.", ".######.", "########", "########"),
    "cross": ("##....##", "###..###", ".######.", "..####..", "..####..", ".######.", "###..###", "##....##"),
}


def _glyphs() -> np.ndarray:
    table = np.empty((KINDS + 1, CELL_PIXELS, CELL_PIXELS, 3), np.uint8)
    table[:] = BACKGROUND
    for s, shape in enumerate(SHAPES):
        inside = np.array([[pixel == "#" for pixel in line] for line in _MASKS[shape]])
        for c, colour in enumerate(COLOURS):
            table[s * len(COLOURS) + c, inside] = PALETTE[colour]
    table.flags.writeable = False
    return table


GLYPHS = _glyphs()
"""uint8 [25, 8, 8, 3]: one glyph per kind, the empty cell last, so that -1 indexes it."""
_FLAT = GLYPHS.reshape(KINDS + 1, -1).astype(np.float32)
_SQUARES = (_FLAT.astype(np.float64) ** 2).sum(1).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a parser read from one image."""

    scene: Scene
    """The readable objects; invalid cells are empty here."""
    valid: np.ndarray
    """bool [4, 4]: False where no glyph fits."""
    rmse: np.ndarray
    """float32 [4, 4]: distance of each cell to its nearest glyph, grey levels."""


def render_cells(cells: np.ndarray) -> np.ndarray:
    """Images uint8 [n, 32, 32, 3] of integer cells [n, 4, 4] (-1 empty, else the kind)."""
    tiles = GLYPHS[cells]
    return tiles.transpose(0, 1, 3, 2, 4, 5).reshape(len(cells), SIDE, SIDE, 3)


def render_batch(scenes: Sequence[Scene]) -> np.ndarray:
    """Images uint8 [n, 32, 32, 3] of n scenes, without jitter or noise."""
    return render_cells(np.stack([scene.cells for scene in scenes]) if scenes else np.empty((0, GRID, GRID), np.int8))


def render(scene: Scene, rng: np.random.Generator | None = None, jitter: int = 0, noise: float = 0.0) -> np.ndarray:
    """The image of a scene, uint8 [32, 32, 3]; exact unless asked otherwise.

    ``jitter``: every object is moved by up to that many pixels in x and in y and clipped to its cell. ``noise``: standard deviation of
    Gaussian noise in grey levels. Both need ``rng``. ``parse`` inverts an exact image and one with mild noise, not a jittered one.
    Raises ValueError when jitter or noise is asked for without a generator.
    """
    image = render_cells(scene.cells[None])[0]
    if not jitter and not noise:
        return image
    if rng is None:
        raise ValueError("render with jitter or noise needs rng: pass numpy.random.default_rng(seed)")
    if jitter:
        for place in scene.objects():
            _shift(
                image[place.row * CELL_PIXELS :, place.column * CELL_PIXELS :][:CELL_PIXELS, :CELL_PIXELS],
                rng.integers(-jitter, jitter + 1, 2),
            )
    if noise:
        image = np.clip(np.rint(image + rng.normal(0.0, noise, image.shape)), 0, 255).astype(np.uint8)
    return image


def _shift(tile: np.ndarray, by: np.ndarray) -> None:
    """Move the glyph in ``tile`` [8, 8, 3] in place; what it leaves becomes background."""
    margin = int(np.abs(by).max())
    padded = np.empty((CELL_PIXELS + 2 * margin, CELL_PIXELS + 2 * margin, 3), np.uint8)
    padded[:] = BACKGROUND
    padded[margin : margin + CELL_PIXELS, margin : margin + CELL_PIXELS] = tile
    top, left = margin - int(by[0]), margin - int(by[1])
    tile[:] = padded[top : top + CELL_PIXELS, left : left + CELL_PIXELS]


def parse_batch(images: np.ndarray | Sequence[np.ndarray]) -> list[Parsed]:
    """What n images uint8 [n, 32, 32, 3] show, whatever their pixels.

    Raises ValueError for another shape or type, the only way in which it fails.
    """
    batch = np.asarray(images) if len(images) else np.empty((0, SIDE, SIDE, 3), np.uint8)
    if batch.shape[1:] != (SIDE, SIDE, 3) or batch.dtype != np.uint8:
        raise ValueError(f"scene images must be uint8 [n, {SIDE}, {SIDE}, 3], got {batch.dtype} {list(batch.shape)}")
    tiles = batch.reshape(-1, GRID, CELL_PIXELS, GRID, CELL_PIXELS, 3).transpose(0, 1, 3, 2, 4, 5)
    flat = tiles.reshape(len(batch) * GRID * GRID, _FLAT.shape[1]).astype(np.float32)
    squared = (flat * flat).sum(1)[:, None] - 2 * flat @ _FLAT.T + _SQUARES
    # Rounding takes an exact match below 0 at times.
    distance = np.sqrt(np.maximum(squared, 0) / flat.shape[1])
    nearest = distance.argmin(1)
    first, second = np.partition(distance, 1, axis=1)[:, :2].T
    valid = (first <= MAX_RMSE) & (first <= MAX_RATIO * second)
    cells = np.where(valid & (nearest < KINDS), nearest, EMPTY).astype(np.int8).reshape(-1, GRID, GRID)
    valid, first = valid.reshape(-1, GRID, GRID), first.reshape(-1, GRID, GRID)
    return [Parsed(Scene(c), v, r) for c, v, r in zip(cells, valid, first, strict=True)]


def parse(image: np.ndarray) -> Parsed:
    """What one image uint8 [32, 32, 3] shows; see ``parse_batch``."""
    if not isinstance(image, np.ndarray) or image.ndim != 3:
        raise ValueError(f"a scene image must be uint8 [{SIDE}, {SIDE}, 3], got {getattr(image, 'shape', type(image).__name__)}")
    return parse_batch(image[None])[0]
