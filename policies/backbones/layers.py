"""What our backbones share: gradient checkpointing, the head, the root-mean-square norm and the rotary embedding."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

Angles = tuple[Tensor, Tensor]
"""Cosines and sines of the rotary embedding, float32, each [batch, 1, length, head_dim]."""


class Head(nn.Linear):
    """Logits over the rows of a slice (all when None): sliced inside the module, whose weight a device map may hold elsewhere till then."""

    @classmethod
    def of(cls, linear: nn.Linear) -> "Head":
        """The same layer, with its own parameters and whatever else is noted on it."""
        found = cls.__new__(cls)
        found.__dict__ = linear.__dict__
        return found

    def forward(self, hidden: Tensor, rows: slice | None = None) -> Tensor:
        if rows is None:
            return F.linear(hidden, self.weight, self.bias)
        return F.linear(hidden, self.weight[rows], None if self.bias is None else self.bias[rows])


class Backbone(PreTrainedModel):
    """A pretrained model that PEFT and TRL may take. One that calls its layers by ``run`` sets ``gradient_checkpointing`` to false when it
    is made.

    ``hidden`` and ``head`` are the two halves of a call. With them samplers and likelihoods apply the head to the needed positions and
    vocabulary rows only.
    """

    supports_gradient_checkpointing = True
    _supports_sdpa = True
    gradient_checkpointing: bool

    def run(self, layer: Callable[..., Any], *inputs: Any, **given: Any) -> Any:
        """``layer(*inputs, **given)``; with ``gradient_checkpointing`` what it computes is computed again in the backward pass, not kept.

        Whether in training mode or not, unlike transformers' own layers: policies learn in evaluation mode. No random state is kept for
        the second time, because no layer here draws random numbers. Not reentrant, so that frozen embeddings need no gradient.
        """
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(partial(layer, **given), *inputs, use_reentrant=False, preserve_rng_state=False)
        return layer(*inputs, **given)

    def head(self, hidden: Tensor, rows: slice | None = None) -> Tensor:
        """Logits of hidden states [..., width] over the vocabulary rows of a slice (all when None), where the hidden states are."""
        head = self.get_output_embeddings()
        # An adapter on the head wraps it, and knows of no rows.
        logits: Tensor = head(hidden, rows) if isinstance(head, Head) else head(hidden)[..., rows or slice(None)]
        return logits.to(hidden.device)

    @property
    def is_gradient_checkpointing(self) -> bool:
        """The same as ``is_activation_checkpointing``: PEFT and TRL still ask by this name, and transformers' own answer to it is a
        warning each time."""
        return self.is_activation_checkpointing


class Telling(nn.Module):
    """A layer with something to tell beside its output, such as the load of its experts and the loss that balances it."""

    def __init__(self) -> None:
        super().__init__()
        self.told: dict[str, Tensor] = {}
        """Of the last forward, by name: what begins with ``loss/`` is to be added to a training loss, all else is a statistic."""


def told(model: nn.Module) -> dict[str, Tensor]:
    """What the layers of a model told in their last forward: by name the mean over the layers that tell it."""
    found: dict[str, list[Tensor]] = {}
    for layer in model.modules():
        for name, value in layer.told.items() if isinstance(layer, Telling) else ():
            found.setdefault(name, []).append(value)
    return {name: torch.stack(values).mean(0) for name, values in found.items()}


class RMSNorm(nn.Module):
    """Root-mean-square norm with a gain, computed in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        # Cast before the gain, as the released norms do: in bfloat16 the order shows.
        return self.weight * wide.to(x.dtype)


def angles(positions: Tensor, inverse: Tensor) -> Angles:
    """Angles of ``positions`` int64 [batch, length] at ``inverse`` frequencies float32 [head_dim / 2] (halves repeated)."""
    found = positions[:, None, :, None].float() * inverse.to(positions.device)
    found = torch.cat((found, found), dim=-1)
    return found.cos(), found.sin()


def frequencies(head_dim: int, theta: float, device: torch.device | str = "cpu") -> Tensor:
    """Inverse frequencies of a plain rotary embedding, float32 [head_dim / 2], on a device."""
    return 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply the rotary embedding to x [batch, heads, length, head_dim] in float32; returns the dtype of x."""
    left, right = x.float().chunk(2, dim=-1)
    return (x.float() * cos + torch.cat((-right, left), dim=-1) * sin).to(x.dtype)
