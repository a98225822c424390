"""The state of an optimiser as named arrays, and back: what checkpoints keep of AdamW's moments."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer


def flattened(optimizer: "Optimizer") -> dict[str, "Tensor"]:
    """The state of each parameter as ``<place of the parameter>.<name>``."""
    state = optimizer.state_dict()["state"]
    return {f"{place}.{name}": value for place, entry in state.items() for name, value in entry.items()}


def load_flattened(optimizer: "Optimizer", values: Mapping[str, "Tensor"]) -> None:
    """Give an optimiser the state that ``flattened`` read from its like; its settings stay its own."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in values.items():
        place, name = key.split(".")
        state.setdefault(int(place), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
