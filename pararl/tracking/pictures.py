"""The sheet of samples of a run: what each system drew for the same prompts, with marks for what failed. PIL only."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pararl.files import atomic_path

Colour = tuple[int, int, int]

BLACK: Colour = (25, 25, 25)
GREY: Colour = (120, 120, 120)
PALE: Colour = (225, 225, 225)
PASSED: Colour = (0, 145, 80)
FAILED: Colour = (205, 45, 35)

MIN_SIDE, MAX_SIDE = 160, 320
"""Range of the side of a shown image, in pixels."""
FRAME, GAP, MARGIN, LABEL = 4, 16, 20, 230
"""Width of the frame, space between cells, outer margin and width of the prompt column, in pixels."""
BESIDE = 340
"""Width of the list of claims beside an image, where every claim is listed, in pixels."""
SMALL, NORMAL = 12, 14
"""Font sizes, in pixels."""
MAX_LINES = 5
"""Lines of reasons, and of text output, under one image, where not every claim is listed."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One output of one system for one prompt."""

    image: np.ndarray | None
    """uint8 [height, width, 3]; None = the output is text alone."""
    value: float | None = None
    """Soft score in [0, 1]; None = not scored."""
    strict: bool | None = None
    """Whether everything asked holds; None = the reward has no such notion."""
    failed: tuple[str, ...] = ()
    """Reasons of the failed atoms."""
    text: str | None = None
    """The text of the output, where it has one."""
    held: tuple[str, ...] | None = None
    """The claims that hold, for a list of every claim beside the image; None = failed ones below it, as many as fit."""


@dataclass(frozen=True, slots=True)
class SampleRow:
    """The outputs of all systems for one prompt."""

    prompt: str
    cells: tuple[Sample, ...]
    shown: np.ndarray | None = None
    """The prompt's input image, uint8 [height, width, 3]."""


def enlarged(image: np.ndarray) -> Image.Image:
    """A uint8 [height, width, 3] array as a picture of at least `MIN_SIDE` pixels (whole factor, nearest neighbour) and at most `MAX_SIDE`.

    Raises ValueError on another shape or type.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"an image must be uint8 [height, width, 3]; got {image.dtype} {list(image.shape)}")
    picture = Image.fromarray(image)
    factor = math.ceil(MIN_SIDE / min(picture.size))
    if factor > 1:
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return picture


def picture_of(cell: Sample) -> Image.Image:
    """The image of an output; for text alone the text on a pale ground."""
    if cell.image is not None:
        return enlarged(cell.image)
    picture = Image.new("RGB", (MIN_SIDE, MIN_SIDE), (245, 245, 245))
    lines = _wrapped(cell.text or "(no text)", MIN_SIDE - 12, SMALL)
    _draw_lines(ImageDraw.Draw(picture), (6, 6), lines[: (MIN_SIDE - 12) // _line_height(SMALL)], BLACK, SMALL)
    return picture


def _shown(image: np.ndarray) -> Image.Image:
    """An input image, at two thirds of the size of an output."""
    picture = enlarged(image)
    return picture.resize((picture.width * 2 // 3, picture.height * 2 // 3), Image.Resampling.NEAREST)


def samples_png(path: Path, columns: Sequence[str], rows: Sequence[SampleRow]) -> None:
    """Draw a sheet with one row per prompt and one column per system, and write it to `path` atomically.

    An image has a green frame and a tick when its output is strictly right, else a red frame and a cross with the reasons below it, or
    with every claim beside it (``Sample.held``).
    Raises ValueError when there are no rows, or when a row has not one cell per column.
    """
    if not rows:
        raise ValueError(f"no rows to draw in {path}")
    for row in rows:
        if len(row.cells) != len(columns):
            raise ValueError(f"{len(row.cells)} cells for {len(columns)} columns ({', '.join(columns)}) at prompt {row.prompt!r}")
    pictures = [[picture_of(cell) for cell in row.cells] for row in rows]
    width = max(picture.width for line in pictures for picture in line) + 2 * FRAME
    width += GAP + BESIDE if any(cell.held is not None for row in rows for cell in row.cells) else 0
    heights = [_row_height(row, line, width) for row, line in zip(rows, pictures, strict=True)]
    header = 2 * _line_height(NORMAL) + GAP
    size = (2 * MARGIN + LABEL + len(columns) * (width + GAP), 2 * MARGIN + header + sum(heights) + GAP * (len(rows) - 1))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    lefts = [MARGIN + LABEL + GAP + i * (width + GAP) for i in range(len(columns))]
    for i, (left, name) in enumerate(zip(lefts, columns, strict=True)):
        draw.text((left, MARGIN), name, BLACK, _font(NORMAL, bold=True))
        draw.text((left, MARGIN + _line_height(NORMAL)), _tally([row.cells[i] for row in rows]), GREY, _font(SMALL))
    top = MARGIN + header
    for row, line, height in zip(rows, pictures, heights, strict=True):
        draw.line((MARGIN, top - GAP // 2, size[0] - MARGIN, top - GAP // 2), PALE)
        prompt = _wrapped(row.prompt, LABEL, NORMAL)
        _draw_lines(draw, (MARGIN, top), prompt, BLACK, NORMAL)
        if row.shown is not None:
            sheet.paste(_shown(row.shown), (MARGIN, top + len(prompt) * _line_height(NORMAL) + 4))
        for left, cell, picture in zip(lefts, row.cells, line, strict=True):
            _draw_cell(sheet, draw, (left, top), cell, picture, width)
        top += height + GAP
    with atomic_path(path) as temporary:
        sheet.save(temporary)


def _tally(cells: Sequence[Sample]) -> str:
    judged = [cell.strict for cell in cells if cell.strict is not None]
    return f"{sum(judged)} of {len(judged)} right" if judged else ""


def _row_height(row: SampleRow, pictures: Sequence[Image.Image], width: int) -> int:
    prompt = len(_wrapped(row.prompt, LABEL, NORMAL)) * _line_height(NORMAL)
    prompt += 0 if row.shown is None else 4 + _shown(row.shown).height
    heights = [prompt]
    for cell, picture in zip(row.cells, pictures, strict=True):
        framed, text = picture.height + 2 * FRAME, _line_height(NORMAL) + 4 + len(_said(cell, width)) * _line_height(SMALL)
        heights.append(framed + text if cell.held is None else max(framed, text))
    return max(heights)


def _draw_cell(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, corner: tuple[int, int], cell: Sample, picture: Image.Image, width: int
) -> None:
    left, top = corner
    colour = {None: GREY, True: PASSED, False: FAILED}[cell.strict]
    right, bottom = left + picture.width + 2 * FRAME, top + picture.height + 2 * FRAME
    draw.rectangle((left, top, right - 1, bottom - 1), fill=colour)
    sheet.paste(picture, (left + FRAME, top + FRAME))
    left, line = (left, bottom + 4) if cell.held is None else (right + GAP, top)
    indent = 0
    if cell.strict is not None:
        _draw_mark(draw, (left, line + 2), cell.strict, colour)
        indent = NORMAL + 4
    draw.text((left + indent, line), "not scored" if cell.value is None else f"reward {cell.value:.2f}", colour, _font(SMALL, bold=True))
    line += _line_height(NORMAL)
    for text, ink in _said(cell, width):
        draw.text((left, line), text, ink, _font(SMALL))
        line += _line_height(SMALL)


def _draw_mark(draw: ImageDraw.ImageDraw, corner: tuple[int, int], passed: bool, colour: Colour) -> None:
    """A tick or a cross of strokes, since not every font has them."""
    x, y, side = *corner, NORMAL - 3
    if passed:
        draw.line([(x, y + side * 0.55), (x + side * 0.38, y + side * 0.95), (x + side, y + side * 0.1)], colour, width=3, joint="curve")
    else:
        draw.line((x + 1, y + 1, x + side - 1, y + side - 1), colour, width=3)
        draw.line((x + 1, y + side - 1, x + side - 1, y + 1), colour, width=3)


def _said(cell: Sample, width: int) -> list[tuple[str, Colour]]:
    """The lines under an image: whole reasons in red while they fit, the number of the rest, then the text output in grey.

    Where every claim is listed, beside the image: all reasons, the claims that hold in green, and the whole text.
    """
    width = width if cell.held is None else BESIDE
    reasons: list[str] = []
    for i, reason in enumerate(cell.failed):
        lines = _wrapped(f"\u2013 {reason}", width, SMALL)
        if cell.held is None and reasons and len(reasons) + len(lines) > MAX_LINES:
            reasons.append(f"\u2026 and {len(cell.failed) - i} more")
            break
        reasons += lines
    words = _wrapped(f"\u201c{cell.text}\u201d", width, SMALL) if cell.text is not None and cell.image is not None else []
    if cell.held is None and len(words) > MAX_LINES:
        words = [*words[:MAX_LINES], "\u2026"]
    held = [line for claim in cell.held or () for line in _wrapped(f"+ {claim}", width, SMALL)]
    return [(line, FAILED) for line in reasons] + [(line, PASSED) for line in held] + [(line, GREY) for line in words]


def _draw_lines(draw: ImageDraw.ImageDraw, corner: tuple[int, int], lines: Sequence[str], colour: Colour, size: int) -> None:
    for i, line in enumerate(lines):
        draw.text((corner[0], corner[1] + i * _line_height(size)), line, colour, _font(size))


def _wrapped(text: str, width: int, size: int) -> list[str]:
    """`text` in lines of at most `width` pixels; a word longer than that is broken."""
    font, lines, line = _font(size), [], ""
    for word in text.split():
        while font.getlength(word) > width:
            fits = max(n for n in range(1, len(word)) if n == 1 or font.getlength(word[:n]) <= width)
            lines += [line, word[:fits]] if line else [word[:fits]]
            line, word = "", word[fits:]
        longer = f"{line} {word}" if line else word
        if font.getlength(longer) <= width:
            line = longer
        else:
            lines.append(line)
            line = word
    return [*lines, line] if line else lines


def _line_height(size: int) -> int:
    return round(size * 1.35)


@cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans from matplotlib's files: the same on every machine, and it covers more than Latin."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)
