"""Moments of an optimiser: the names that files have, and a training that goes on as if never stopped."""

import pytest
import torch

from pararl import optimizer_state
from tests.wording import telling


def trained(steps: int) -> tuple[torch.nn.Linear, torch.optim.AdamW]:
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    advance(layer, optimizer, steps)
    return layer, optimizer


def advance(layer: torch.nn.Linear, optimizer: torch.optim.AdamW, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        layer(torch.ones(4, 3)).square().sum().backward()
        optimizer.step()


def test_moments_have_the_names_that_checkpoints_have() -> None:
    _, optimizer = trained(1)
    assert set(optimizer_state.tensors(optimizer)) == {f"{i}.{name}" for i in (0, 1) for name in ("step", "exp_avg", "exp_avg_sq")}
    assert optimizer_state.tensors(trained(0)[1]) == {}


def test_an_optimiser_goes_on_from_its_moments_and_keeps_its_own_settings() -> None:
    straight, first = trained(5), trained(3)
    layer, optimizer = trained(0)
    layer.load_state_dict(first[0].state_dict())
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer_state.load_tensors(optimizer, optimizer_state.tensors(first[1]))
    advance(layer, optimizer, 2)
    assert torch.equal(layer.weight, straight[0].weight)
    optimizer.param_groups[0]["lr"] = 0.5
    optimizer_state.load_tensors(optimizer, optimizer_state.tensors(first[1]))
    assert optimizer.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize("name", ["exp_avg", "weight.exp_avg"])
def test_what_is_no_moment_is_told(name: str) -> None:
    with pytest.raises(ValueError, match=telling(f"'{name}'")):
        optimizer_state.load_tensors(trained(1)[1], {name: torch.zeros(2)})
