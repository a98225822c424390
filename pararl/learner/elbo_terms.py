"""Likelihoods of whole outputs at shared draws: a lower bound, and for rejected sides, if asked, SPG's mixture with an upper one.

Pushing an ELBO down need not push down the likelihood above it. SPG (arXiv 2510.09541) therefore measures what it pushes down by
``w EUBO + (1 - w) ELBO``. The EUBO is a sum of logarithms of means over draws, token by token. So each draw hands over the
log-probabilities of the tokens that it counts. Both bounds are exact from these, while the graph of one draw is held at a time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from pararl.config import LearnerConfig
from pararl.learner.accumulate import Part
from pararl.learner.reference import Reference
from pararl.learner.tables import longest
from pararl.learner.terms import Likelihoods, TokenTerms
from pararl.sampling import drawing_of
from pararl.types import MODALITIES, Metrics, Modality
from policies import Batch, Draws, DrawTokens, Policy
from policies.likelihood.masked import eubo


@dataclass(frozen=True, slots=True)
class DrawChunk:
    """One draw of some rollouts of one task: what one forward takes."""

    batch: Batch
    draw: Draws


class ElboTerms:
    """See ``Terms``. A part is of one draw of some rollouts of a task: its ELBO, float32 [rows, modality]. Or per token, where the
    objective or SPG needs that, [rows, 1, modality, n], with the divergence from the reference [rows, 2, modality, n]."""

    empty = False

    def __init__(self, policy: Policy, batch: Batch, config: LearnerConfig, generator: torch.Generator, version: int, tokens: bool) -> None:
        """Takes rollouts that are side by side with those of their task. ``version``: of the policy as it is. ``tokens``: whether the
        objective is about single tokens."""
        self.policy, self.config, self.version = policy, config, version
        self.width, self.linear = longest(batch), tokens
        self.per_token = tokens or config.negatives == "spg"
        groups = [batch.take(list(index)) for _, index in groupby(range(len(batch)), lambda i: batch[i].prompt.task)]
        draws = [policy.draws(group, config.draws, generator, drawing_of(config)) for group in groups]
        pieces = [[(group.take(some.tolist()), some) for some in torch.arange(len(group)).split(config.micro)] for group in groups]
        self.chunks = [
            DrawChunk(some, draw.rows(index))
            for at_once in zip(*draws, strict=True)
            for draw, of_group in zip(at_once, pieces, strict=True)
            for some, index in of_group
        ]
        self._reference: Reference | None = None
        self._found: list[Tensor] = []
        """The parts under the reference."""

    def reference(self, reference: Reference) -> Likelihoods | None:
        """Where the objective is linear, each part compares with the reference at its own draw. What that says of all draws at once,
        velocities of images too, would grow with their number."""
        if not self.linear:
            with torch.no_grad(), reference.active():
                self._found = [part() for part in self.parts()]
        self._reference = reference
        return None if self.linear else self.likelihoods(self._found)

    def parts(self) -> list[Part]:
        if self.per_token:
            return [partial(self._tokens, chunk) for chunk in self.chunks]
        return [partial(self.policy.log_likelihood, chunk.batch, chunk.draw) for chunk in self.chunks]

    def known(self) -> list[Tensor] | None:
        """A reference that was refreshed after the last update is the policy itself: its pass is the first pass too."""
        if self.linear:
            shape = (1 if self._reference is None else 2, len(MODALITIES), self.width)
            return [torch.zeros(len(chunk.batch), *shape, device=self.policy.device) for chunk in self.chunks]
        return self._found if self._reference is not None and self._reference.is_policy(self.version) else None

    def likelihoods(self, parts: Sequence[Tensor]) -> Likelihoods:
        by_draw = self._by_draw(parts)
        if not self.per_token:
            elbo = by_draw.mean(0)[:, None]
            return Likelihoods(elbo, rejected=elbo)  # for both sides, as SPG's are: log-ratios keep their last bit
        logprob, *moved = by_draw.unbind(2)
        counted = self._by_draw([self._wide(chunk, chunk.draw.counted) for chunk in self.chunks])
        # The weight of a draw is n over how many tokens it counts, so that its ELBO per token is their mean log-probability.
        lower = (logprob.sum(-1) / counted.sum(-1).clamp_min(1)).mean(0)
        tokens = TokenTerms(logprob.transpose(0, 1), counted.transpose(0, 1), moved=moved[0].transpose(0, 1) if moved else None)
        rejected = self._mixture(logprob, counted, lower) if self.config.negatives == "spg" else lower
        return Likelihoods(lower[:, None], rejected[:, None], tokens)

    def metrics(self) -> Metrics:
        return {}

    def _mixture(self, logprob: Tensor, counted: Tensor, lower: Tensor) -> Tensor:
        weights = self._by_draw([torch.stack([self._weight(chunk, m) for m in MODALITIES], 1) for chunk in self.chunks])
        share = self.config.spg_mix
        return share * eubo(logprob, counted, weights, self.config.spg_beta) + (1 - share) * lower

    def _by_draw(self, parts: Sequence[Tensor]) -> Tensor:
        """Parts of all chunks, [rows, ...] each, as [draw, batch, ...]."""
        return torch.cat(list(parts)).unflatten(0, (self.config.draws, -1))

    def _tokens(self, chunk: DrawChunk) -> Tensor:
        base = self._compared(chunk, self._reference) if self.linear and self._reference is not None else None
        own = self.policy.draw_tokens(chunk.batch, chunk.draw)
        logprob = self._wide(chunk, {m: x.logprob[None] for m, x in own.items()})
        if base is None:
            return logprob[:, None]
        return torch.stack((logprob, self._wide(chunk, {m: own[m].divergence(base[m])[None] for m in own})), 1)

    @torch.no_grad()
    def _compared(self, chunk: DrawChunk, reference: Reference) -> dict[Modality, DrawTokens]:
        with reference.active():
            return self.policy.draw_tokens(chunk.batch, chunk.draw)

    def _wide(self, chunk: DrawChunk, values: Mapping[Modality, Tensor]) -> Tensor:
        """Values of one draw, [1, rows, n] per modality, as [rows, modality, width]; 0 where there is no token."""
        some = next(iter(values.values()))
        absent = some.new_zeros(len(chunk.batch), self.width)
        columns = [F.pad(values[m][0], (0, self.width - values[m].shape[-1])) if m in values else absent for m in MODALITIES]
        return torch.stack(columns, 1)

    def _weight(self, chunk: DrawChunk, modality: Modality) -> Tensor:
        weights = chunk.draw.weights
        return weights[modality][0] if modality in weights else torch.ones(len(chunk.batch), device=self.policy.device)
