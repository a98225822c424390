"""The MAGVIT-v2 image tokenizer with look-up-free quantisation (LFQ), under the released parameter names (``showlab/magvitv2``).

A code is the sign pattern of the encoder's output: ``code = sum_i 2^(n-1-i) [z_i > 0]``, most significant bit first.
Facts: Gen-Verse/MMaDA ``models/modeling_magvitv2.py``; Yu et al., "Language Model Beats Diffusion" (arXiv 2310.05737).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from policies.attention.core import attention

RELEASED_ENCODER = {"ch": 128, "ch_mult": [1, 2, 2, 4, 4], "num_res_blocks": [4, 3, 4, 3, 4], "z_channels": 13}
RELEASED_DECODER = {"ch": 128, "ch_mult": [1, 1, 2, 2, 4], "num_res_blocks": [4, 4, 3, 4, 3], "z_channels": 13}


class MAGVITv2Config(PretrainedConfig):
    """Channels and levels of the tokenizer. Keys left out of a section keep the released value.

    ``norm_groups`` is 32 as released. Narrow tokenizers want fewer: with one channel a group, the norm erases how bright a channel is.
    """

    model_type = "magvitv2"

    def __init__(
        self,
        encoder: Mapping[str, Any] | None = None,
        decoder: Mapping[str, Any] | None = None,
        quantize: Mapping[str, Any] | None = None,
        norm_groups: int = 32,
        **kwargs: Any,
    ) -> None:
        self.norm_groups = norm_groups
        self.encoder = {**RELEASED_ENCODER, **(encoder or {})}
        self.decoder = {**RELEASED_DECODER, **(decoder or {})}
        self.quantize = {"codebook_dim": 13, **(quantize or {})}
        super().__init__(**kwargs)


class Norm(nn.GroupNorm):
    """Group norm as released: epsilon 1e-6."""

    def __init__(self, groups: int, channels: int) -> None:
        super().__init__(groups, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    def __init__(self, channels: int, out: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = Norm(groups, channels), nn.Conv2d(channels, out, 3, padding=1)
        self.norm2, self.conv2 = Norm(groups, out), nn.Conv2d(out, out, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(channels, out, 1) if channels != out else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return (x if self.nin_shortcut is None else self.nin_shortcut(x)) + y


class AttnBlock(nn.Module):
    """Single-head attention over all positions of a feature map."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = Norm(groups, channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = (layer(y).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = attention(q[:, None], k[:, None], v[:, None]).transpose(-2, -1).reshape(x.shape)
        return x + self.proj_out(y)


class Middle(nn.Module):
    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, groups)
        self.attn_1 = AttnBlock(channels, groups)
        self.block_2 = ResnetBlock(channels, channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        # On the right and below alone, as released.
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Residual blocks at one resolution, and the change of resolution behind them, if any."""

    def __init__(self, channels: int, out: int, blocks: int, groups: int, downsample: bool = False, upsample: bool = False) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(channels if i == 0 else out, out, groups) for i in range(blocks))
        self.downsample = Downsample(out) if downsample else None
        self.upsample = Upsample(out) if upsample else None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        if self.downsample is not None:
            x = self.downsample(x)
        return x if self.upsample is None else self.upsample(x)


class VQGANEncoder(nn.Module):
    """Pixels [batch, 3, height, width] to LFQ pre-activations [batch, bits, height / f, width / f], f = 2^(levels - 1)."""

    def __init__(self, ch: int, ch_mult: Sequence[int], num_res_blocks: Sequence[int], z_channels: int, groups: int) -> None:
        super().__init__()
        widths = [ch, *(ch * m for m in ch_mult)]
        last = len(ch_mult) - 1
        self.conv_in = nn.Conv2d(3, ch, 3, padding=1)
        self.down = nn.ModuleList(
            Level(widths[i], widths[i + 1], num_res_blocks[i], groups, downsample=i != last) for i in range(len(ch_mult))
        )
        self.mid = Middle(widths[-1], groups)
        self.norm_out, self.conv_out = Norm(groups, widths[-1]), nn.Conv2d(widths[-1], z_channels, 3, padding=1)
        self.quant_conv = nn.Conv2d(z_channels, z_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.quant_conv(self.conv_out(F.silu(self.norm_out(self.mid(x)))))


class VQGANDecoder(nn.Module):
    """Signs [batch, bits, h, w] to pixels [batch, 3, h f, w f] in about [-1, 1]."""

    def __init__(self, ch: int, ch_mult: Sequence[int], num_res_blocks: Sequence[int], z_channels: int, groups: int) -> None:
        super().__init__()
        widths = [*(ch * m for m in ch_mult), ch * ch_mult[-1]]
        self.post_quant_conv = nn.Conv2d(z_channels, z_channels, 1)
        self.conv_in = nn.Conv2d(z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], groups)
        self.up = nn.ModuleList(Level(widths[i + 1], widths[i], num_res_blocks[i], groups, upsample=i != 0) for i in range(len(ch_mult)))
        self.norm_out, self.conv_out = Norm(groups, widths[0]), nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(self.post_quant_conv(z)))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class LFQuantizer(nn.Module):
    """Look-up-free quantiser: code <-> sign pattern. ``embedding`` [2^bits, bits] holds the +-1 rows, as released."""

    embedding: Tensor
    power_vals: Tensor

    def __init__(self, codebook_dim: int) -> None:
        super().__init__()
        # The most significant bit first, as released: in another order every code would be another picture.
        powers = 2 ** torch.arange(codebook_dim - 1, -1, -1)
        self.register_buffer("power_vals", powers)
        codes = torch.arange(2**codebook_dim)
        self.register_buffer("embedding", (codes[:, None].bitwise_and(powers) != 0).float() * 2 - 1)

    def encode(self, z: Tensor) -> Tensor:
        """Codes [batch, h, w] of pre-activations [batch, bits, h, w]."""
        return ((z > 0) * self.power_vals.view(1, -1, 1, 1)).sum(1)

    def decode(self, codes: Tensor) -> Tensor:
        """Signs [batch, bits, h, w] of codes [batch, h, w]."""
        return self.embedding[codes].movedim(-1, 1)


class MAGVITv2(PreTrainedModel):
    """The tokenizer: ``get_code(pixels)`` and ``decode_code(codes)``, pixels in [-1, 1]."""

    config_class = MAGVITv2Config
    main_input_name = "pixels"

    def __init__(self, config: MAGVITv2Config) -> None:
        super().__init__(config)
        self.encoder = VQGANEncoder(**config.encoder, groups=config.norm_groups)
        self.decoder = VQGANDecoder(**config.decoder, groups=config.norm_groups)
        self.quantize = LFQuantizer(**config.quantize)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Variance-keeping convolutions and residual branches that start at zero: far quicker to train than torch's default."""
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, ResnetBlock):
            nn.init.zeros_(module.conv2.weight)
        elif isinstance(module, AttnBlock):
            nn.init.zeros_(module.proj_out.weight)

    @property
    def factor(self) -> int:
        """Pixels per token along each side."""
        return 2 ** (len(self.config.encoder["ch_mult"]) - 1)

    @property
    def codebook_size(self) -> int:
        """How many codes there are: 2^bits."""
        return 2 ** self.config.quantize["codebook_dim"]

    def get_code(self, pixels: Tensor) -> Tensor:
        """Codes [batch, h w] of pixels [batch, 3, height, width] in [-1, 1]."""
        return self.quantize.encode(self.encoder(pixels)).flatten(1)

    def decode_code(self, codes: Tensor, shape: tuple[int, int] | None = None) -> Tensor:
        """Pixels [batch, 3, h f, w f], about in [-1, 1], of codes [batch, h w]; ``shape`` (h, w), square when None."""
        side = round(codes.shape[1] ** 0.5)
        height, width = shape or (side, side)
        if height * width != codes.shape[1]:
            raise ValueError(f"{codes.shape[1]} codes do not fill a grid of {height} x {width}; pass shape=(rows, columns)")
        return self.decoder(self.quantize.decode(codes.view(-1, height, width)))

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels after encode and decode, same shape."""
        return self.decode_code(self.get_code(pixels), (pixels.shape[2] // self.factor, pixels.shape[3] // self.factor))
