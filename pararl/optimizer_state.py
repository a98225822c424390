"""The moments of an optimiser as named tensors, as checkpoints and interrupted pretrainings keep them."""

from collections.abc import Mapping

from torch import Tensor
from torch.optim import Optimizer


def tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """Moments and step counts of every parameter, named ``<place of the parameter>.<name>``; empty before the first step."""
    return {f"{i}.{name}": x for i, entry in optimizer.state_dict()["state"].items() for name, x in entry.items()}


def load_tensors(optimizer: Optimizer, named: Mapping[str, Tensor]) -> None:
    """Take the moments that ``tensors`` gave; learning rate and other settings stay as they are.

    Raises ValueError for a name that is not one of them, and for a moment of another shape than its parameter's.
    """
    parameters = [p for entry in optimizer.param_groups for p in entry["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in named.items():
        place, dot, name = key.partition(".")
        if not dot or not place.isdecimal():
            raise ValueError(f"{key!r} is no moment of an optimiser: expected <place of the parameter>.<name>")
        if int(place) >= len(parameters) or (name != "step" and value.shape != parameters[int(place)].shape):
            raise ValueError(f"moment {key} of shape {list(value.shape)} fits none of the {len(parameters)} parameters")
        state.setdefault(int(place), {})[name] = value
    # A resumed training sets its rate by the update it is at, not by that of the checkpoint.
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
