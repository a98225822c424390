"""The terms of a batch at its recorded steps: exact conditionals of the tokens committed at each."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial

import torch
from torch import Tensor

from pararl.learner.accumulate import Part
from pararl.learner.tables import Table, check_densities, longest, step_records, step_table
from pararl.learner.terms import Metrics, Terms
from policies import Batch, Policy


class StepTerms:
    """A batch in chunks whose recorded steps are so many sequences."""

    def __init__(self, policy: Policy, batch: Batch, micro: int, on_policy: bool) -> None:
        """``micro``: sequences of a forward. ``on_policy``: whether the policy is still the one that sampled the batch: its sampler's own
        record is then the first pass, and how far the second is from it is told as ``sync/logprob_gap``.

        Raises ValueError where the steps of the batch have no densities.
        """
        check_densities(batch)
        self.policy, self.on_policy = policy, on_policy
        self.chunks = chunked(batch, micro)
        self.width = longest(batch)
        self.records = [tuple(x.to(policy.device) for x in step_records(policy, chunk, self.width)) for chunk in self.chunks]
        self.behaviour, self.committed = (torch.cat([record[i] for record in self.records]) for i in range(2))
        self.gaps: list[float] = []

    def parts(self) -> list[Part]:
        """One a chunk, float32 [rows, step, modality, width]."""
        return [partial(self._part, chunk) for chunk in self.chunks]

    def _part(self, chunk: Batch) -> Tensor:
        table = step_table(self.policy, chunk, self.width)
        if table.committed.any():
            self.gaps.append((table.logprob.detach() - table.behaviour)[table.committed].abs().max().item())
        return table.logprob

    def terms(self, parts: Sequence[Tensor]) -> Terms:
        """See ``Evidence``, here and below."""
        table = Table(torch.cat(list(parts)), self.behaviour, self.committed)
        return Terms(table.logprob, self.committed, table.levels(table.logprob), behaviour=self.behaviour)

    def known(self, reference: Sequence[Tensor] | None) -> list[Tensor] | None:
        return [behaviour for behaviour, _ in self.records] if self.on_policy else None

    def reference(self, version: int, as_reference: Callable[[], AbstractContextManager[None]]) -> list[Tensor]:
        """What the sampler recorded where it was the reference, which saves the forward."""
        found = []
        for chunk, (behaviour, _) in zip(self.chunks, self.records, strict=True):
            if all(rollout.version == version for rollout in chunk):
                found.append(behaviour)
            else:
                with as_reference():
                    found.append(step_table(self.policy, chunk, self.width).logprob)
        return found

    def metrics(self) -> Metrics:
        """What the policy says now against what its sampler said: anything but rounding means that they are not one model. No gap where
        no part had a gradient: every advantage may stand at a step that committed nothing but fill."""
        return {"sync/logprob_gap": max(self.gaps)} if self.on_policy and self.gaps else {}


def chunked(batch: Batch, micro: int) -> list[Batch]:
    """So many rollouts together that their recorded steps are ``micro`` sequences; one at least."""
    count = max(1, micro // len(batch[0].recorded))
    return [batch.take(range(i, min(i + count, len(batch)))) for i in range(0, len(batch), count)]
