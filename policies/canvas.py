"""Where things stand in a sequence: special tokens, prompt layouts and the canvas that a sampler fills.

Layouts of MMaDA (``training/prompting_utils.py``) and MMaDA-Parallel. Prompts are padded on the left, so the generated part of every
sequence of a batch occupies the same columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from pararl.types import Modality


@dataclass(frozen=True, slots=True)
class Specials:
    """Ids of the special tokens. The defaults are those of the MMaDA and MMaDA-Parallel releases."""

    mask: int = 126336
    bos: int = 126080
    eos: int = 126081
    soi: int = 126084
    eoi: int = 126085
    t2i: int = 126088
    mmu: int = 126089
    pad: int = 126093
    interleave: int = 126095


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """One vocabulary for both modalities: text rows first and behind them the image codes, or these in a place among the text rows."""

    text_size: int
    """len(tokenizer), which is where the image codes start (126349 in the releases, not the padded 126464)."""
    codes: int
    specials: Specials = field(default_factory=Specials)
    forbidden: tuple[int, ...] = ()
    """Text rows that a text position never yields: MASK and other special tokens, all but eos, and image codes that stand among them."""
    first_code: int | None = None
    """The first row of the image codes where they stand among the text rows; None = they stand behind them."""

    def rows(self, modality: Modality) -> slice:
        """The vocabulary rows of a modality."""
        if modality == "text":
            return slice(0, self.text_size)
        first = self.text_size if self.first_code is None else self.first_code
        return slice(first, first + self.codes)


@dataclass(frozen=True, slots=True)
class Span:
    """Columns [start, stop) of a canvas that hold generated tokens of one modality."""

    modality: Modality
    start: int
    stop: int
    row: int = 0
    """Tokens of a row of an image whose rows each end in a line break, which is given; 0 = there is none between the tokens."""

    @property
    def columns(self) -> slice | Tensor:
        """What indexes the tokens along the length of a canvas."""
        if not self.row:
            return slice(self.start, self.stop)
        every = torch.arange(self.start, self.stop).view(-1, self.row + 1)
        return every[:, :-1].flatten()

    @property
    def first(self) -> int:
        """The first column that belongs to it. In front of the tokens of an image stands one that opens it or tells its time."""
        return self.start - int(self.modality == "image")

    def places(self) -> Tensor:
        """The columns int64 [n] of its tokens."""
        columns = self.columns
        return torch.arange(columns.start, columns.stop) if isinstance(columns, slice) else columns

    def cut(self, part: slice) -> "Span":
        """The span of some of its tokens. Raises ValueError for a part of an image with line breaks."""
        if (part.start, part.stop) == (0, len(self)):
            return self
        if self.row:
            raise ValueError("an image whose rows have line breaks is taken whole")
        return replace(self, start=self.start + part.start, stop=self.start + part.stop)

    def __len__(self) -> int:
        whole = self.stop - self.start
        return whole - whole // (self.row + 1) if self.row else whole


@dataclass(frozen=True, slots=True)
class Tail:
    """The generated part of a sequence, all of it still MASK: the same behind every prompt of a task."""

    ids: tuple[int, ...]
    spans: tuple[Span, ...]
    """Columns counted from the first of the tail."""


@dataclass(frozen=True, slots=True)
class Canvas:
    """A batch of sequences of one task with all generated positions still MASK."""

    ids: Tensor
    """int64 [batch, length]."""
    attention: Tensor
    """bool [batch, length]: false at padding."""
    spans: tuple[Span, ...]
    prefix: int = 0
    """Columns of the prompts; the tail begins behind them."""
    latents: Tensor | None = None
    """float32 [images, ...] of the images that are there, in row-major order, for a policy whose images have no ids."""

    def span(self, modality: Modality) -> Span | None:
        return next((s for s in self.spans if s.modality == modality), None)

    def front(self, stop: int) -> "Canvas":
        """Its first columns, which hold all its images that are there, and no span."""
        return replace(self, ids=self.ids[:, :stop], attention=self.attention[:, :stop], spans=())

    def repeated(self, count: int) -> "Canvas":
        """Every row ``count`` times."""
        latents = None if self.latents is None else self.latents.repeat_interleave(count, 0)
        ids, attention = (x.repeat_interleave(count, 0) for x in (self.ids, self.attention))
        return replace(self, ids=ids, attention=attention, latents=latents)

    def to(self, device: torch.device) -> "Canvas":
        """The canvas with its tensors on ``device``."""
        latents = None if self.latents is None else self.latents.to(device)
        return replace(self, ids=self.ids.to(device), attention=self.attention.to(device), latents=latents)


def beside(canvases: Sequence[Canvas]) -> Canvas:
    """Canvases of the same columns as one batch, the rows of the first one first."""
    latents = [canvas.latents for canvas in canvases if canvas.latents is not None]
    ids, attention = torch.cat([canvas.ids for canvas in canvases]), torch.cat([canvas.attention for canvas in canvases])
    return replace(canvases[0], ids=ids, attention=attention, latents=torch.cat(latents) if latents else None)


def pad_left(rows: Sequence[Sequence[int]], pad: int, width: int | None = None) -> tuple[Tensor, Tensor]:
    """Left-pad rows of ids to the longest (or to ``width``): ids int64 [batch, width] and their bool mask."""
    width = max(len(row) for row in rows) if width is None else width
    ids = np.full((len(rows), width), pad, dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=bool)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :] = row
        mask[i, width - len(row) :] = True
    return torch.from_numpy(ids), torch.from_numpy(mask)


def tail(image_tokens: int, text_tokens: int, specials: Specials) -> Tail:
    """MMaDA's: ``<soi> MASK*image_tokens <eoi> <bos> MASK*text_tokens``.

    A count of 0 leaves its part out. Text alone follows its prefix directly: an answer goes on where the question ended.
    """
    ids: list[int] = []
    spans: list[Span] = []
    if image_tokens:
        spans.append(Span("image", 1, 1 + image_tokens))
        ids += [specials.soi, *[specials.mask] * image_tokens, specials.eoi]
    if text_tokens:
        ids += [specials.bos] if image_tokens else []
        spans.append(Span("text", len(ids), len(ids) + text_tokens))
        ids += [specials.mask] * text_tokens
    return Tail(tuple(ids), tuple(spans))


def canvas(prefixes: Sequence[Sequence[int]], behind: Tail, pad: int, width: int | None = None) -> Canvas:
    """The canvas of prompt prefixes, padded on the left to the longest (or to ``width`` columns), each with the tail behind it."""
    ids, mask = pad_left(prefixes, pad, width)
    first = ids.shape[1]
    rest = torch.tensor(behind.ids).expand(len(prefixes), -1)
    spans = tuple(replace(span, start=span.start + first, stop=span.stop + first) for span in behind.spans)
    return Canvas(torch.cat((ids, rest), 1), torch.cat((mask, torch.ones_like(rest, dtype=torch.bool)), 1), spans, first)
