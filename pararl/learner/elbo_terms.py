"""The terms of a batch at shared draws: ELBOs of whole outputs and, for rejected sides, if asked, SPG's mixture with an upper bound.

Pushing an ELBO down need not push down the likelihood above it. SPG (arXiv 2510.09541) therefore measures what it pushes down by
``w EUBO + (1 - w) ELBO``. The EUBO is a sum of logarithms of means over draws, token by token: what the draws hand over is then the
log-probabilities of the tokens that each counts, from which both bounds are exact, while the graph of one draw is held at a time.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from pararl.config import LearnerConfig
from pararl.learner.accumulate import Part
from pararl.learner.tables import longest
from pararl.learner.terms import Metrics, Terms
from pararl.sampling import drawing_of
from pararl.types import MODALITIES, Modality
from policies import Batch, Draws, DrawTokens, Policy
from policies.likelihood.masked import eubo

Base = Callable[[], AbstractContextManager[None]]
"""Within it the policy is the base."""


@dataclass(frozen=True, slots=True)
class Forward:
    """One draw of some rollouts of one task: what one forward takes."""

    batch: Batch
    draw: Draws


class ElboTerms:
    """The draws of a batch, what each of them has to hand over, and the bounds that come of it."""

    def __init__(self, policy: Policy, batch: Batch, config: LearnerConfig, generator: torch.Generator, base: Base | None = None) -> None:
        """Takes rollouts that are side by side with those of their task. ``base``: given where divergences to it are wanted, which are
        found in the same draws."""
        tasks = [list(rows) for _, rows in groupby(range(len(batch)), lambda i: batch[i].prompt.task)]
        of_task = [batch.take(rows) for rows in tasks]
        draws = [policy.draws(part, config.draws, generator, drawing_of(config)) for part in of_task]
        self.policy, self.config, self.base = policy, config, base
        self.width = longest(batch)
        self.forwards = [
            Forward(part.take(rows.tolist()), draw.rows(rows))
            for at_once in zip(*draws, strict=True)
            for draw, part in zip(at_once, of_task, strict=True)
            for rows in torch.arange(len(part)).split(config.micro)
        ]
        self.counted = self._by_draw([self._wide(f, f.draw.counted) for f in self.forwards])

    def parts(self) -> list[Part]:
        """One a forward, float32 [rows, modality, width]; where the base is given [rows, modality, width, 2], the log-probabilities and the
        divergences."""
        return [partial(self._part, forward) for forward in self.forwards]

    def _part(self, forward: Forward) -> Tensor:
        found = self.policy.draw_tokens(forward.batch, forward.draw)
        logprob = self._wide(forward, {m: x.logprob[None] for m, x in found.items()})
        if self.base is None:
            return logprob
        base = self._of_base(forward, self.base)
        gaps = self._wide(forward, {m: x.divergence(base[m])[None] for m, x in found.items()})
        return torch.stack((logprob, gaps), -1)

    @torch.no_grad()
    def _of_base(self, forward: Forward, base: Base) -> dict[Modality, DrawTokens]:
        with base():
            return self.policy.draw_tokens(forward.batch, forward.draw)

    def terms(self, parts: Sequence[Tensor]) -> Terms:
        """See ``Evidence``, here and below."""
        found = self._by_draw(parts)
        logprob, gaps = (found, None) if self.base is None else found.unbind(-1)
        # The weight of a draw is n over how many tokens it counts, so that its ELBO per token is their mean log-probability.
        lower = (logprob.sum(-1) / self.counted.sum(-1).clamp_min(1)).mean(0)
        rejected = None
        if self.config.negatives == "spg":
            weights = self._by_draw([torch.stack([self._weight(f, m) for m in MODALITIES], 1) for f in self.forwards])
            share = self.config.spg_mix
            upper = eubo(logprob, self.counted, weights, self.config.spg_beta)
            rejected = (share * upper + (1 - share) * lower)[:, None]
        divergence = None if gaps is None else gaps.transpose(0, 1)
        return Terms(logprob.transpose(0, 1), self.counted.transpose(0, 1), lower[:, None], rejected, divergence=divergence)

    def known(self, reference: Sequence[Tensor] | None) -> list[Tensor] | None:
        return None if reference is None else list(reference)

    def shapes(self) -> list[Tensor]:
        """Zeros of the shapes of the parts."""
        pair = () if self.base is None else (2,)
        return [torch.zeros(len(f.batch), len(MODALITIES), self.width, *pair, device=self.policy.device) for f in self.forwards]

    def reference(self, version: int, as_reference: Callable[[], AbstractContextManager[None]]) -> list[Tensor]:
        with as_reference():
            return [part() for part in self.parts()]

    def metrics(self) -> Metrics:
        """None: nobody recorded what a draw would say."""
        return {}

    def _by_draw(self, parts: Sequence[Tensor]) -> Tensor:
        """Parts of all forwards, [rows, ...] each, as [draw, batch, ...]."""
        return torch.cat(list(parts)).unflatten(0, (self.config.draws, -1))

    def _wide(self, forward: Forward, values: dict[Modality, Tensor]) -> Tensor:
        """Values of one draw, [1, rows, n] per modality, as [rows, modality, width]; 0 where there is no token."""
        some = next(iter(values.values()))
        absent = some.new_zeros(len(forward.batch), self.width)
        columns = [F.pad(values[m][0], (0, self.width - values[m].shape[-1])) if m in values else absent for m in MODALITIES]
        return torch.stack(columns, 1)

    def _weight(self, forward: Forward, modality: Modality) -> Tensor:
        weights = forward.draw.weights
        return weights[modality][0] if modality in weights else torch.ones(len(forward.batch), device=self.policy.device)
