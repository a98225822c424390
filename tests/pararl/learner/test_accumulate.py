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
        loss, metrics = backward([partial(piece, part) for part in x.split(sizes)], loss_of)
        assert metrics == {"n": 6.0}
        assert layer.weight.grad is not None
        return loss, layer.weight.grad.clone()

    loss, whole = gradient([6])
    for sizes in ([3, 3], [1, 2, 3], [1] * 6):
        other, parts = gradient(sizes)
        assert abs(other - loss) < 1e-12
        assert torch.allclose(parts, whole, atol=1e-12)
    assert whole.abs().max() > 0.01


def test_of_a_linear_loss_one_pass_gives_gradient_and_loss() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 2).double()
    x, weights = torch.randn(6, 3).double(), torch.randn(6, 2).double()
    weights[2:4] = 0.0  # a part that the loss does not need
    calls: list[int] = []

    def piece(part: torch.Tensor) -> torch.Tensor:
        calls.append(len(part))
        y: torch.Tensor = layer(part)
        return y

    def loss_of(parts: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        y = torch.cat(parts)
        return (weights * y).sum(), {"largest": (weights * y.detach()).max().item()}

    pieces = [partial(piece, part) for part in x.split(2)]
    loss, metrics = backward(pieces, loss_of, [torch.full((2, 2), 7.0).double() for _ in pieces], linear=True)
    assert calls == [2, 2], "one pass of the parts that are needed"
    expected = layer(x)
    assert abs(loss - (weights * expected).sum().item()) < 1e-12
    assert abs(metrics["largest"] - (weights * expected).max().item()) < 1e-12
    assert layer.weight.grad is not None and torch.allclose(layer.weight.grad, weights.T @ x, atol=1e-12)
