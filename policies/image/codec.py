"""Pixels as the tokens of a policy and back: ids of a vocabulary, or continuous tokens of latents."""

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from policies.image.base import ImageTokenizer

DECODED_PIXELS = 2**18
"""Pixels that are decoded at once: one image of 512 x 512 or 256 of 32 x 32. The widest features, of 128 channels, then take 134 MB."""


class ImageCodec(Protocol):
    """How a policy reads and writes images."""

    module: Any
    """The image tokenizer, a torch module."""
    codes: int
    """Codes of its vocabulary; 0 = its tokens are continuous."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of input and output images in pixels."""

    def encode(self, pixels: np.ndarray) -> Tensor:
        """Tokens of uint8 pixels [batch, height, width, 3]: int64 [batch, n], or float32 [batch, n, d]."""

    def decode(self, tokens: Tensor) -> np.ndarray:
        """Pixels uint8 [batch, height, width, 3] of tokens, so many images at once as have DECODED_PIXELS."""


class CodeImages:
    """Images of codes, each at its row of a vocabulary."""

    def __init__(self, images: ImageTokenizer, grid: tuple[int, int], offset: int, order: Tensor | None = None) -> None:
        """``offset``: first vocabulary row of the codes. ``order`` int64 [codes]: how far behind it each code stands; None = code k is the
        k-th."""
        self.module: ImageTokenizer = images.eval().requires_grad_(False)
        self.codes, self.grid, self.offset = images.codebook_size, grid, offset
        self.order = order

    @property
    def size(self) -> tuple[int, int]:
        return self.grid[0] * self.module.factor, self.grid[1] * self.module.factor

    @torch.no_grad()
    def encode(self, pixels: np.ndarray) -> Tensor:
        # The first code stands behind the tokenizer's last id, not behind the padded embedding table (docs/bugs_avoided.md).
        codes = self.module.get_code(_normalised(self.module, pixels))
        return (codes if self.order is None else self.order.to(codes.device)[codes]) + self.offset

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> np.ndarray:
        codes = tokens - self.offset
        codes = codes if self.order is None else self.order.argsort().to(codes.device)[codes]
        # Part by part: the widest features of 64 images of 512 x 512 pixels would take 8.6 GB at once.
        parts = [self.module.decode_code(part, self.grid) for part in codes.split(_at_once(self.size))]
        return _pixels(torch.cat(parts))


class LatentImages:
    """Images of continuous tokens: the latents of a VAE in patches."""

    codes = 0

    def __init__(self, images: Any, grid: tuple[int, int], patch: int) -> None:
        """``images``: a VAE, see ``policies.image.base.ImageLatents``. ``patch``: latents per token along each side."""
        self.module = images.eval().requires_grad_(False)
        self.grid, self.patch = grid, patch

    @property
    def size(self) -> tuple[int, int]:
        return self.grid[0] * self.module.factor * self.patch, self.grid[1] * self.module.factor * self.patch

    @torch.no_grad()
    def encode(self, pixels: np.ndarray) -> Tensor:
        return patched(self.module.encode(_normalised(self.module, pixels)), self.patch)

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> np.ndarray:
        return _pixels(torch.cat([self.module.decode(self.latents(part)) for part in tokens.split(_at_once(self.size))]))

    def latents(self, tokens: Tensor) -> Tensor:
        """Latents [batch, channels, height, width] of tokens [batch, n, d]."""
        return unpatched(tokens, self.patch, self.grid)


def patched(latents: Tensor, patch: int) -> Tensor:
    """Tokens [images, n, patch * patch * channels] of latents or velocities [images, channels, height, width].

    As released, token i has the numbers of the pixels i p^2 to (i + 1) p^2 - 1 in raster order. Those are not the pixels of the patch that
    it reads. Training and sampling agree on that.
    """
    pixels = latents.flatten(2).transpose(1, 2)
    return pixels.reshape(len(latents), -1, patch * patch * latents.shape[1])


def unpatched(tokens: Tensor, patch: int, grid: tuple[int, int]) -> Tensor:
    """The inverse of ``patched``, for ``grid`` (rows, columns) of tokens."""
    channels = tokens.shape[-1] // patch**2
    return tokens.reshape(len(tokens), -1, channels).transpose(1, 2).reshape(len(tokens), channels, grid[0] * patch, grid[1] * patch)


def _normalised(module: Any, pixels: np.ndarray) -> Tensor:
    """Pixels float32 [batch, 3, height, width] in [-1, 1], where the module is."""
    x = torch.from_numpy(np.ascontiguousarray(pixels)).to(next(module.parameters()).device)
    return x.movedim(-1, 1).float() / 127.5 - 1


def _at_once(size: tuple[int, int]) -> int:
    return max(1, DECODED_PIXELS // (size[0] * size[1]))


def _pixels(decoded: Tensor) -> np.ndarray:
    return ((decoded.clamp(-1, 1) + 1) * 127.5).round().byte().movedim(1, -1).cpu().numpy()
