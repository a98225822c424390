"""The objectives: what the terms of the policy and of its reference say of a batch becomes a loss, by what its scores teach.

Pure functions; log-likelihoods are in nats per token, larger is more likely, and a loss is to be minimised.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pararl.config import LearnerConfig
from pararl.learner.losses import accuracy, clipped_loss, likelihood_loss, preference_loss, rollout_mean, weighted_loss
from pararl.learner.prefer import Feedback
from pararl.learner.terms import Metrics, Terms
from pararl.types import MODALITIES, Modality
from policies.likelihood.kl import k3


@dataclass(frozen=True, slots=True)
class Taught:
    """What a batch teaches, as tensors."""

    feedback: Feedback
    """With the places of this batch."""
    credit: Mapping[Modality, Tensor]
    """By modality what is added to the advantages of its tokens, float32 [batch, n]; nothing where there is none."""
    config: LearnerConfig

    def weigh(self, per_modality: Tensor) -> Tensor:
        """Weighted sum over the last, modality axis."""
        return per_modality @ torch.tensor([self.weight(m) for m in MODALITIES], device=per_modality.device)

    def weight(self, modality: Modality) -> float:
        """Of a modality in the sum of both."""
        return {"text": self.config.text_weight, "image": self.config.image_weight}[modality]


Objective = Callable[[Terms, Terms | None, Taught], tuple[Tensor, Metrics]]
"""(of the policy, of the reference, what is taught) -> loss and its metrics."""


def preference(policy: Terms, reference: Terms | None, taught: Taught) -> tuple[Tensor, Metrics]:
    """DPO on the pairs, each at the level at which its sides were compared."""
    assert reference is not None
    config, pairs = taught.config, taught.feedback.pairs
    levels, base = taught.weigh(policy.levels), taught.weigh(reference.levels)
    ratio = against = levels - base
    if policy.rejected is not None and reference.rejected is not None:
        against = taught.weigh(policy.rejected - reference.rejected)
    column = torch.tensor([ratio.shape[1] - 1 if p.step is None else p.step for p in pairs])
    chosen, rejected = torch.tensor([p.chosen for p in pairs]), torch.tensor([p.rejected for p in pairs])
    weights = torch.tensor([p.margin if p.weight is None else p.weight for p in pairs], device=ratio.device)
    loss, metrics = preference_loss(ratio[chosen, column], against[rejected, column], config.beta, weights)
    # Against a reference that is the policy itself, margins are 0: how the policy ranks the pairs without one is logged beside them.
    gaps = (levels[chosen, column] - levels[rejected, column]).detach()
    metrics["loss/likelihood_margin"] = gaps.mean().item()
    metrics["loss/likelihood_accuracy"] = accuracy(gaps)
    if config.nll:
        anchor = -levels[chosen.unique(), -1].mean()
        loss = loss + config.nll * anchor
        metrics["loss/nll"] = anchor.item()
    return loss, metrics


def group_relative(policy: Terms, reference: Terms | None, taught: Taught) -> tuple[Tensor, Metrics]:
    """Eq. 3 of MMaDA-Parallel at the recorded steps of each modality, each with its own advantage; with draws that of the final output.

    Modalities are normalised by their own tokens and weighed, so that the longer does not swamp the shorter. With draws the policy is the
    one that sampled, whose ratios are 1: every token's part of the ELBO counts times its advantage (UDM-GRPO, arXiv 2604.18518).
    """
    assert taught.feedback.advantages is not None
    config, device = taught.config, policy.logprob.device
    advantages = torch.from_numpy(taught.feedback.advantages).to(device)
    # The last column is that of the final output, which has no step of its own.
    per_step = advantages[:, :-1, None] if policy.behaviour is not None else advantages[:, -1:, None]
    loss, metrics = torch.zeros((), device=device), Metrics()
    for m, modality in enumerate(MODALITIES):
        logprob, counted = policy.logprob[:, :, m], policy.counted[:, :, m]
        if not counted.any():
            continue
        credit = taught.credit.get(modality)
        advantage = per_step if credit is None else per_step + credit[:, None]
        if policy.behaviour is None:
            part, more = weighted_loss(logprob, advantage, counted), Metrics()
        else:
            part, more = clipped_loss(logprob, policy.behaviour[:, :, m], advantage, counted, config.clip_ratio)
        if config.kl:
            penalty = kl_penalty(policy, reference, m)
            part = part + config.kl * penalty
            metrics[f"loss/kl_penalty_{modality}"] = penalty.item()
        loss = loss + taught.weight(modality) * part
        metrics |= {f"{name}_{modality}": value for name, value in more.items()}
    return loss, metrics


def kl_penalty(policy: Terms, reference: Terms | None, m: int) -> Tensor:
    """The KL to the base of a modality: the mean over its tokens at the recorded steps; with draws that over the tokens of each rollout,
    and then over rollouts."""
    counted = policy.counted[:, :, m]
    if policy.divergence is not None:
        return rollout_mean(policy.divergence[:, :, m], counted)
    assert reference is not None
    return k3(policy.logprob[:, :, m], reference.logprob[:, :, m])[counted].mean()


def likelihood(policy: Terms, reference: Terms | None, taught: Taught) -> tuple[Tensor, Metrics]:
    """The likelihood of the best of each group, which are the batch."""
    return likelihood_loss(taught.weigh(policy.levels)[:, -1])


OBJECTIVES: dict[str, Objective] = {"preference": preference, "grpo": group_relative, "best": likelihood}
"""By ``ArmSpec.objective``."""
