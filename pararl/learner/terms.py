"""What a likelihood says of a batch, token by token and level by level: at the steps that its sampler recorded, or at shared draws.

Both kinds of evidence give their numbers in parts, one forward each, so that a gradient holds the graph of one part at a time
(``pararl/learner/accumulate.py``), and make the same record of them, so that an objective need not know which it learns from.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from pararl.learner.accumulate import Part

Metrics = dict[str, float]


@dataclass(frozen=True, slots=True)
class Terms:
    """Log-likelihoods of a batch in nats per token under one policy; the modality axis follows MODALITIES."""

    logprob: Tensor
    """float32 [batch, step, modality, n]: of the tokens that count at each recorded step, or in each draw; 0 elsewhere."""
    counted: Tensor
    """bool, same shape: which tokens count."""
    levels: Tensor
    """float32 [batch, level, modality]: means over the tokens of each recorded step and last over the whole output; of draws the latter
    alone."""
    rejected: Tensor | None = None
    """float32 [batch, level, modality]: what rejected sides of pairs are measured by; None = the same."""
    behaviour: Tensor | None = None
    """As ``logprob``, under the policy that sampled; None = the policy is the one that sampled, as with draws."""
    divergence: Tensor | None = None
    """As ``logprob``, how far each token is from what the base says in the same draw; None where nobody asked."""


class Evidence(Protocol):
    """Where the terms of a batch come from."""

    def parts(self) -> list[Part]:
        """One differentiable piece for each forward."""

    def terms(self, parts: Sequence[Tensor]) -> Terms:
        """From what the parts gave."""

    def known(self, reference: Sequence[Tensor] | None) -> list[Tensor] | None:
        """What the parts will give as far as it is known without a forward: the sampler's records, or ``reference``, the parts of a
        reference that is the policy itself; None where nothing is known."""

    def reference(self, version: int, as_reference: Callable[[], AbstractContextManager[None]]) -> list[Tensor]:
        """What the parts give under the reference policy of that version, without graph."""

    def metrics(self) -> Metrics:
        """What the passes told beside the loss."""
