"""The small VAE: an interface of latents of deviation 1, a loss that is the ELBO's, and what is saved is what is read."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from policies.image import ContinuousVAE, ContinuousVAEConfig
from policies.image.magvitv2 import ResnetBlock
from policies.image.training import vae_loss
from policies.weights import read_model


def pixels(count: int = 6, side: int = 16) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def vae() -> ContinuousVAE:
    torch.manual_seed(0)
    levels = {"ch": 8, "ch_mult": [1, 1, 2], "num_res_blocks": [0, 1, 1]}
    return ContinuousVAE(ContinuousVAEConfig(levels, levels, channels=3, norm_groups=2)).eval()


@torch.no_grad()
def test_shapes_follow_from_the_config(vae: ContinuousVAE) -> None:
    assert (vae.factor, vae.channels) == (4, 3)
    assert vae.encode(pixels()).shape == (6, 3, 4, 4) and vae(pixels()).shape == pixels().shape
    assert vae.encode(pixels(side=24)[:, :, :16]).shape == (6, 3, 4, 6)


@torch.no_grad()
def test_normalised_latents_have_mean_0_and_deviation_1_and_the_same_pixels(vae: ContinuousVAE) -> None:
    before, raw = vae(pixels()), vae.encode(pixels())
    assert (raw.std((0, 2, 3)) - 1).abs().min() > 0.01
    vae.normalise(pixels())
    latents = vae.encode(pixels())
    assert torch.allclose(latents.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(latents.std((0, 2, 3)), torch.ones(3), atol=1e-5)
    assert torch.allclose(vae(pixels()), before, rtol=0, atol=1e-5)


@torch.no_grad()
def test_saved_and_read_again_it_gives_the_same_latents(vae: ContinuousVAE, tmp_path: Path) -> None:
    vae.normalise(pixels())
    vae.save_pretrained(tmp_path)
    again = read_model(ContinuousVAE, tmp_path)
    assert again.config.latents_std == vae.config.latents_std
    assert torch.equal(again.encode(pixels()), vae.encode(pixels())) and torch.equal(again(pixels()), vae(pixels()))


@torch.no_grad()
def test_the_loss_is_the_error_of_a_drawn_latent_and_the_divergence_from_a_standard_normal(vae: ContinuousVAE) -> None:
    mean, log_variance = vae.posterior(pixels())
    torch.manual_seed(7)
    noise = torch.randn_like(mean)
    error = F.mse_loss(vae.decode(mean + (log_variance / 2).exp() * noise), pixels())
    divergence = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).mean()
    assert divergence > 0.1 and error > 0.1
    for weight in (0.0, 0.5):
        torch.manual_seed(7)
        assert torch.allclose(vae_loss(vae, pixels(), weight), error + weight * divergence, rtol=1e-5)


def test_the_gradient_of_the_loss_reaches_all_that_is_not_silent_at_the_start(vae: ContinuousVAE) -> None:
    torch.manual_seed(0)
    vae_loss(vae, pixels(), 0.1).backward()
    first, last = vae.encoder.conv_in.weight.grad, vae.decoder.conv_out.weight.grad
    assert first is not None and last is not None and first.abs().max() > 0 and last.abs().max() > 0


def test_residual_branches_start_at_zero(vae: ContinuousVAE) -> None:
    blocks = [module for module in vae.modules() if isinstance(module, ResnetBlock)]
    assert blocks and all(block.conv2.weight.abs().max() == 0 < block.conv1.weight.abs().max() for block in blocks)
