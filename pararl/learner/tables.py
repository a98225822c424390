"""The log-probabilities of a batch at its recorded steps, under the policy as it is and as its sampler recorded them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pararl.types import MODALITIES, Latents, Metrics, Rollout
from policies import Batch, Policy
from policies.likelihood.kl import k3


@dataclass(frozen=True, slots=True)
class Table:
    """Log-probabilities of the tokens of a batch at its recorded steps; the modality axis follows MODALITIES."""

    logprob: Tensor
    """float32 [batch, step, modality, n]; 0 where nothing was committed."""
    behaviour: Tensor
    """The same as recorded by the sampler."""
    committed: Tensor
    """bool, same shape: which tokens were committed at the step, without the fill behind the end of a text."""

    def levels(self, logprob: Tensor) -> Tensor:
        """Means of ``logprob``, [batch, step + 1, modality]: over the tokens committed at each step, and last over the steps that
        committed any; 0 where none was."""
        tokens = self.committed.sum(-1)
        steps = (logprob * self.committed).sum(-1) / tokens.clamp_min(1)
        return torch.cat((steps, steps.sum(1, keepdim=True) / (tokens > 0).sum(1, keepdim=True).clamp_min(1)), 1)


def joined(tables: Sequence[Table]) -> Table:
    """The tables of the chunks of a batch as that of the batch."""
    return Table(torch.cat([t.logprob for t in tables]), torch.cat([t.behaviour for t in tables]), torch.cat([t.committed for t in tables]))


def chunks(batch: Batch, micro: int) -> list[Batch]:
    """So many rollouts together that their recorded steps are ``micro`` sequences; one at least."""
    count = max(1, micro // len(batch[0].recorded))
    return [batch.take(range(i, min(i + count, len(batch)))) for i in range(0, len(batch), count)]


def step_table(policy: Policy, batch: Batch, width: int | None = None) -> Table:
    """The table of rollouts of any tasks under the policy as it is, differentiable; n is ``width``, or that of the longest modality."""
    behaviour, committed = (x.to(policy.device) for x in step_records(policy, batch, width))
    logprob = torch.zeros_like(behaviour)
    for task in dict.fromkeys(r.prompt.task for r in batch):
        index = [i for i, r in enumerate(batch) if r.prompt.task == task]
        tokens = policy.step_tokens(batch.take(index), [batch[i].recorded for i in index])
        for modality, found in tokens.items():
            logprob[index, :, MODALITIES.index(modality), : found.logprob.shape[-1]] = found.logprob
    return Table(logprob * committed, behaviour, committed)


def longest(rollouts: Sequence[Rollout]) -> int:
    """Tokens of the longest modality of a batch, all its segments one behind the other."""
    return max(sum(len(s.tokens) for s in r.segments if s.modality == m) for r in rollouts for m in MODALITIES)


def check_densities(rollouts: Sequence[Rollout]) -> None:
    """Raise ValueError where images were sampled by an ODE, from whose steps a loss would silently learn nothing."""
    if any(isinstance(s, Latents) and not s.noise_level.all() for r in rollouts for s in r.segments):
        raise ValueError(
            "these images were sampled by an ODE, whose steps have no density: sample with noise (rollout.flow_noise), or learn from "
            "the flow-matching loss (learner.likelihood elbo)"
        )


def step_records(policy: Policy, rollouts: Sequence[Rollout], width: int | None = None) -> tuple[Tensor, Tensor]:
    """What the sampler recorded: behaviour log-probabilities and commitment, each [batch, step, modality, n], without any forward.

    Fill counts as not committed: end tokens behind the end are certain, and a mean over them too would leave little of a short answer.
    """
    shape = (len(rollouts), len(rollouts[0].recorded), len(MODALITIES), width or longest(rollouts))
    behaviour, committed = np.zeros(shape, np.float32), np.zeros(shape, bool)
    for i, rollout in enumerate(rollouts):
        ends = dict.fromkeys(MODALITIES, 0)
        for s in rollout.segments:
            now, logprob = s.at(rollout.recorded)
            now = now & ~policy.fill(s)
            start, ends[s.modality] = ends[s.modality], ends[s.modality] + len(s.tokens)
            place = (i, slice(None), MODALITIES.index(s.modality), slice(start, ends[s.modality]))
            committed[place] = now
            behaviour[place] = now * logprob
    return torch.from_numpy(behaviour), torch.from_numpy(committed)


def kl_metrics(base: Table) -> Metrics:
    """``kl/text``, ``kl/image`` and their sum ``kl/total`` in nats per token, from a table made under the base of rollouts of the
    policy (k3). Images of an ODE, whose steps have no density, are left out."""
    out = {}
    for m, modality in enumerate(MODALITIES):
        if base.committed[:, :, m].any():
            out[f"kl/{modality}"] = k3(base.behaviour[:, :, m], base.logprob[:, :, m])[base.committed[:, :, m]].mean().item()
    return out | {"kl/total": sum(out.values(), 0.0)}
