"""Likelihoods of masked diffusion: token log-probabilities at hidden positions, on the needed positions and vocabulary rows only."""

import math
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


def hidden_sets(clock: Tensor, uniforms: Tensor, ratio: tuple[float, float] = (0.0, 1.0), blocks: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Which tokens are hidden and which of them count, bool [..., n] each, and the weight n / k of each set [...].

    ``clock`` [...] in (0, 1] is how much of the output is still to come, ``uniforms`` [..., n] decide which tokens. The clock stands in
    one of ``blocks`` equal blocks: those before it are visible, those behind it hidden, and of its own s tokens exactly
    k = ceil(r s) are hidden and count, any k alike, with r from ``ratio``'s bounds as the clock goes through the block.

    With clocks uniform on (0, 1] and ratios in (0, 1] the weighted sum of log p has the expectation of ``blocks`` bounds one behind the
    other, each of independent masks with weight 1 / ratio, without that weight's unbounded variance (LLaDA, arXiv 2502.09992, Eq. 6; masks
    in blocks as the text sampler has them: SPG, arXiv 2510.09541). Raises ValueError where blocks do not divide the tokens evenly.
    """
    n = uniforms.shape[-1]
    if n % blocks:
        raise ValueError(f"{n} tokens do not fall into {blocks} equal blocks")
    behind = ((clock * blocks).ceil() - 1).clamp(0, blocks - 1)
    low, high = ratio
    counts = ((low + (high - low) * (clock * blocks - behind)) * (n // blocks)).ceil().clamp(1, n // blocks)
    ranks = uniforms.unflatten(-1, (blocks, n // blocks)).argsort(-1).argsort(-1)
    place = torch.arange(blocks) - (blocks - 1 - behind)[..., None]  # of each block, seen from the one that the clock stands in
    counted = (place == 0)[..., None] & (ranks < counts[..., None, None])
    return (counted | (place > 0)[..., None]).flatten(-2), counted.flatten(-2), n / counts


def elbo(token_logprobs: Tensor, weights: Tensor) -> Tensor:
    """Per-token ELBO [...] of each draw: ``weight * sum over counted tokens of log p / n`` with the weight of ``hidden_sets``.

    ``token_logprobs`` [..., n], 0 at the other tokens; its expectation over ratios in (0, 1] and independent masks is the bound of LLaDA
    (Nie et al. 2025, arXiv 2502.09992, Eq. 3) divided by the number of tokens.
    """
    return weights * token_logprobs.sum(-1) / token_logprobs.shape[-1]


def eubo(token_logprobs: Tensor, counted: Tensor, weights: Tensor, beta: float) -> Tensor:
    """SPG's evidence upper bound per token, [...]: the mean over tokens of ``log(mean over draws of weight p^beta) / beta``.

    ``token_logprobs`` and ``counted`` (bool) [draw, ..., n], ``weights`` [draw, ...] of ``hidden_sets``. Tokens that no draw counts are
    left out of the mean; 0 where none is counted at all. The bound's constant, which no parameter moves, is left out; at beta >= 1 the
    rest is never below the ELBO once every mask is drawn. Source: arXiv 2510.09541, and spg/spg_trainer.py of facebookresearch/SPG.
    """
    seen = counted.any(0)
    terms = (beta * token_logprobs + weights.log()[..., None]).masked_fill(~counted, -torch.inf).masked_fill(~seen, 0.0)
    per_token = (terms.logsumexp(0) - math.log(len(terms))) / beta
    return (per_token * seen).sum(-1) / seen.sum(-1).clamp_min(1)
