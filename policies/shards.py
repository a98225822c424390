"""Weights as files: read tensor by tensor from whatever a checkpoint has, written as safetensors with one tensor in memory at a time."""

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pararl.policy_files import REMEDY
from pararl.readers import parts_of, read_tensors
from policies.weights import unpickled

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What safetensors calls the dtypes of torch."""


@dataclass(frozen=True, slots=True)
class Form:
    """How a library names the safetensors files of a model, and how large it lets one grow."""

    stem: str
    index: str
    shard_bytes: int


TRANSFORMERS = Form("model", "model.safetensors.index.json", 5 * 10**9)
SHOWO = Form("pytorch_model", "diffusion_pytorch_model.safetensors.index.json", 10**10)
"""That of the code which Show-o was released with: its own name for a single file, diffusers' for the index."""
READ: tuple[tuple[str, Form], ...] = (
    ("pytorch_model.safetensors", SHOWO),
    (SHOWO.index, SHOWO),
    ("model.safetensors", TRANSFORMERS),
    (TRANSFORMERS.index, TRANSFORMERS),
    ("pytorch_model.bin", SHOWO),
    ("pytorch_model.bin.index.json", SHOWO),
)
"""Where a checkpoint's weights may be, in the order in which they are looked for, each with the form in which they are written again."""


def mapped(directory: Path) -> tuple[Form, dict[str, Tensor]]:
    """The weights in a directory by name, and the form to write them in. They stay mapped from their files: one that is not used is not
    read.

    Pickled weights are read as weights alone, which runs no code of theirs. Raises FileNotFoundError where there are none, and
    ValueError, naming the file, where one is not whole.
    """
    place, form = next(((directory / name, form) for name, form in READ if (directory / name).exists()), (directory, SHOWO))
    if place == directory:
        raise FileNotFoundError(f"{directory} holds no weights: neither of {', '.join(name for name, _ in READ)}")
    files = [place]
    if place.suffix == ".json":
        files = [directory / name for name in dict.fromkeys(parts_of(place, REMEDY).values())]
    return form, {name: tensor for file in files for name, tensor in _read(file).items()}


def _read(file: Path) -> dict[str, Tensor]:
    return read_tensors(file, REMEDY) if file.suffix == ".safetensors" else unpickled(file)


def shards(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Names in their order, cut so that the ``sizes`` of a part sum up to ``limit`` at most; what is larger stands alone."""
    parts: list[list[str]] = []
    left = 0
    for name, size in sizes.items():
        if not parts or size > left:
            parts.append([])
            left = limit
        parts[-1].append(name)
        left -= size
    return parts


def write(directory: Path, form: Form, weights: Mapping[str, Tensor], values: Iterator[Tensor], shard_bytes: int | None = None) -> None:
    """Write a checkpoint of the names, dtypes and shapes of ``weights``: one file, or shards and their index.

    ``values`` gives the tensors to write in the order of ``weights``; each is asked for when its turn comes and held no longer than that.
    """
    sizes = {name: tensor.nbytes for name, tensor in weights.items()}
    parts = shards(sizes, shard_bytes or form.shard_bytes)
    names = [f"{form.stem}-{i:05d}-of-{len(parts):05d}.safetensors" for i in range(1, 1 + len(parts))]
    if len(parts) == 1:
        names = [f"{form.stem}.safetensors"]
    for file, part in zip(names, parts, strict=True):
        _write(directory / file, {name: weights[name] for name in part}, values)
    if len(parts) > 1:
        places = {name: file for file, part in zip(names, parts, strict=True) for name in part}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": dict(sorted(places.items()))}
        (directory / form.index).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write(file: Path, weights: Mapping[str, Tensor], values: Iterator[Tensor]) -> None:
    """One safetensors file: the length of its table of contents, that table, and the tensors one behind the other."""
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in weights.items():
        table[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [end, end + tensor.nbytes]}
        end += tensor.nbytes
    head = json.dumps(table, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)  # so that the tensors begin at a multiple of eight
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(head)) + head)
        for tensor, value in zip(weights.values(), values, strict=False):
            assert (value.dtype, value.shape) == (tensor.dtype, tensor.shape)
            out.write(value.detach().contiguous().flatten().view(torch.uint8).numpy().data)
