"""Invariant 4: accumulation gives the gradient of the single pass."""

from functools import partial

import torch

from pararl.learner.accumulate import backward


def test_two_passes_give_the_gradient_of_one() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 1).double()
    x = torch.randn(6, 3).double()

    def loss_of(parts: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        y = torch.cat(parts)
        return torch.nn.functional.softplus(y[::2] - y[1::2].mean() ** 2).sum(), {"n": float(len(y))}

    def piece(part: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = layer(part).squeeze(-1)
        return y

    def gradient(sizes: list[int]) -> tuple[float, torch.Tensor]:
        layer.zero_grad()
        loss, figures = backward([partial(piece, part) for part in x.split(sizes)], loss_of)
        assert figures == {"n": 6.0}
        assert layer.weight.grad is not None
        return loss, layer.weight.grad.clone()

    loss, whole = gradient([6])
    for sizes in ([3, 3], [1, 2, 3], [1] * 6):
        other, parts = gradient(sizes)
        assert abs(other - loss) < 1e-12
        assert torch.allclose(parts, whole, atol=1e-12)
    assert whole.abs().max() > 0.01
