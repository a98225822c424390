"""Estimates of the divergence of two policies from samples of one."""

from torch import Tensor


def k3(logprob: Tensor, reference: Tensor) -> Tensor:
    """Estimate of KL(pi || reference) of every token, ``exp(d) - 1 - d`` with d = reference - logprob (Schulman's k3), in their shape.

    Unbiased for tokens sampled from pi, and never negative.
    """
    d = reference - logprob
    return d.exp() - 1 - d
