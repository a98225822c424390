"""Numbers of a decoder as pixels, and images in parts."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from policies import Policy
from policies.image import codec
from policies.image.codec import LatentImages


class Straight(nn.Module):
    """A VAE whose latents are the pixels."""

    factor = 1

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def decode(self, latents: Tensor) -> Tensor:
        return latents


def test_pixels_are_rounded_to_the_nearest_and_held_within_their_range() -> None:
    numbers = torch.linspace(-1.5, 1.5, 2 * 3 * 8 * 8).view(2, 3, 8, 8)
    found = LatentImages(Straight(), (8, 8), 1).decode(codec.patched(numbers, 1))
    expected = [min(255, max(0, round((x + 1) * 127.5))) for x in numbers.movedim(1, -1).flatten().tolist()]
    assert found.dtype == np.uint8 and found.shape == (2, 8, 8, 3)
    assert found.flatten().tolist() == expected and {0, 255} < set(expected)


@pytest.mark.parametrize("pixels", [1, 24, 25, 48, 10_000])
def test_images_decoded_in_parts_are_those_decoded_at_once(policy: Policy, pixels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One at a time where one alone has more pixels than are decoded at once."""
    tokens = policy.layout.images.encode(np.random.default_rng(0).integers(0, 256, (3, 4, 6, 3), dtype=np.uint8))
    whole = policy.layout.images.decode(tokens)
    monkeypatch.setattr(codec, "DECODED_PIXELS", pixels)
    assert np.abs(policy.layout.images.decode(tokens).astype(int) - whole).max() <= 1
