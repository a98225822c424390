"""What Show-o2 keeps of a sequence that grows, and where the images of a sequence are."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from policies.attention.masks import Omni
from policies.backbones.showo2_layers import Keys


@dataclass(frozen=True, slots=True)
class Prefix:
    """What the language model has read of a batch of sequences."""

    mask: Omni
    """Blocks and real tokens, [batch, columns]."""
    times: Tensor
    """float32 [batch, columns]: the time of the image that a column belongs to; 1 at text."""
    keys: tuple[Keys, ...]
    """Of every layer of the language model."""
    hidden: Tensor
    """[batch, columns, hidden_size], after the final norm. The head of a row's last real column gives its next token."""

    def take(self, rows: Tensor) -> "Prefix":
        """The prefix of some of the rows, int64 [n], each as often as it is named.

        For the samples of a prompt, or for rows that go on.
        """
        mask = Omni(self.mask.blocks[rows], self.mask.real[rows])
        return Prefix(mask, self.times[rows], tuple((k[rows], v[rows]) for k, v in self.keys), self.hidden[rows])


@dataclass(frozen=True, slots=True)
class Canvas:
    """A prefix and the place of an image behind it, in the same columns of every row."""

    prefix: Prefix
    head_keys: tuple[Keys, ...]
    """Of the prefix, of every layer of the diffusion head."""
    seen: Tensor | None
    """The mask of the image's columns, bool [batch, 1, n, columns + n]; None where they see everything."""
    positions: Tensor
    """int64 [batch, n]."""
    grid: tuple[int, int]
    """Rows and columns of patches."""


def first_columns(blocks: Tensor) -> Tensor:
    """Bool [batch, length]: where an image of ``blocks`` begins."""
    return (blocks > 0) & (blocks != F.pad(blocks[:, :-1], (1, 0)))


def owners(blocks: Tensor) -> Tensor:
    """int64 [batch, length]: 0 = text, i = the i-th image of the batch in row-major order."""
    return torch.where(blocks > 0, first_columns(blocks).flatten().cumsum(0).view(blocks.shape), 0)
