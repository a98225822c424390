"""What a backbone may have in the place of its feed-forward, and what such layers tell beside their output."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pararl import adapter
from pararl.options import Sampling
from policies.backbones.layers import Telling, told
from policies.pretraining import supervised_loss
from tests.policies.by_hand import prompts
from tests.policies.conftest import build_policy


class Experts(Telling):
    """Two linear experts, softly mixed; tells their shares, and how far these are from even."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.router, self.experts = nn.Linear(width, 2, bias=False), nn.ModuleList(nn.Linear(width, width) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        shares = self.router(x).softmax(-1)
        load = shares.mean((0, 1))
        self.told = {"load": load.detach(), "loss/balance": (load - 0.5).square().sum()}
        return torch.stack([expert(x) for expert in self.experts], -1).mul(shares[..., None, :]).sum(-1)


@pytest.fixture
def mixed() -> Any:
    """A random policy of two blocks with experts in the place of their feed-forwards."""
    policy = build_policy()
    torch.manual_seed(3)
    for block in policy.model.model.transformer["blocks"]:
        block.exchange(Experts(32))
    return policy


class Nothing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


@torch.no_grad()
def test_a_block_adds_what_stands_in_the_place_of_its_feed_forward(mixed: Any) -> None:
    assert not any(re.search(r"blocks.*(ff_proj|up_proj|ff_out)", name) for name, _ in mixed.model.named_parameters())
    block = mixed.model.model.transformer["blocks"][0]
    x, turn, experts = torch.randn(2, 5, 32), (torch.ones(5, 8), torch.zeros(5, 8)), block.feed_forward
    whole = block(x, turn, None)
    block.feed_forward = Nothing()
    without = block(x, turn, None)
    assert torch.allclose(whole - without, experts(block.ff_norm(without)), atol=1e-5) and not torch.allclose(whole, without, atol=1e-2)


def test_a_policy_with_other_feed_forwards_samples_and_is_aligned(mixed: Any) -> None:
    asked = prompts("t2i")[:2]
    rollouts = mixed.generate(asked, [1, 2], Sampling(steps=4, recorded=2))
    mixed.lora_targets = r".*(q_proj|v_proj|router)"
    peft = adapter.attach(mixed, 2, 4)
    mixed.log_likelihood(rollouts, mixed.draws(rollouts, 1, torch.Generator().manual_seed(0))).sum().backward()
    assert all(p.grad is not None for name, p in peft.named_parameters() if p.requires_grad)


def test_losses_that_layers_told_are_among_the_supervised_ones_and_statistics_are_not(mixed: Any) -> None:
    asked = prompts("t2i")[:2]
    outputs = [r.output for r in mixed.generate(asked, [1, 2], Sampling(steps=4))]
    losses = supervised_loss(mixed, asked, outputs, torch.Generator().manual_seed(0))
    assert losses.keys() == {"image", "balance"}
    layers = [block.feed_forward for block in mixed.model.model.transformer["blocks"]]
    assert torch.equal(losses["balance"], torch.stack([layer.told["loss/balance"] for layer in layers]).mean())
    assert torch.allclose(told(mixed.model)["load"].sum(), torch.ones(()))
    losses["balance"].backward()
    assert all(layer.router.weight.grad.any() for layer in layers)
