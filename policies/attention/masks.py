"""Who sees whom, as functions of (batch, head, row, column). The same object is a ``mask_mod`` of FlexAttention. Evaluated over a grid, it
is the dense mask of scaled dot-product attention.

``Full`` is MMaDA's: every token sees every other. ``Omni`` is that of Show-o and Show-o2: text is causal, every image sees all of itself.
Facts: Gen-Verse/MMaDA, ``models/modeling_llada.py``; showlab/Show-o, ``create_attention_mask_lvg`` of ``training/prompting_utils.py`` and
``show-o2/models/omni_attention.py``.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


class Mask(ABC):
    """Which columns (keys) a row (query) sees. No row is empty, because attention over nothing is undefined."""

    __slots__ = ()

    real: Tensor
    """bool [batch, length]: false at padding, which may stand anywhere."""

    @abstractmethod
    def __call__(self, batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        """Bool of the shape that the indices broadcast to; ``head`` is not looked at, its shape aside."""

    @abstractmethod
    def positions(self) -> Tensor:
        """Position of each column, int64 [batch, length], as the rotary embedding of the model counts them."""

    def dense(self, rows: slice | None = None) -> Tensor:
        """The mask, bool [batch, 1, length, length], or of a slice of its rows alone, [batch, 1, rows, length]."""
        batch, length = self.real.shape
        places = torch.arange(length, device=self.real.device)
        shared = torch.zeros((), dtype=torch.int64, device=self.real.device)
        every = torch.arange(batch, device=self.real.device)[:, None, None, None]
        return self(every, shared, places[slice(None) if rows is None else rows, None], places)


@dataclass(frozen=True, slots=True)
class Full(Mask):
    """Every real token sees every real token. Padding is hidden as a key; as a query it sees everything, and nobody reads it."""

    real: Tensor

    def __call__(self, batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        # Attention over no key at all is NaN, which would spread from padding through the values.
        return self.real[batch, column] | ~self.real[batch, row]

    def positions(self) -> Tensor:
        """The columns' own numbers: nothing but their differences counts, so that padding in front shifts all alike."""
        return torch.arange(self.real.shape[1], device=self.real.device).expand(self.real.shape)


@dataclass(frozen=True, slots=True)
class Omni(Mask):
    """A row sees the real columns up to itself, and those of its own image block.

    Padding is hidden as a key, but from itself.
    """

    blocks: Tensor
    """int64 [batch, length]: 0 = text, k = the k-th image block of the row."""
    real: Tensor

    def __call__(self, batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        block = self.blocks[batch, row]
        image = (block > 0) & (block == self.blocks[batch, column])
        return ((column <= row) | image) & (self.real[batch, column] | (row == column))

    def positions(self) -> Tensor:
        """Place of each real token among the real ones before it; 0 at padding in front of all."""
        # Released positions count padding as well; here padding moves nothing, wherever it stands.
        return (self.real.cumsum(1) - 1).clamp_min(0)


def omni(blocks: Tensor, real: Tensor | None = None) -> Omni:
    """The mask of ``blocks`` int64 [batch, length] (0 = text, k = the k-th image block) and ``real`` bool [batch, length] (None = all).

    Raises ValueError where the shapes differ.
    """
    real = torch.ones_like(blocks, dtype=torch.bool) if real is None else real.bool()
    if blocks.ndim != 2 or blocks.shape != real.shape:
        raise ValueError(f"blocks and real must both be [batch, length], got {list(blocks.shape)} and {list(real.shape)}")
    return Omni(blocks, real)


def between(ids: Tensor, first: int, last: int) -> Tensor:
    """Blocks int64 [batch, length] of ids: the k-th stretch from a token ``first`` to the next ``last``, both included, is block k.

    Show-o delimits its images so (``<|soi|>`` ... ``<|eoi|>``). A ``last`` that closes nothing is text, a ``first`` that nothing
    closes goes on to the end.
    """
    column = torch.arange(ids.shape[1], device=ids.device)
    opened = torch.where(ids == first, column, -1).cummax(1).values
    closed = torch.where(ids == last, column, -1).cummax(1).values.roll(1, 1)
    closed[:, 0] = -1  # of the columns before each
    return torch.where(opened > closed, (ids == first).cumsum(1), 0)


def at_places(places: Tensor, length: int) -> Tensor:
    """Blocks int64 [batch, length] of ``places`` int64 [batch, images, 2], (offset, length) of each image; a length of 0 is no image.

    Show-o2 gives its images so (``modality_positions``).
    """
    offset, size = places[..., :1], places[..., 1:]
    column = torch.arange(length, device=places.device)
    inside = (column >= offset) & (column < offset + size)
    number = torch.arange(1, places.shape[1] + 1, device=places.device)[:, None]
    return (inside * number).sum(1)
