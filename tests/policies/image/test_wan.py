"""Show-o2's VAE is diffusers' with the normalisation of the release, for one frame."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from policies.image.wan import WanVAE

MEAN, DEVIATION = [0.2, -0.1, 0.4, 0.0], [1.5, 0.5, 2.0, 1.0]


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A random model of diffusers', saved to ``vae.directory``."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model = diffusers.AutoencoderKLWan(
        base_dim=8, z_dim=4, dim_mult=[1, 1, 2, 2], num_res_blocks=1, latents_mean=MEAN, latents_std=DEVIATION
    ).eval()
    model.directory = tmp_path_factory.mktemp("vae")
    model.save_pretrained(model.directory)
    return model


def pixels(height: int = 32, width: int = 48) -> Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


@torch.no_grad()
def test_latents_are_the_normalised_means_of_a_video_of_one_frame(vae: Any) -> None:
    ours = WanVAE.from_pretrained(vae.directory).eval()
    assert (ours.factor, ours.channels) == (8, 4)
    latents = ours.encode(pixels())
    assert latents.shape == (2, 4, 4, 6)
    posterior = vae.encode(pixels()[:, :, None]).latent_dist
    for channel in range(4):
        expected = (posterior.mean[:, channel, 0] - MEAN[channel]) / DEVIATION[channel]
        assert torch.allclose(latents[:, channel], expected, rtol=0, atol=1e-6)


@torch.no_grad()
def test_pixels_are_those_of_the_latents_as_diffusers_has_them_within_minus_one_and_one(vae: Any) -> None:
    ours = WanVAE.from_pretrained(vae.directory).eval()
    posterior = vae.encode(pixels()[:, :, None]).latent_dist
    expected = vae.decode(posterior.mean).sample[:, :, 0].clamp(-1, 1)
    assert expected.shape == pixels().shape
    assert torch.allclose(ours(pixels()), expected, rtol=0, atol=1e-5)
    assert ours.decode(100 * ours.encode(pixels())).abs().max() <= 1


def test_the_normalisation_of_the_release_is_that_of_diffusers() -> None:
    """Show-o2's code has the numbers of ``show-o2/models/wan21_vae.py``; some of them, as read there."""
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        config = diffusers.AutoencoderKLWan().config
    assert (config.z_dim, len(config.latents_mean), len(config.latents_std)) == (16, 16, 16)
    assert (config.latents_mean[0], config.latents_mean[7], config.latents_mean[15]) == (-0.7571, 1.5508, -0.2921)
    assert (config.latents_std[0], config.latents_std[8], config.latents_std[15]) == (2.8184, 3.2687, 1.916)


def test_saved_and_read_again_it_is_the_same(vae: Any, tmp_path: Path) -> None:
    WanVAE.from_pretrained(vae.directory).save_pretrained(tmp_path)
    again = WanVAE.from_pretrained(tmp_path).state_dict()
    assert again.keys() == {f"vae.{name}" for name in vae.state_dict()}
    assert all(torch.equal(again[f"vae.{name}"], value) for name, value in vae.state_dict().items())


def test_without_diffusers_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"pip install 'pararl\[diffusers\]'"):
        WanVAE.from_pretrained(tmp_path)
