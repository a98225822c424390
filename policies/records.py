"""What draws and recorded steps tell of a batch: the records of likelihoods."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pararl.options import ImageRows
from pararl.types import Modality
from policies.likelihood.kl import k3


@dataclass(frozen=True, slots=True)
class Draws:
    """The shared randomness at which likelihoods are estimated: the same for policy and reference, for chosen and rejected."""

    masks: dict[Modality, Tensor]
    """bool [draw, batch, n]: which tokens of the modality are hidden."""
    counted: dict[Modality, Tensor]
    """bool [draw, batch, n]: which of them count; all but those of later blocks."""
    weights: dict[Modality, Tensor]
    """float32 [draw, batch]: importance weight of the draw, 1 / share of counted tokens."""
    image_rows: ImageRows = "codes"
    times: Tensor | None = None
    """float32 [draw, batch]: of a continuous image, the time at which it is seen, 0 = noise, 1 = clean."""
    noise: Tensor | None = None
    """float32 [draw, batch, n, d]: of a continuous image, the noise that it is mixed with."""

    def __len__(self) -> int:
        return len(next(iter(self.weights.values())))

    def __iter__(self) -> Iterator["Draws"]:
        """The draws one by one, each a Draws of length 1: what draw-by-draw accumulation loops over."""
        for i in range(len(self)):
            yield self._at((slice(i, i + 1),))

    def rows(self, index: Tensor) -> "Draws":
        """The draws of some of the batch's rollouts."""
        return self._at((slice(None), index))

    def joined(self, others: Sequence["Draws"]) -> "Draws":
        """With the modalities of others, which drew for the same rollouts."""
        found = self
        for other in others:
            masks, counted, weights = found.masks | other.masks, found.counted | other.counted, found.weights | other.weights
            times = found.times if other.times is None else other.times
            found = replace(
                other,
                masks=masks,
                counted=counted,
                weights=weights,
                times=times,
                noise=other.noise if other.noise is not None else found.noise,
            )
        return found

    def _at(self, place: tuple[slice | Tensor, ...]) -> "Draws":
        masks, counted, weights = ({m: x[place] for m, x in part.items()} for part in (self.masks, self.counted, self.weights))
        times, noise = (None if x is None else x[place] for x in (self.times, self.noise))
        return Draws(masks, counted, weights, self.image_rows, times, noise)


@dataclass(frozen=True, slots=True)
class StepTokens:
    """Exact conditional log-probabilities of the tokens committed at recorded steps, of one modality."""

    logprob: Tensor
    """float32 [batch, step, n]: log-probability of token i given the sequence before the step; 0 where not committed at it."""
    committed: Tensor
    """bool [batch, step, n]: which tokens were committed at the step."""
    behaviour: Tensor
    """float32 [batch, step, n]: the same log-probabilities as the sampler recorded them; 0 where not committed."""

    @classmethod
    def joined(cls, parts: Sequence["StepTokens"]) -> "StepTokens":
        """Those of several segments, one behind the other."""
        if len(parts) == 1:
            return parts[0]
        return cls(*(torch.cat([getattr(part, name) for part in parts], -1) for name in ("logprob", "committed", "behaviour")))


@dataclass(frozen=True, slots=True)
class DrawTokens:
    """What one draw tells of the tokens of one modality that it counts."""

    logprob: Tensor
    """float32 [batch, n]: what each adds to the likelihood, its log-probability where the policy has one; 0 at the others."""
    velocities: Tensor | None = None
    """float32 [batch, n, d]: of a continuous image, those that the policy predicts."""

    @classmethod
    def joined(cls, parts: Sequence["DrawTokens"]) -> "DrawTokens":
        """Those of several segments, one behind the other."""
        if len(parts) == 1:
            return parts[0]
        velocities = [part.velocities for part in parts if part.velocities is not None]
        return cls(torch.cat([part.logprob for part in parts], 1), torch.cat(velocities, 1) if velocities else None)

    def divergence(self, reference: "DrawTokens") -> Tensor:
        """How far each token is from what another policy says at the same draw, float32 [batch, n]; 0 where it is not counted.

        k3 for tokens of a vocabulary. For continuous ones the squared difference of velocities, the mean over a token's numbers, in the
        unit of the flow-matching loss. But for a factor that depends on the time alone it is the KL of a step of the SDE.
        """
        if self.velocities is None or reference.velocities is None:
            return k3(self.logprob, reference.logprob)
        return (self.velocities - reference.velocities).square().mean(2)
