"""What a backbone reads: a batch of sequences with who sees whom, and what stands in the columns of each segment."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from policies.attention.masks import Mask


@dataclass(frozen=True, slots=True)
class Sequences:
    """A batch of sequences, tokens and images."""

    ids: Tensor
    """int64 [batch, length]. Columns of continuous images hold a placeholder."""
    mask: Mask
    """Which columns each row sees: a function of global positions, which also says what is padding."""
    latents: Tensor | None = None
    """float32 [images, channels, height, width] of continuous images in row-major order."""
    times: Tensor | None = None
    """float32 [images]: 0 = noise, 1 = clean."""


def device_of(model: nn.Module) -> torch.device:
    """Where a backbone computes; weights that a device map keeps on disk or on the CPU are on ``meta`` meanwhile."""
    return next(p.device for p in model.parameters() if not p.is_meta)


class Backbone(Protocol):
    """A transformer in two halves: samplers and likelihoods apply the head to the needed positions and vocabulary rows only."""

    config: Any

    def hidden(self, sequences: Sequences, columns: Tensor | None = None) -> Tensor:
        """Last hidden states [batch, length, width], or of the ``columns`` int64 [n] alone, [batch, n, width]."""

    def head(self, hidden: Tensor, rows: slice | None = None) -> Tensor:
        """Logits of hidden states [..., width] over the vocabulary rows of a slice (all when None)."""


@dataclass(frozen=True, slots=True)
class View:
    """What stands in the columns of one segment in a forward."""

    ids: Tensor | None = None
    """int64 [batch, n]: tokens or MASK; None = what stands there in the blank canvas."""
    real: Tensor | None = None
    """bool [batch, n]: false where the column is padding, such as that behind the end of a text; None = none is."""
    latents: Tensor | None = None
    """float32 [batch, n, d]: continuous tokens."""
    times: Tensor | None = None
    """float32 [batch]: the time at which these are seen, 0 = noise, 1 = clean."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a forward tells of one segment."""

    hidden: Tensor
    """[batch, n, width] of the columns that its head reads; of all columns where that asks for whole sequences."""
    sequences: Sequences

    @property
    def device(self) -> torch.device:
        return self.hidden.device
