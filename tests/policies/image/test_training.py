"""The tokenizer's training loss: an auto-encoder at hardness 0, the tokenizer itself at hardness 1, with a gradient either way."""

import torch

from policies import Policy
from policies.image.magvitv2 import MAGVITv2
from policies.image.training import tokenizer_loss


def pixels() -> torch.Tensor:
    return torch.rand(3, 3, 8, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1


def magvit(policy: Policy) -> MAGVITv2:
    assert isinstance(policy.layout.images.module, MAGVITv2)
    return policy.layout.images.module


@torch.no_grad()
def test_a_hard_loss_is_the_error_of_the_tokenizer_itself(policy: Policy) -> None:
    x = pixels()
    expected = (magvit(policy)(x) - x).square().mean()
    assert torch.allclose(tokenizer_loss(magvit(policy), x, 1.0), expected, rtol=1e-5)


@torch.no_grad()
def test_a_soft_loss_is_the_error_of_a_continuous_auto_encoder(policy: Policy) -> None:
    x = pixels()
    expected = (magvit(policy).decoder(torch.tanh(magvit(policy).encoder(x))) - x).square().mean()
    assert torch.allclose(tokenizer_loss(magvit(policy), x, 0.0), expected, rtol=1e-5)
    assert not torch.allclose(tokenizer_loss(magvit(policy), x, 1.0), expected, rtol=1e-3)


def test_the_gradient_of_a_hard_loss_reaches_the_encoder(policy: Policy) -> None:
    weight = magvit(policy).encoder.conv_in.weight
    weight.requires_grad_(True)
    try:
        (grad,) = torch.autograd.grad(tokenizer_loss(magvit(policy), pixels(), 1.0), weight)
    finally:
        weight.requires_grad_(False)
    assert torch.isfinite(grad).all() and float(grad.abs().max()) > 0
