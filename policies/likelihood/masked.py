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

    ``hidden`` [batch, n, width]: last hidden states of a span. ``head`` maps hidden states to logits over the rows of the modality, the
    first of which is id ``offset``. ``targets`` int64 [batch, n], ``wanted`` bool [batch, n]. Returns float32 [batch, n].
    """
    # Only where they are asked for: all logits of an 8B text-to-image sequence are 829 MB, those of its codes 34 MB.
    logits = head(hidden[wanted]).float()
    picked = -F.cross_entropy(logits, targets[wanted] - offset, reduction="none")
    return torch.zeros(wanted.shape, device=hidden.device).masked_scatter(wanted, picked)


def mask_ratios(n: int, batch: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    """Mask ratios float32 [n, batch] in (low, high], stratified over the n draws of each column: one in each n-th of the range.

    Stratification removes most of the estimator's variance, which comes from the ratio (Zhu et al. 2025, arXiv 2505.19223).
    """
    # In [0, 1), so that 1 - jitter is never 0 and no draw hides nothing.
    jitter = torch.rand(n, batch, generator=generator)
    places = (torch.arange(n)[:, None] + 1 - jitter) / n
    return low + (high - low) * places


def hidden_sets(
    clock: Tensor, uniforms: Tensor, ratio: tuple[float, float] = (0.0, 1.0), block: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Which tokens are hidden and which of them count, bool [..., n] each, and the weight n / k of each set [...].

    ``clock`` [...] in (0, 1] is the share of the output that is still to come, ``uniforms`` [..., n] decide which tokens. The clock stands
    in one of the blocks of ``block`` tokens (None = one block; the last may be shorter). Blocks before it are visible, those behind it
    hidden. Of its own s tokens exactly k = ceil(r s) are hidden and count, any k alike. As more of the block is still to come, r goes from
    the first to the second bound of ``ratio``.

    Take clocks uniform on (0, 1] and ratios in (0, 1]. The expectation of the weighted sum of log p is then that of one bound a block, one
    behind the other. Each bound has independent masks with weight 1 / ratio, here without that weight's unbounded variance. Sources: LLaDA
    (arXiv 2502.09992, Eq. 6), and for masks in blocks, as the text sampler has them, SPG (arXiv 2510.09541).
    """
    n = uniforms.shape[-1]
    block = block or n
    which = ((n - clock * n) / block).floor().clamp(0, -(-n // block) - 1)
    end = ((which + 1) * block).clamp_max(n)
    size = end - which * block
    low, high = ratio
    counts = ((low + (high - low) * (clock * n - (n - end)) / size) * size).ceil().clamp_min(1).minimum(size)
    place = torch.arange(n).div(block, rounding_mode="floor") - which[..., None]  # of each token's block, seen from that of the clock
    counted = uniforms.masked_fill(place != 0, torch.inf).argsort(-1).argsort(-1) < counts[..., None]
    return counted | (place > 0), counted, n / counts


def elbo(token_logprobs: Tensor, weights: Tensor) -> Tensor:
    """Per-token ELBO [...] of each draw: ``weight * sum over counted tokens of log p / n`` with the weight of ``hidden_sets``.

    ``token_logprobs`` [..., n] is 0 at the other tokens. The expectation over ratios in (0, 1] and independent masks is the bound of LLaDA,
    divided by the number of tokens (Nie et al. 2025, arXiv 2502.09992, Eq. 3).
    """
    return weights * token_logprobs.sum(-1) / token_logprobs.shape[-1]


def eubo(token_logprobs: Tensor, counted: Tensor, weights: Tensor, beta: float) -> Tensor:
    """SPG's evidence upper bound per token, [...]: the mean over tokens of ``log(mean over draws of weight p^beta) / beta``.

    ``token_logprobs`` and ``counted`` (bool) [draw, ..., n], ``weights`` [draw, ...] of ``hidden_sets``. Tokens that no draw counts are
    left out of the mean; 0 where none is counted at all. The bound's constant, which no parameter moves, is left out; at beta >= 1 the
    rest is never below the ELBO once every mask is drawn. Source: arXiv 2510.09541, and spg/spg_trainer.py of facebookresearch/SPG.
    """
    seen = counted.any(0)
    # logsumexp over nothing but -inf has a NaN gradient: tokens that no draw counts are 0 here and left out below.
    terms = (beta * token_logprobs + weights.log()[..., None]).masked_fill(~counted, -torch.inf).masked_fill(~seen, 0.0)
    per_token = (terms.logsumexp(0) - math.log(len(terms))) / beta
    return (per_token * seen).sum(-1) / seen.sum(-1).clamp_min(1)
