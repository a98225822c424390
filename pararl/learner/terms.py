"""What a policy says of a batch, whatever it is measured by: the records that objectives read, and the interface that makes them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from pararl.learner.accumulate import Part
from pararl.learner.reference import Reference
from pararl.types import Metrics
from policies.likelihood.kl import k3


@dataclass(frozen=True, slots=True)
class TokenTerms:
    """What single tokens add to the likelihoods of a batch; the ``step`` axis is of recorded steps, or of draws."""

    logprob: Tensor
    """float32 [batch, step, modality, n]: in nats, 0 where the token does not count at the step."""
    counted: Tensor
    """bool, same shape: which tokens count at it."""
    behaviour: Tensor | None = None
    """``logprob`` as the sampler recorded it; None for draws, which no sampler has met."""
    moved: Tensor | None = None
    """How far each is from the reference, same shape, where the draws told; None = log-probabilities tell."""

    def divergence(self, reference: "TokenTerms | None") -> Tensor | None:
        """How far each token is from what the reference says, [batch, step, modality, n]; 0 where it does not count. None without one."""
        if self.moved is not None or reference is None:
            return self.moved
        return k3(self.logprob, reference.logprob)


@dataclass(frozen=True, slots=True)
class Likelihoods:
    """Log-likelihoods of a batch under one policy, in nats per token; the modality axis follows MODALITIES."""

    loglik: Tensor
    """float32 [batch, level, modality]: of recorded steps, where there are any, and last of the final output."""
    rejected: Tensor | None = None
    """What rejected sides are measured by, same shape; None = ``loglik`` itself."""
    tokens: TokenTerms | None = None
    """None where nobody asked for them."""


class Terms(Protocol):
    """A batch that is measured part by part: ``StepTerms`` at its recorded steps, ``ElboTerms`` at shared draws."""

    width: int
    """Tokens of the longest modality, all segments of it one behind the other: the last axis of all that is per token."""
    linear: bool
    """Whether the objective is linear in the parts, so that its gradient does not depend on what they give."""

    @property
    def empty(self) -> bool:
        """Whether no token counts: then nothing can be taught."""

    def reference(self, reference: Reference) -> Likelihoods | None:
        """What the reference says, without graph; asked once, before the parts are. None where these compare with it themselves."""

    def parts(self) -> list[Part]:
        """Callables that each give one differentiable piece under the policy as it is: what one forward takes."""

    def known(self) -> list[Tensor] | None:
        """What the parts will give, where that is known without a pass; anything of their shape where ``linear``."""

    def likelihoods(self, parts: Sequence[Tensor]) -> Likelihoods:
        """What the pieces make up together."""

    def metrics(self) -> Metrics:
        """What was found on the way, once the parts have been called."""
