"""The objectives: pure functions of what policy and reference say of a batch and of what it teaches, each giving a loss and its metrics."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pararl.arms import ArmSpec
from pararl.config import LearnerConfig
from pararl.learner.credit import Signal
from pararl.learner.losses import accuracy, clipped_loss, draw_mean, likelihood_loss, preference_loss, weighted_loss
from pararl.learner.terms import Likelihoods, TokenTerms
from pararl.types import MODALITIES, Metrics

Loss = Callable[[Likelihoods, Likelihoods | None, Signal, LearnerConfig], tuple[Tensor, Metrics]]
"""Of policy, reference (None where ``Objective.reference`` wants none), signal and settings."""


@dataclass(frozen=True, slots=True)
class Objective:
    """A loss and what it asks of the learner."""

    loss: Loss
    reference: Callable[[LearnerConfig], bool]
    """Whether it compares with a reference under some settings."""
    refreshes: bool = False
    """Whether ``learner.reference_every`` refreshes that reference. A KL penalty is to the base: to the policy of the last update, which
    sampled the batch, its gradient would be 0."""
    tokens: bool = False
    """Whether it is about single tokens."""


def modality_weights(config: LearnerConfig) -> dict[str, float]:
    """The weight of each modality in a sum over modalities."""
    return {"text": config.text_weight, "image": config.image_weight}


def weigh(per_modality: Tensor, config: LearnerConfig) -> Tensor:
    """Weighted sum over the last, modality axis."""
    weights = modality_weights(config)
    return per_modality @ torch.tensor([weights[m] for m in MODALITIES], device=per_modality.device)


def preference(policy: Likelihoods, reference: Likelihoods | None, signal: Signal, config: LearnerConfig) -> tuple[Tensor, Metrics]:
    """DPO on the log-ratios of each pair at the level at which it was compared, and ``learner.nll`` times the chosen sides' NLL."""
    assert reference is not None
    loglik = weigh(policy.loglik, config)
    ratio = against = loglik - weigh(reference.loglik, config)
    if policy.rejected is not None and reference.rejected is not None:
        against = weigh(policy.rejected - reference.rejected, config)
    level = torch.tensor([ratio.shape[1] - 1 if p.step is None else p.step for p in signal.pairs])
    chosen, rejected = torch.tensor([p.chosen for p in signal.pairs]), torch.tensor([p.rejected for p in signal.pairs])
    weights = torch.tensor([p.margin if p.weight is None else p.weight for p in signal.pairs], device=ratio.device)
    loss, metrics = preference_loss(ratio[chosen, level], against[rejected, level], config.beta, weights)
    # Against a reference that is the policy itself, margins are 0: how the policy ranks the pairs without one is logged beside them.
    gaps = (loglik[chosen, level] - loglik[rejected, level]).detach()
    metrics |= {"loss/likelihood_margin": gaps.mean().item(), "loss/likelihood_accuracy": accuracy(gaps)}
    if config.nll:
        anchor = -loglik[chosen.unique(), -1].mean()
        loss = loss + config.nll * anchor
        metrics["loss/nll"] = anchor.item()
    return loss, metrics


def group_relative(policy: Likelihoods, reference: Likelihoods | None, signal: Signal, config: LearnerConfig) -> tuple[Tensor, Metrics]:
    """Every token times its group-normalised advantage, less ``learner.kl`` times how far it is from the base.

    At recorded steps Eq. 3 of arXiv 2511.09611, each step with its own advantage: the last level, the final output, has no tokens. At draws
    all have the final output's. Modalities are normalised by their own tokens and weighed, so that the longer does not swamp the shorter.
    """
    tokens, advantages = policy.tokens, signal.advantages
    assert tokens is not None and advantages is not None
    divergence = tokens.divergence(None if reference is None else reference.tokens)
    loss = torch.zeros((), device=tokens.logprob.device)
    metrics: Metrics = {}
    for m, modality in enumerate(MODALITIES):
        if not tokens.counted[:, :, m].any():
            continue
        part, more = _surrogate(tokens, advantages, m, config.clip_ratio)
        metrics |= {f"{name}_{modality}": value for name, value in more.items()}
        if divergence is not None:
            penalty = _penalty(tokens, divergence, m)
            part = part + config.kl * penalty
            metrics[f"loss/kl_penalty_{modality}"] = penalty.item()
        loss = loss + modality_weights(config)[modality] * part
    return loss, metrics


def _surrogate(tokens: TokenTerms, advantages: Tensor, m: int, clip: float) -> tuple[Tensor, Metrics]:
    logprob, counted = tokens.logprob[:, :, m], tokens.counted[:, :, m]
    if tokens.behaviour is None:
        return weighted_loss(logprob, advantages[:, -1:, m], counted), {}
    return clipped_loss(logprob, tokens.behaviour[:, :, m], advantages[:, :-1, m], counted, clip)


def _penalty(tokens: TokenTerms, divergence: Tensor, m: int) -> Tensor:
    """At steps the mean over all tokens, at draws over the tokens of each draw first."""
    counted = tokens.counted[:, :, m]
    return draw_mean(divergence[:, :, m], counted) if tokens.behaviour is None else divergence[:, :, m][counted].mean()


def likelihood(policy: Likelihoods, reference: Likelihoods | None, signal: Signal, config: LearnerConfig) -> tuple[Tensor, Metrics]:
    """Negative log-likelihood of the final outputs, which are the best of their groups."""
    return likelihood_loss(weigh(policy.loglik, config)[:, -1])


OBJECTIVES: dict[str, Objective] = {
    "preference": Objective(preference, reference=lambda config: True, refreshes=True),
    "grpo": Objective(group_relative, reference=lambda config: config.kl > 0, tokens=True),
    "best": Objective(likelihood, reference=lambda config: False),
}
"""By ``ArmSpec.objective``."""


def check(config: LearnerConfig, arm: ArmSpec) -> None:
    """Raise ValueError where an arm's objective and a likelihood do not go together."""
    if config.likelihood == "elbo" and arm.reward == "step" and not OBJECTIVES[arm.objective].tokens:
        raise ValueError("an ELBO is the likelihood of a whole output: this arm learns from steps, use learner.likelihood steps")
    if config.negatives == "spg" and (config.likelihood != "elbo" or arm.objective != "preference"):
        raise ValueError("learner.negatives spg is about the rejected sides of pairs measured by ELBOs: use learner.negatives elbo")
