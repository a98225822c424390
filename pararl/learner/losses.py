"""The losses: pure functions of log-likelihoods, each with its metrics beside it.

Conventions: log-likelihoods are in nats per token, larger is more likely; a loss is to be minimised.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pararl.types import Metrics


def preference_loss(chosen: Tensor, rejected: Tensor, beta: float, weights: Tensor) -> tuple[Tensor, Metrics]:
    """DPO's sigmoid loss, ``-sum_p w_p log sigma(beta (chosen_p - rejected_p)) / sum_p w_p``.

    ``chosen`` and ``rejected`` [pair] are log-ratios to the reference, log pi - log pi_ref; ``weights`` [pair] > 0 (the margins, or ones).
    At zero log-ratios and with all pairs of a group weighted by margin its gradient is a policy gradient with the group mean as its
    baseline.
    Source: Rafailov et al. 2023 (arXiv 2305.18290, Eq. 7).
    """
    margin = beta * (chosen - rejected)
    share = weights / weights.sum()
    loss = -(share * F.logsigmoid(margin)).sum()
    metrics = {
        "loss/chosen": beta * (share * chosen.detach()).sum().item(),
        "loss/rejected": beta * (share * rejected.detach()).sum().item(),
        "loss/margin": (share * margin.detach()).sum().item(),
        "loss/accuracy": accuracy(margin.detach()),
    }
    return loss, metrics


def accuracy(margins: Tensor) -> float:
    """Share of margins [pair] that are positive, a tie counting half."""
    return ((margins > 0).float() + 0.5 * (margins == 0).float()).mean().item()


def clipped_loss(logprob: Tensor, behaviour: Tensor, advantage: Tensor, committed: Tensor, clip: float) -> tuple[Tensor, Metrics]:
    """ParaRL's surrogate, Eq. 3 of arXiv 2511.09611: ``-mean_{i,t} 1/|tau_i(t)| sum_{o in tau_i(t)} min(r A, clip(r, 1 - eps, 1 + eps)
    A)``.

    ``logprob`` and ``behaviour`` [batch, step, n] of the tokens committed at each step (``committed`` bool, same shape, true somewhere)
    under the policy and under the policy that sampled them; ``advantage`` [batch, step, 1], or [batch, step, n] where every token has
    its own. The mean over t is over the steps of rollout i
    that committed something, the mean over i over the rollouts that have such a step: a word that answers a question weighs as much as
    a long plan.
    """
    ratio = (logprob - behaviour).exp()
    gain = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
    tokens = committed.sum(-1)
    per_step = (gain * committed).sum(-1) / tokens.clamp_min(1)
    inside = ratio.detach()[committed]
    metrics = {
        "loss/ratio": inside.mean().item(),
        "loss/clipped": ((inside - 1).abs() > clip).float().mean().item(),
    }
    steps = (tokens > 0).sum(1)
    return -(per_step.sum(1) / steps.clamp_min(1)).sum() / (steps > 0).sum(), metrics


def draw_mean(values: Tensor, counted: Tensor) -> Tensor:
    """Mean of values [batch, draw, n], 0 where a token does not count, over the tokens of a draw, then over draws that count any.

    ``counted`` bool [batch, draw, n], true somewhere.
    """
    tokens = counted.sum(-1)
    return (values.sum(-1) / tokens.clamp_min(1)).sum() / (tokens > 0).sum()


def weighted_loss(logprob: Tensor, advantage: Tensor, counted: Tensor) -> Tensor:
    """Every token's part of an ELBO times its advantage, ``-draw_mean(A log p)``: linear in ``logprob`` [batch, draw, n].

    ``advantage`` [batch, 1, n] and ``counted`` as in ``draw_mean``. Its gradient is that of Eq. 3 where the policy is the one that
    sampled, with the ELBO of the final output in place of conditionals at steps. Source: UDM-GRPO (arXiv 2604.18518).
    """
    return -draw_mean(advantage * logprob, counted)


def likelihood_loss(loglik: Tensor) -> tuple[Tensor, Metrics]:
    """Negative log-likelihood of chosen rollouts, ``-mean(loglik)`` for loglik [batch]: best-of-n fine-tuning."""
    return -loglik.mean(), {"loss/loglik": loglik.detach().mean().item()}
