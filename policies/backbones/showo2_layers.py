"""The layers of Show-o2: Qwen2.5's with a mask and keys of our own, and the diffusion head's, which time modulates at images alone.

Facts: showlab/Show-o, ``show-o2/models/modules.py``.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer

from policies.attention.core import attention
from policies.backbones.layers import Angles, RMSNorm, rotate

Keys = tuple[Tensor, Tensor]
"""Rotated keys, and values, of the columns that a layer has seen, each [batch, kv heads, columns, head_dim]."""


def stretched(inverse: Tensor, scaling: Mapping[str, Any]) -> Tensor:
    """The inverse frequencies as Llama 3.1 scales them: slow ones divided by a factor, fast ones kept, those between mixed. Source:
    ``ROPE_INIT_FUNCTIONS["llama3"]`` of transformers."""
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * inverse / (2 * math.pi)  # within the length of the first training
    kept = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return kept * inverse + (1 - kept) * inverse / scaling["factor"]


def attend(layer: Any, x: Tensor, turn: Angles, mask: Tensor | None, past: Keys | None, kept: Tensor | None) -> tuple[Tensor, Keys]:
    """Self-attention of x [batch, length, width], or of its columns ``kept`` as queries, over the ``past`` columns and its own. Also the
    keys of all of them. ``layer``: a module of projections, and of norms of queries and keys where it has them."""

    def split(y: Tensor) -> Tensor:
        return y.unflatten(-1, (-1, layer.head_dim)).transpose(1, 2)

    asked, asked_turn = (x, turn) if kept is None else (x[:, kept], (turn[0][:, :, kept], turn[1][:, :, kept]))
    q, k, v = split(layer.q_proj(asked)), split(layer.k_proj(x)), split(layer.v_proj(x))
    if hasattr(layer, "q_norm"):
        q, k = layer.q_norm(q), layer.k_norm(k)
    q, k = rotate(q, *asked_turn), rotate(k, *turn)
    if past is not None:
        k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
    if mask is not None and kept is not None:
        mask = mask[:, :, kept]
    return layer.o_proj(attention(q, k, v, mask).transpose(1, 2).flatten(2)), (k, v)


class LanguageLayer(Qwen2DecoderLayer):
    """Qwen2.5's layer, parameters and all, with the mask of any query, and with keys that the caller holds."""

    def forward(  # type: ignore[override]
        self, x: Tensor, turn: Angles, mask: Tensor | None, past: Keys | None = None, kept: Tensor | None = None
    ) -> tuple[Tensor, Keys]:
        """[batch, length, hidden_size], or the columns ``kept`` [n] alone, and the keys of all columns so far."""
        y, keys = attend(self.self_attn, self.input_layernorm(x), turn, mask, past, kept)
        x = (x if kept is None else x[:, kept]) + y
        return x + self.mlp(self.post_attention_layernorm(x)), keys


class PatchEmbed(nn.Module):
    """Latents [images, channels, height, width] to tokens [images, n, width], patches in raster order."""

    def __init__(self, patch: int, channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, latents: Tensor) -> Tensor:
        return self.proj(latents).flatten(2).transpose(1, 2)


class TimeEmbed(nn.Module):
    """Times in [0, 1], [images], to [images, width]: 256 cosines and sines of periods from 2 pi to 20,000 pi, and two layers."""

    def __init__(self, width: int, waves: int = 256) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(waves, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, times: Tensor) -> Tensor:
        first: Any = self.mlp[0]
        half = first.in_features // 2
        waves = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=times.device) / half)
        angle = times[:, None].float() * waves
        return self.mlp(torch.cat((angle.cos(), angle.sin()), -1).to(first.weight.dtype))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (1 + scale) + shift in float32; returns the dtype of x."""
    return (x.float() * (1 + scale.float()) + shift.float()).to(x.dtype)


class Silent(nn.Linear):
    """A linear layer that is 0 before training."""


class HeadAttention(nn.Module):
    """Grouped-query attention with normed queries and keys, without biases."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width, self.head_dim = config["hidden_size"], config["head_dim"]
        wide, narrow = config["num_attention_heads"] * self.head_dim, config["num_key_value_heads"] * self.head_dim
        self.q_proj = nn.Linear(width, wide, bias=False)
        self.k_proj = nn.Linear(width, narrow, bias=False)
        self.v_proj = nn.Linear(width, narrow, bias=False)
        self.o_proj = nn.Linear(wide, width, bias=False)
        self.q_norm, self.k_norm = RMSNorm(self.head_dim, 1e-6), RMSNorm(self.head_dim, 1e-6)


class HeadMLP(nn.Module):
    """SwiGLU without biases."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class HeadLayer(nn.Module):
    """A layer of the diffusion head: shifts, scales and gates of the image's time at image columns; text passes unmodulated."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width = config["hidden_size"]
        self.self_attn = HeadAttention(config)
        self.mlp = HeadMLP(width, config["intermediate_size"])
        self.input_layernorm = RMSNorm(width, config["rms_norm_eps"])
        self.post_attention_layernorm = RMSNorm(width, config["rms_norm_eps"])
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Silent(width, 6 * width))

    def forward(
        self, x: Tensor, time: Tensor, owner: Tensor, turn: Angles, mask: Tensor | None, past: Keys | None = None
    ) -> tuple[Tensor, Keys]:
        """[batch, length, width] and the keys of all columns so far.

        ``time`` [images, width]: embedded times. ``owner`` int64, broadcast to [batch, length]: 0 = text, i = the i-th image.
        """
        still = x.new_tensor([0.0, 0.0, 1.0, 0.0, 0.0, 1.0]).repeat_interleave(x.shape[-1])[None]
        changes = torch.cat((still, self.adaLN_modulation(time)))[owner]
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = changes.chunk(6, -1)
        y, keys = attend(self.self_attn, modulate(self.input_layernorm(x), shift, scale), turn, mask, past, None)
        x = x + gate * y
        return x + gate_mlp * self.mlp(modulate(self.post_attention_layernorm(x), shift_mlp, scale_mlp)), keys


class FinalLayer(nn.Module):
    """Hidden states of image tokens to velocities of ``size`` numbers each, shifted and scaled by the image's time."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.norm_final = RMSNorm(width, 1e-6)
        self.linear = Silent(width, size)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Silent(width, 2 * width))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """[images, n, size] of x [images, n, width] and embedded times [images, width]."""
        shift, scale = self.adaLN_modulation(time)[:, None].chunk(2, -1)
        return self.linear(modulate(self.norm_final(x), shift, scale))
