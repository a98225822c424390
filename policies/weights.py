"""Reading a model's weights from a directory: every key or an error, without a progress bar for each file."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

LISTED = 12
"""Keys that an error names."""
RELEASED = "pytorch_model.safetensors"
"""What Show-o's library calls its weights where transformers has ``model.safetensors``."""
Model = TypeVar("Model", bound=PreTrainedModel)


def read_model(kind: type[Model], directory: Path, released: bool = False, **options: Any) -> Model:
    """``kind.from_pretrained(directory)``, but a key that is missing, left over or of another shape raises ValueError.

    transformers would fill a missing key with random numbers and go on. ``options`` that are not None go to it (dtype, device_map).
    ``released``: a ``pytorch_model`` is taken too, as safetensors, or else as a file of torch's (read as weights alone).
    """
    config_class: Any = kind.config_class
    config = config_class.from_pretrained(directory)
    if released and (directory / RELEASED).exists():
        config.transformers_weights = RELEASED
    # Keys of another shape pass here, so that `_refuse` lists them with those that are missing or left over.
    given = {name: value for name, value in options.items() if value is not None}
    with no_progress_bars():
        loaded: Any = kind.from_pretrained(
            directory,
            config=config,
            output_loading_info=True,
            use_safetensors=None if released else True,
            ignore_mismatched_sizes=True,
            trust_remote_code=False,
            **given,
        )
    model: Model
    model, info = loaded
    _refuse(directory, kind.__name__, {name.replace("_", " "): sorted(map(str, keys)) for name, keys in info.items()})
    return model


def load_exactly(model: nn.Module, directory: Path, names: Sequence[str]) -> None:
    """Load the first file of ``names`` that a directory has into a module. Raises FileNotFoundError where it has none, ValueError that
    lists the keys that are missing, left over or of another shape.

    A file that is not safetensors is one of torch's and is read as weights alone, which runs no code of it.
    """
    found = next((directory / name for name in names if (directory / name).exists()), None)
    if found is None:
        raise FileNotFoundError(f"{directory} holds no weights: neither of {', '.join(names)}")
    state = load_file(found) if found.suffix == ".safetensors" else torch.load(found, weights_only=True, map_location="cpu", mmap=True)
    load_state(model, state, directory)


def load_state(model: nn.Module, state: Mapping[str, Tensor], directory: Path) -> None:
    """Load weights that were read from a directory. Raises ValueError that lists the keys that are missing, left over or of another
    shape."""
    own = model.state_dict()
    wrong = {
        "missing keys": sorted(own.keys() - state.keys()),
        "unexpected keys": sorted(state.keys() - own.keys()),
        "mismatched keys": sorted(name for name in own.keys() & state.keys() if own[name].shape != state[name].shape),
    }
    _refuse(directory, type(model).__name__, wrong)
    model.load_state_dict(state)


def _refuse(directory: Path, kind: str, wrong: dict[str, list[str]]) -> None:
    """Raise ValueError where any of the lists of keys holds one."""
    lists = [(name, ", ".join(keys[:LISTED]) + (" ..." if len(keys) > LISTED else ""), len(keys)) for name, keys in wrong.items() if keys]
    found = "; ".join(f"{count} {name} ({keys})" for name, keys, count in lists)
    if found:
        raise ValueError(f"{directory} does not hold the weights of a {kind}: {found}")


def check_plain(model: nn.Module) -> None:
    """Raise ValueError where an adapter is injected into a model: its keys would be those of the adapter's wrappers."""
    wrapped = [name for name, _ in model.named_parameters() if ".base_layer." in name]
    if wrapped:
        raise ValueError(
            f"the model carries an adapter (at {wrapped[0]} and {len(wrapped) - 1} more); save the adapter, or unload it first"
        )


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Keep transformers from drawing a bar for every file: pipelines draw their own."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
