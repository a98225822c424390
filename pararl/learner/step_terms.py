"""Likelihoods of a batch at its recorded steps: the exact conditionals of the tokens that were committed there."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from pararl.learner.accumulate import Part
from pararl.learner.reference import Reference
from pararl.learner.tables import Table, check_densities, chunks, longest, step_records, step_table
from pararl.learner.terms import Likelihoods, TokenTerms
from pararl.types import Metrics
from policies import Batch, Policy


class StepTerms:
    """See ``Terms``. A part is the log-probabilities of some rollouts, float32 [rows, step, modality, n]."""

    linear = False

    def __init__(self, policy: Policy, batch: Batch, micro: int, version: int) -> None:
        """``micro``: sequences of a part. ``version``: of the policy as it is. Raises ValueError as ``check_densities`` does."""
        check_densities(batch)
        self.policy, self.width = policy, longest(batch)
        self.chunks = chunks(batch, micro)
        records = [step_records(policy, chunk, self.width) for chunk in self.chunks]
        self.behaviour = [behaviour.to(policy.device) for behaviour, _ in records]
        self.committed = torch.cat([committed for _, committed in records]).to(policy.device)
        self.on_policy = all(r.version == version for r in batch)
        self._gaps: list[float] = []

    @property
    def empty(self) -> bool:
        return not self.committed.any()  # nothing but fill at the recorded steps

    def reference(self, reference: Reference) -> Likelihoods:
        """Those that the sampler recorded where it was the reference, which saves the forward."""
        found = []
        for chunk, behaviour in zip(self.chunks, self.behaviour, strict=True):
            if any(r.version != reference.version for r in chunk):
                with torch.no_grad(), reference.active():
                    behaviour = step_table(self.policy, chunk, self.width).logprob
            found.append(behaviour)
        return self.likelihoods(found)

    def parts(self) -> list[Part]:
        return [partial(self._part, chunk) for chunk in self.chunks]

    def known(self) -> list[Tensor] | None:
        """Where the policy is still the one that sampled, the sampler's own record is the first pass."""
        return self.behaviour if self.on_policy else None

    def likelihoods(self, parts: Sequence[Tensor]) -> Likelihoods:
        table = Table(torch.cat(list(parts)), torch.cat(self.behaviour), self.committed)
        return Likelihoods(table.levels(table.logprob), tokens=TokenTerms(table.logprob, table.committed, table.behaviour))

    def metrics(self) -> Metrics:
        """What the policy says now against what its sampler said: anything but rounding means that they are not the same model.

        No gap where no part had a gradient: every advantage may stand at a step that committed nothing but fill.
        """
        return {"sync/logprob_gap": max(self._gaps)} if self.on_policy and self._gaps else {}

    def _part(self, chunk: Batch) -> Tensor:
        table = step_table(self.policy, chunk, self.width)
        if table.committed.any():
            self._gaps.append((table.logprob.detach() - table.behaviour)[table.committed].abs().max().item())
        return table.logprob
