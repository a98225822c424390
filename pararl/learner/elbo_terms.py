"""Likelihoods of whole outputs at shared draws: a lower bound, and for rejected sides, if asked, SPG's mixture with an upper one.

Pushing an ELBO down need not push down the likelihood above it. SPG (arXiv 2510.09541) therefore measures what it pushes down by
``w EUBO + (1 - w) ELBO``. The EUBO is a sum of logarithms of means over draws, token by token: what the draws hand over is then the
log-probabilities of the tokens that each counts, from which both bounds are exact, while the graph of one draw is held at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from pararl.config import LearnerConfig
from pararl.learner.accumulate import Part
from pararl.sampling import drawing_of
from pararl.types import MODALITIES, Modality, Rollout
from policies import Draws, Policy
from policies.likelihood.masked import eubo


@dataclass(frozen=True, slots=True)
class Bounds:
    """Log-likelihoods of a batch in nats per token, each float32 [batch, modality]."""

    lower: Tensor
    """The ELBO: what chosen sides are measured by."""
    rejected: Tensor
    """What rejected sides are measured by: the same, or the mixture."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One draw of some rollouts of one task: what one forward takes."""

    rollouts: list[Rollout]
    draw: Draws


class Evidence:
    """The draws of a batch, what each of them has to hand over, and the bounds that come of it."""

    def __init__(self, policy: Policy, rollouts: Sequence[Rollout], config: LearnerConfig, generator: torch.Generator) -> None:
        """Takes rollouts that are side by side with those of their task."""
        batches = [list(batch) for _, batch in groupby(rollouts, lambda r: r.prompt.task)]
        draws = [policy.draws(batch, config.draws, generator, drawing_of(config)) for batch in batches]
        self.policy, self.config = policy, config
        self.width = max(len(s.tokens) for r in rollouts for s in r.segments)
        self.cells = [
            Cell([batch[i] for i in some], draw.rows(some))
            for at_once in zip(*draws, strict=True)
            for draw, batch in zip(at_once, batches, strict=True)
            for some in torch.arange(len(batch)).split(config.micro)
        ]

    def parts(self) -> list[Part]:
        """One per cell: its ELBO, float32 [rows, modality]; for the mixture its log-probabilities, float32 [rows, modality, width]."""
        part = self._tokens if self.config.negatives == "spg" else self._elbo
        return [partial(part, cell) for cell in self.cells]

    def bounds(self, parts: Sequence[Tensor]) -> Bounds:
        """From what the parts gave."""
        by_draw = self._by_draw(parts)
        if self.config.negatives == "elbo":
            mean = by_draw.mean(0)
            return Bounds(mean, mean)
        counted = self._by_draw([self._wide(cell, cell.draw.counted) for cell in self.cells])
        # The weight of a draw is n over how many tokens it counts, so that its ELBO per token is their mean log-probability.
        lower = (by_draw.sum(-1) / counted.sum(-1).clamp_min(1)).mean(0)
        weights = self._by_draw([torch.stack([self._weight(cell, m) for m in MODALITIES], 1) for cell in self.cells])
        share = self.config.spg_mix
        return Bounds(lower, share * eubo(by_draw, counted, weights, self.config.spg_beta) + (1 - share) * lower)

    def _by_draw(self, parts: Sequence[Tensor]) -> Tensor:
        """Parts of all cells, [rows, ...] each, as [draw, batch, ...]."""
        return torch.cat(list(parts)).unflatten(0, (self.config.draws, -1))

    def _elbo(self, cell: Cell) -> Tensor:
        return self.policy.log_likelihood(cell.rollouts, cell.draw)

    def _tokens(self, cell: Cell) -> Tensor:
        return self._wide(cell, {m: x.logprob[None] for m, x in self.policy.draw_tokens(cell.rollouts, cell.draw).items()})

    def _wide(self, cell: Cell, values: dict[Modality, Tensor]) -> Tensor:
        """Values of one draw, [1, rows, n] per modality, as [rows, modality, width]; 0 where there is no token."""
        some = next(iter(values.values()))
        absent = some.new_zeros(len(cell.rollouts), self.width)
        columns = [F.pad(values[m][0], (0, self.width - values[m].shape[-1])) if m in values else absent for m in MODALITIES]
        return torch.stack(columns, 1)

    def _weight(self, cell: Cell, modality: Modality) -> Tensor:
        weights = cell.draw.weights
        return weights[modality][0] if modality in weights else torch.ones(len(cell.rollouts), device=self.policy.device)
