"""Who sees whom, as functions of global positions."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Mask(Protocol):
    """Which columns (keys) a row (query) sees."""

    @property
    def real(self) -> Tensor:
        """bool [batch, length]: false at padding."""

    def __call__(self, batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        """Bool of the shape that the indices broadcast to."""

    def dense(self, rows: slice | None = None) -> Tensor:
        """The mask, bool [batch, 1, length, length], or of a slice of its rows alone."""

    def positions(self) -> Tensor:
        """Places of the columns, int64 [batch, length]."""


@dataclass(frozen=True, slots=True)
class Full:
    """Every row sees every real column; a padding row sees all, since one without any key would be undefined."""

    real: Tensor

    def __call__(self, batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return self.real[batch, column] | ~self.real[batch, row]

    def dense(self, rows: slice | None = None) -> Tensor:
        asking = self.real if rows is None else self.real[:, rows]
        return (self.real[:, None, :] | ~asking[:, :, None])[:, None]

    def positions(self) -> Tensor:
        return torch.arange(self.real.shape[1], device=self.real.device).expand(self.real.shape)
