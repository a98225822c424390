"""Reading a model's weights from a directory: every key or an error, without a progress bar for each file."""

import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from pararl.policy_files import RELEASED_WEIGHTS, REMEDY
from pararl.readers import FileError, read_json, read_tensors, tensor_kinds, weight_files

LISTED = 12
"""Keys that an error names."""
RELEASED = ("pytorch_model.safetensors", "diffusion_pytorch_model.safetensors.index.json")
"""What Show-o's library calls its weights, in one file or in shards, where transformers has ``model.safetensors``."""
OWN_FILES = ("model.safetensors",)
"""Weights that a directory of ours has."""
BROKEN = (OSError, ValueError, RuntimeError, TypeError, KeyError, EOFError, SafetensorError, pickle.UnpicklingError)
"""What reading files raises that are not what they should be."""
Model = TypeVar("Model", bound=PreTrainedModel)


def read_model(kind: type[Model], directory: Path, released: bool = False, **options: Any) -> Model:
    """``kind.from_pretrained(directory)``, but a key that is missing, left over or of another shape raises ValueError.
    FileError is raised for files that are not whole, and for numbers that are not finite.

    transformers would fill a missing key with random numbers and go on. ``options`` that are not None go to it (dtype, device_map).
    ``released``: a ``pytorch_model`` is taken too, as safetensors, or else as a file of torch's (read as weights alone).
    """
    files = weight_files(directory, RELEASED_WEIGHTS if released else OWN_FILES, REMEDY)
    config = read_config(kind.config_class, directory)
    if released and (named := next((name for name in RELEASED if (directory / name).exists()), None)):
        config.transformers_weights = named
    # Keys of another shape pass here, so that `_refuse` lists them with those that are missing or left over.
    given = {name: value for name, value in options.items() if value is not None}
    try:
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
    except torch.OutOfMemoryError:
        raise
    except (*BROKEN, ArithmeticError, AttributeError, IndexError) as error:
        raise FileError(directory, f"does not hold a {kind.__name__}: {_why(error)}", REMEDY) from error
    model: Model
    model, info = loaded
    _refuse(directory, kind.__name__, {name.replace("_", " "): sorted(map(str, keys)) for name, keys in info.items()})
    check_finite(model, files)
    return model


def read_config(kind: Any, directory: Path) -> Any:
    """``kind.from_pretrained(directory)`` of a configuration. Raises FileError for a ``config.json`` that does not make one."""
    file = directory / "config.json"
    read_json(file, REMEDY)
    try:
        return kind.from_pretrained(directory)
    except (*BROKEN, ArithmeticError, AttributeError, IndexError, StrictDataclassError) as error:
        raise FileError(file, f"does not make a {kind.__name__}: {_why(error)}", REMEDY) from error


def load_exactly(model: nn.Module, directory: Path, names: Sequence[str]) -> None:
    """Load the first file of ``names`` that a directory has into a module. Raises FileNotFoundError where it has none, ValueError that
    lists the keys that are missing, left over or of another shape, and FileError for numbers that are not finite.

    A file that is not safetensors is one of torch's and is read as weights alone, which runs no code of it.
    """
    found = next((directory / name for name in names if (directory / name).exists()), None)
    if found is None:
        raise FileNotFoundError(f"{directory} holds no weights: neither of {', '.join(names)}")
    load_state(model, read_tensors(found, REMEDY) if found.suffix == ".safetensors" else unpickled(found), directory)
    check_finite(model, [found])


def load_state(model: nn.Module, state: Mapping[str, Tensor], directory: Path) -> None:
    """Load weights that were read from a directory. Raises ValueError as ``check_keys`` does."""
    check_keys(model, state, directory)
    model.load_state_dict(state)


def check_keys(model: nn.Module, state: Mapping[str, Tensor], directory: Path) -> None:
    """Raise ValueError that lists the keys of ``state``, what a directory holds, that are missing, left over or of another shape."""
    own = model.state_dict()
    wrong = {
        "missing keys": sorted(own.keys() - state.keys()),
        "unexpected keys": sorted(state.keys() - own.keys()),
        "mismatched keys": sorted(name for name in own.keys() & state.keys() if own[name].shape != state[name].shape),
    }
    _refuse(directory, type(model).__name__, wrong)


def unpickled(file: Path, within: str | None = None) -> dict[str, Tensor]:
    """The tensors of a file of torch's, read as weights alone; those under the key ``within``, where the file has it.

    Raises FileError for one that holds anything else.
    """
    weight_files(file.parent, (file.name,), REMEDY)
    try:
        state = torch.load(file, weights_only=True, map_location="cpu", mmap=True)
    except BROKEN as error:
        raise FileError(file, f"cannot be read as weights alone: {_why(error)}", REMEDY) from error
    if isinstance(state, dict) and within in state:
        state = state[within]
    if not isinstance(state, dict) or not all(isinstance(name, str) and isinstance(x, Tensor) for name, x in state.items()):
        raise FileError(file, f"holds {type(state).__name__} where tensors by name are expected", REMEDY)
    return state


def _why(error: BaseException) -> str:
    """The cause in a few words: libraries write pages."""
    if isinstance(error, pickle.UnpicklingError):
        return "its pickle holds more than tensors, which is never run"
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first[:200]}"


def check_finite(model: nn.Module, files: Sequence[Path]) -> None:
    """Raise FileError, naming file and tensor, where a weight of a model that was read from ``files`` is not a finite number.

    Else its logits would be none either, and the first adapter that is loaded would be blamed. Weights left on disk are passed over.
    """
    for name, tensor in model.state_dict().items():
        if tensor.is_meta or not tensor.is_floating_point() or not tensor.numel():
            continue
        low, high = tensor.aminmax()  # one pass and no copy; NaN goes through
        if not (low.isfinite() and high.isfinite()):
            file = next((file for file in files if file.suffix == ".safetensors" and name in tensor_kinds(file)), files[0])
            raise FileError(file, f"has numbers that are not finite (NaN or infinite) in its tensor {name}", REMEDY)


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
