"""A small continuous VAE with the interface of Show-o2's: MAGVIT-v2's convolutions around a Gaussian instead of signs.

Kingma and Welling, arXiv 1312.6114. Latents are normalised channel by channel as those of the Wan 2.1 VAE, with the mean and the deviation
in the configuration.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from policies.image.magvitv2 import AttnBlock, ResnetBlock, VQGANDecoder, VQGANEncoder


class ContinuousVAEConfig(PretrainedConfig):
    """Levels of the encoder and the decoder, as ``MAGVITv2Config`` has them, without their ``z_channels``."""

    model_type = "continuous_vae"

    def __init__(
        self,
        encoder: Mapping[str, Any] | None = None,
        decoder: Mapping[str, Any] | None = None,
        channels: int = 4,
        norm_groups: int = 4,
        latents_mean: Sequence[float] | None = None,
        latents_std: Sequence[float] | None = None,
        **kwargs: Any,
    ) -> None:
        """``latents_mean`` and ``latents_std``: what ``encode`` subtracts and divides by, per channel; 0 and 1 when None."""
        levels = {"ch": 24, "ch_mult": [1, 1, 2], "num_res_blocks": [0, 1, 1]}
        self.encoder = {**levels, **(encoder or {})}
        self.decoder = {**levels, **(decoder or {})}
        self.channels = channels
        self.norm_groups = norm_groups
        self.latents_mean = list(latents_mean or [0.0] * channels)
        self.latents_std = list(latents_std or [1.0] * channels)
        super().__init__(**kwargs)


class ContinuousVAE(PreTrainedModel):
    """``encode(pixels)`` and ``decode(latents)``, pixels in [-1, 1], latents of mean 0 and deviation 1 in each channel once ``normalise``
    has seen images."""

    config_class = ContinuousVAEConfig
    main_input_name = "pixels"

    def __init__(self, config: ContinuousVAEConfig) -> None:
        super().__init__(config)
        self.encoder = VQGANEncoder(**config.encoder, z_channels=2 * config.channels, groups=config.norm_groups)
        self.decoder = VQGANDecoder(**config.decoder, z_channels=config.channels, groups=config.norm_groups)
        self.post_init()
        # Residual branches that start at zero are quicker to train. Not in _init_weights: transformers does not ask it about a module
        # that has no parameter of its own.
        for module in self.modules():
            if isinstance(module, (ResnetBlock, AttnBlock)):
                nn.init.zeros_((module.conv2 if isinstance(module, ResnetBlock) else module.proj_out).weight)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    @property
    def factor(self) -> int:
        """Pixels per latent along each side."""
        return 2 ** (len(self.config.encoder["ch_mult"]) - 1)

    @property
    def channels(self) -> int:
        """Numbers per latent."""
        return self.config.channels

    def posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance [batch, channels, height / f, width / f] of pixels [batch, 3, height, width], not normalised."""
        mean, log_variance = self.encoder(pixels).chunk(2, 1)
        # As VAEs of latent diffusion do: its exponential stays finite.
        return mean, log_variance.clamp(-30.0, 20.0)

    def encode(self, pixels: Tensor) -> Tensor:
        """Latents [batch, channels, height / f, width / f] of pixels [batch, 3, height, width] in [-1, 1]: the mean, normalised."""
        mean, deviation = self._scale(pixels)
        return (self.posterior(pixels)[0] - mean) / deviation

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels [batch, 3, h f, w f], about in [-1, 1], of latents [batch, channels, h, w]."""
        mean, deviation = self._scale(latents)
        return self.decoder(latents * deviation + mean)

    def _scale(self, like: Tensor) -> tuple[Tensor, Tensor]:
        mean, deviation = (like.new_tensor(x).view(1, -1, 1, 1) for x in (self.config.latents_mean, self.config.latents_std))
        return mean, deviation

    @torch.no_grad()
    def normalise(self, pixels: Tensor) -> None:
        """Set mean and deviation of the configuration to those of the latents of pixels [batch, 3, height, width]."""
        latents = self.posterior(pixels)[0]
        self.config.latents_mean = latents.mean((0, 2, 3)).tolist()
        self.config.latents_std = latents.std((0, 2, 3)).tolist()

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels after encode and decode, same shape."""
        return self.decode(self.encode(pixels))
