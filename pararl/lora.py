"""A LoRA as its folder holds it: PEFT's configuration and tensors, read without a model, checked, and merged weight by weight."""

import math
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pararl.adapter_files import CONFIG, LISTED, PREFIX, TENSORS, AdapterFiles, refuse
from pararl.files import atomic_folder, write_json
from pararl.readers import read_json, read_tensors

PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": (None, "none"),
    "modules_to_save": (None, []),
    "target_parameters": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "exclude_modules": (None, []),
    "layers_to_transform": (None, []),
    "layer_replication": (None,),
    "use_dora": (None, False),
    "lora_bias": (None, False),
    "fan_in_fan_out": (None, False),
}
"""Fields of a configuration that must say this, so that ``alpha / r x B A`` is all that the adapter adds."""


@dataclass(frozen=True, slots=True)
class Lora:
    """What an adapter adds to the weights of its base."""

    files: AdapterFiles
    config: Mapping[str, Any]
    """PEFT's, as its file has it."""
    pairs: Mapping[str, tuple[Tensor, Tensor]] = field(repr=False)
    """A [r, in] and B [out, r] by the name of the weight [out, in] that they change."""

    @classmethod
    def read(cls, directory: Path) -> "Lora":
        """The adapter in a folder that ``pararl.adapter.save`` or PEFT wrote.

        Raises ValueError, naming the file, for one that is not readable, not whole, not finite or more than a plain LoRA.
        """
        files = AdapterFiles.read(directory)
        config, tensors = _config(directory / CONFIG), read_tensors(directory / TENSORS)
        halves: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            found = re.fullmatch(rf"{re.escape(PREFIX)}(.+)\.lora_([AB])\.weight", name)
            if not found or tensor.ndim != 2:
                raise ValueError(f"{directory / TENSORS} holds {name} {list(tensor.shape)}, which is no half of a LoRA of a linear layer")
            if not finite(tensor):
                raise ValueError(f"{directory / TENSORS}: {name} holds NaN or infinite numbers; take an earlier adapter, or train it anew")
            halves.setdefault(f"{found[1]}.weight", {})[found[2]] = tensor
        rank = files.rank
        single = [name for name, half in halves.items() if half.keys() != {"A", "B"} or {len(half["A"]), half["B"].shape[1]} != {rank}]
        if single:
            shown = ", ".join(single[:LISTED]) + (", ..." if single[LISTED:] else "")
            raise ValueError(f"{directory / TENSORS}: A and B of {len(single)} layers do not go together at rank {rank}: {shown}")
        return cls(files, config, {name: (half["A"], half["B"]) for name, half in halves.items()})

    @property
    def directory(self) -> Path:
        """Where it lies."""
        return self.files.directory

    @property
    def base(self) -> str:
        """The policy that it was trained on, as the run was given its name; empty where the folder does not say."""
        return self.config.get("base_model_name_or_path") or ""

    def check(self, shapes: Mapping[str, Sequence[int]], base: str) -> None:
        """Raise FileError unless it is an adapter of exactly the weights of these ``shapes``: those of the policy ``base``."""
        refuse(self.directory, base, self.files.problems({name: tuple(shape) for name, shape in shapes.items()}))

    def merged(self, name: str, weight: Tensor) -> Tensor:
        """``weight + scale B A`` for the weight of that name, summed in float32, in the weight's dtype; other weights as they are.

        Raises ValueError where the base is not finite, or the sum is not in that dtype.
        """
        if weight.is_floating_point() and not finite(weight):
            raise ValueError(f"{name} of the base holds NaN or infinite numbers: its checkpoint is broken, take a whole one")
        if name not in self.pairs:
            return weight
        a, b = self.pairs[name]
        found = (weight.float() + self.scale * (b.float() @ a.float())).to(weight.dtype)
        if not finite(found):
            raise ValueError(f"{name} with the adapter of {self.directory} is beyond the range of {weight.dtype}")
        return found

    @property
    def scale(self) -> float:
        """What ``B A`` is multiplied by."""
        rank, alpha = self.files.rank, self.files.alpha
        return float(alpha / math.sqrt(rank) if self.config.get("use_rslora") else alpha / rank)

    def export(self, directory: Path, base: str, revision: str | None, extras: Mapping[str, bytes]) -> None:
        """Write it as the new folder ``directory``, which appears whole or not at all.

        ``base`` and ``revision``: by which others have its base. ``extras``: further files by name. Raises FileExistsError where the folder
        is there.
        """
        if directory.exists():
            raise FileExistsError(f"{directory} exists already and is never overwritten")
        with atomic_folder(directory) as part:
            shutil.copyfile(self.directory / TENSORS, part / TENSORS)
            write_json(part / CONFIG, {**self.config, "base_model_name_or_path": base, "revision": revision})
            for name, content in extras.items():
                (part / name).write_bytes(content)


def finite(tensor: Tensor) -> bool:
    """Whether all numbers of a floating-point tensor are finite; told by two of them, since a mask of a large tensor takes memory."""
    return not tensor.numel() or bool(torch.stack(tensor.aminmax()).isfinite().all())


def _config(file: Path) -> dict[str, Any]:
    """PEFT's configuration. Raises ValueError for one that adds more than ``alpha / r x B A``."""
    found = read_json(file)
    for name, plain in PLAIN.items():
        if found.get(name) not in plain:
            raise ValueError(f"{file}: {name} is {found.get(name)!r}; only a plain LoRA can be merged here, merge this one through PEFT")
    return found
