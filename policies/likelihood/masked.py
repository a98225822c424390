"""Likelihoods of masked diffusion: token log-probabilities at hidden positions, on the needed positions and vocabulary rows only."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Hidden = Callable[[Tensor, Tensor], Tensor]
Head = Callable[[Tensor], Tensor]


def hidden_token_logprobs(hidden: Tensor, head: Head, targets: Tensor, wanted: Tensor, offset: int) -> Tensor:
    """Log-probability in nats of target ids at the wanted positions, 0 elsewhere.

    ``hidden`` [batch, n, width] last hidden states of a span; ``head`` maps hidden states to logits over the rows of the modality, the
    first of which is id ``offset``; ``targets`` int64 [batch, n]; ``wanted`` bool [batch, n]. Returns float32 [batch, n].
    """
    logits = head(hidden[wanted]).float()
    picked = -F.cross_entropy(logits, targets[wanted] - offset, reduction="none")
    return torch.zeros(wanted.shape, device=hidden.device).masked_scatter(wanted, picked)


def mask_ratios(n: int, batch: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    """Mask ratios float32 [n, batch] in (low, high], stratified over the n draws of each column: one in each n-th of the range.

    Stratification removes most of the estimator's variance, which comes from the ratio (Zhu et al. 2025, arXiv 2505.19223).
    """
    jitter = torch.rand(n, batch, generator=generator)
    places = (torch.arange(n)[:, None] + 1 - jitter) / n
    return low + (high - low) * places


def hidden_sets(ratios: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Which tokens are hidden, bool [..., n], and the weight n / k of each set [...], from ratios [...] and uniforms [..., n].

    Exactly k = ceil(ratio n) tokens, any k alike. With ratios uniform on (0, 1] the weighted sum has the expectation of independent
    masks with
    weight 1 / ratio, without that weight's unbounded variance (LLaDA, arXiv 2502.09992, Eq. 6).
    """
    n = uniforms.shape[-1]
    counts = (ratios * n).ceil().clamp(1, n)
    ranks = uniforms.argsort(-1).argsort(-1)
    return ranks < counts[..., None], n / counts


def elbo(token_logprobs: Tensor, weights: Tensor) -> Tensor:
    """Per-token ELBO [batch] of one draw: ``weight * sum over hidden tokens of log p / n`` with the weight of ``hidden_sets``.

    ``token_logprobs`` [batch, n], 0 at visible tokens; its expectation over ratios in (0, 1] and independent masks is the bound of LLaDA
    (Nie et al. 2025, arXiv 2502.09992, Eq. 3) divided by the number of tokens.
    """
    return weights * token_logprobs.sum(-1) / token_logprobs.shape[-1]
