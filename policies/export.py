"""A policy and its adapter as one checkpoint in the layout of the base: the same files and names of weights.

The export of a release loads as that release does, here and by the release's own code. Its ``policy.json`` says which release it is, and
beside the weights it has the tokenizers that the release takes from elsewhere.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pararl.files import atomic_folder
from pararl.lora import Lora
from policies import sources
from policies.families.table import family_of
from policies.shards import SHOWO, Form, mapped, write
from policies.sources import POLICY_FILE, Parts
from policies.weights import check_keys

CONFIGS = ("config.json", "generation_config.json", "LICENSE*")
TOKENIZER = ("*token*.json", "vocab.json", "merges.txt", "*.model", "chat_template*")
"""What libraries call the files of a text tokenizer."""


@dataclass(frozen=True, slots=True)
class Base:
    """A checkpoint to merge into, looked at and not loaded: its weights are mapped from their files."""

    name: str
    parts: Parts
    form: Form
    weights: Mapping[str, Tensor]

    @classmethod
    def find(cls, name: str, lora: Lora) -> "Base":
        """The policy ``name``, as ``policies.load`` finds it. Raises what that does, and ValueError unless its weights are exactly those
        of its model and the adapter is one of them."""
        parts = sources.find(name)
        form, weights = mapped(parts.backbone)
        kind = family_of(parts).backbone
        config: Any = kind.config_class
        with torch.device("meta"):
            model = kind(config.from_pretrained(parts.backbone))
        check_keys(model, weights, parts.backbone)
        lora.check({key: tuple(tensor.shape) for key, tensor in weights.items()}, name)
        return cls(name, parts, form, weights)

    @property
    def bytes(self) -> int:
        """Of the weights of the backbone."""
        return sum(tensor.nbytes for tensor in self.weights.values())


def quiet(size: int) -> None:
    """Tell nobody how many bytes were written."""


def export(
    base: Base,
    lora: Lora,
    directory: Path,
    extras: Mapping[str, bytes],
    tell: Callable[[int], object] = quiet,
    shard_bytes: int | None = None,
) -> None:
    """Write ``base`` with the adapter as the new folder ``directory``, which appears whole or not at all.

    ``extras``: further files by name, such as the card. ``tell`` is called with the bytes of every tensor that is written. ``shard_bytes``:
    largest file of weights; None = what the library of the release takes. One tensor at a time is in memory.

    Raises FileExistsError where the folder is there, OSError where the disk is full, and ValueError for numbers that are not finite.
    """
    if directory.exists():
        raise FileExistsError(f"{directory} exists already and is never overwritten")
    free = shutil.disk_usage(next(place for place in directory.absolute().parents if place.exists())).free
    if free < base.bytes:
        raise OSError(f"{directory}: the checkpoint takes {base.bytes:,} bytes, the disk has {free:,} left")
    with atomic_folder(directory) as part:
        _copy_beside(base.parts, part)
        write(part, base.form, base.weights, _merged(base, lora, tell), shard_bytes)
        for name, content in extras.items():
            (part / name).write_bytes(content)


def _merged(base: Base, lora: Lora, tell: Callable[[int], object]) -> Iterator[Tensor]:
    for name, weight in base.weights.items():
        yield lora.merged(name, weight)
        tell(weight.nbytes)


def _copy_beside(parts: Parts, directory: Path) -> None:
    """All but the weights of the backbone: its configuration, the tokenizers, and what says which policy it is."""
    _copy(parts.backbone, directory, CONFIGS)
    _copy(parts.text or parts.backbone, directory / "text_tokenizer" if parts.text else directory, TOKENIZER)
    own = parts.images.parent == parts.backbone  # where the release has a folder of its own for it
    _copy_images(parts.images, directory / (parts.images.name if own else "image_tokenizer"))
    described = {"family": parts.family} | ({"release": parts.release} if parts.release else {}) | {"settings": parts.settings}
    (directory / POLICY_FILE).write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")


def _copy_images(source: Path, directory: Path) -> None:
    """The image tokenizer, as safetensors where it is pickled."""
    _copy(source, directory, ("config.json", "*.safetensors"))
    if not list(directory.glob("*.safetensors")):
        _, weights = mapped(source)
        write(directory, SHOWO, weights, iter(weights.values()))


def _copy(source: Path, directory: Path, forms: tuple[str, ...]) -> None:
    directory.mkdir(exist_ok=True)
    for file in (path for form in forms for path in sorted(source.glob(form)) if path.is_file()):
        shutil.copyfile(file, directory / file.name)  # of a link, what it leads to: the hub's cache holds links
