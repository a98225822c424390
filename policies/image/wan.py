"""The Wan 2.1 VAE of Show-o2, for still images: diffusers' ``AutoencoderKLWan`` behind the interface that the policies use.

Facts: showlab/Show-o, ``show-o2/models/wan21_vae.py``. An image is a video of one frame, and pixels are in [-1, 1]. Latents are normalised
channel by channel with the mean and the deviation that diffusers keeps in the configuration. Upstream draws latents from the posterior
(around the normalised mean, with the deviation as it was before normalising); here they are its mean.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pararl.policy_files import REMEDY
from pararl.readers import read_json, record_of
from policies.weights import load_exactly


class WanVAE(nn.Module):
    """``encode(pixels)`` and ``decode(latents)``, pixels in [-1, 1], latents of mean 0 and deviation 1 in each channel."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, vae: Any) -> None:
        """``vae``: diffusers' ``AutoencoderKLWan``, which is imported only where somebody has one."""
        super().__init__()
        self.vae = vae
        # Not among the weights: diffusers keeps both in the configuration.
        self.register_buffer("mean", torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1), persistent=False)

    @classmethod
    def from_pretrained(cls, directory: Path) -> "WanVAE":
        """Read a directory of diffusers' format. Raises ImportError that says what to install, and ValueError where a key is missing or
        left over."""
        try:
            from diffusers import AutoencoderKLWan
        except ImportError as error:
            raise ImportError("the VAE of Show-o2 is diffusers': pip install 'pararl[diffusers]'") from error
        model = record_of(AutoencoderKLWan.from_config, read_json(directory / "config.json", REMEDY), directory / "config.json", REMEDY)
        load_exactly(model, directory, ("diffusion_pytorch_model.safetensors", "model.safetensors"))
        return cls(model)

    @property
    def factor(self) -> int:
        """Pixels per latent along each side."""
        return int(2 ** (len(self.vae.config.dim_mult) - 1) * (self.vae.config.patch_size or 1))

    @property
    def channels(self) -> int:
        """Numbers per latent."""
        return int(self.vae.config.z_dim)

    def encode(self, pixels: Tensor) -> Tensor:
        """Latents [batch, channels, height / f, width / f] of pixels [batch, 3, height, width] in [-1, 1]."""
        found: Tensor = self.vae.encode(pixels[:, :, None]).latent_dist.mean
        return ((found - self.mean) / self.deviation)[:, :, 0]

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels [batch, 3, h f, w f] in [-1, 1] of latents [batch, channels, h, w]."""
        found: Tensor = self.vae.decode(latents[:, :, None] * self.deviation + self.mean).sample
        return found[:, :, 0].clamp(-1, 1)

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write weights and configuration as diffusers does: safetensors and JSON."""
        self.vae.save_pretrained(save_directory)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels after encode and decode, same shape."""
        return self.decode(self.encode(pixels))
