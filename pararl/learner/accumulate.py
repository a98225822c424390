"""Exact gradients in bounded memory: a loss of many parts, of which only one is held with its graph at a time."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pararl.types import Metrics

Part = Callable[[], Tensor]
"""Computes one differentiable piece of the likelihoods; called again it gives the same numbers."""


def backward(
    parts: Sequence[Part],
    loss_of: Callable[[list[Tensor]], tuple[Tensor, Metrics]],
    known: Sequence[Tensor] | None = None,
    linear: bool = False,
) -> tuple[float, Metrics]:
    """Add the gradient of ``loss_of([part() for part in parts])`` to the parameters; returns the loss and its metrics.

    One part: an ordinary backward pass. Several: a first pass without graph gives the values and the gradient of the loss in them, a second
    recomputes the parts one by one and pushes that gradient through. The gradient is that of the single pass, the memory that of one part.
    ``known``: what the parts will give, where somebody knows already; it takes the place of the first pass. ``linear``: the loss is linear
    in the parts, so ``known`` may be anything of their shape; loss and metrics are then those of what the second pass gave.
    """
    if len(parts) == 1:
        loss, metrics = loss_of([parts[0]()])
        loss.backward()
        return loss.item(), metrics
    with torch.no_grad():
        leaves = [part() for part in parts] if known is None else [value.clone() for value in known]
    for leaf in leaves:
        leaf.requires_grad_()
    loss, metrics = loss_of(leaves)
    loss.backward()
    values = [leaf.detach() for leaf in leaves]
    for i, (part, leaf) in enumerate(zip(parts, leaves, strict=True)):
        if leaf.grad is not None and leaf.grad.any():
            value = part()
            torch.autograd.backward(value, leaf.grad)
            values[i] = value.detach()
    if linear:
        loss, metrics = loss_of(values)
    return loss.item(), metrics
