"""Reading a model's weights from a directory: every key or an error, without a progress bar for each file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

Model = TypeVar("Model", bound=PreTrainedModel)


def read_model(kind: type[Model], directory: Path) -> Model:
    """``kind.from_pretrained(directory)``, but a key that is missing, left over or of another shape raises ValueError.

    transformers would fill a missing key with random numbers and go on.
    """
    with no_progress_bars():
        loaded: Any = kind.from_pretrained(directory, output_loading_info=True, use_safetensors=True)
    model: Model
    model, info = loaded
    wrong = {name: sorted(map(str, keys)) for name, keys in info.items() if keys}
    if wrong:
        found = "; ".join(f"{len(keys)} {name.replace('_', ' ')} ({', '.join(keys[:3])} ...)" for name, keys in wrong.items())
        raise ValueError(f"{directory} does not hold the weights of a {kind.__name__}: {found}")
    return model


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
