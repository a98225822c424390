"""What the files of a LoRA adapter tell of it, read without torch: whether it is whole, and whether it fits a policy.

``check`` sees names and shapes before any model loads; ``pararl.adapter.load`` then sees every number.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pararl.readers import FileError, Kinds, read_json, tensor_kinds, weight_files

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
REMEDY = "name a folder that holds an adapter of this policy: RUN/adapters/ARM"
"""What helps against an adapter that cannot be used."""
PREFIX = "base_model.model."
"""What PEFT puts in front of the names of modules."""
SIDE = re.compile(r"(.+)\.lora_(A|B)\.weight")
PLAIN = ("rank_pattern", "alpha_pattern", "layers_to_transform", "exclude_modules", "target_parameters", "modules_to_save", "use_dora")
"""Settings of PEFT that change which tensors there are; where all are empty, ``target_modules`` alone says it."""
LISTED = 3
"""Tensors that an error names."""
START = Path("adapters") / "start"
"""Where a run keeps a copy of the adapter that it starts from, in its folder."""
OTHER = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save", "layers_to_transform", "lora_bias")
"""Settings of PEFT that make another kind of adapter than the one that is trained here."""


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """A folder that PEFT's ``save_pretrained`` wrote."""

    directory: Path
    rank: int
    alpha: float
    targets: str | tuple[str, ...]
    """A regular expression of whole names of modules, or ends of their names."""
    plain: bool
    """Whether ``targets`` alone say which tensors there are."""
    kinds: Kinds

    @classmethod
    def read(cls, directory: Path) -> "AdapterFiles":
        """Read its configuration and the header of its tensors. Raises FileError for what is no LoRA adapter."""
        if not directory.is_dir():
            raise FileError(directory, "is no folder of an adapter", REMEDY)
        file = directory / CONFIG
        raw = read_json(file, REMEDY, keys=("peft_type", "r", "lora_alpha", "target_modules"))
        (tensors,) = weight_files(directory, (TENSORS,), REMEDY)
        if raw["peft_type"] != "LORA":
            raise FileError(file, f"is of an adapter of type {raw['peft_type']!r}, not LORA", REMEDY)
        rank, alpha, targets = raw["r"], raw["lora_alpha"], raw["target_modules"]
        if type(rank) is not int or rank < 1 or type(alpha) not in (int, float) or not math.isfinite(alpha):
            raise FileError(file, f"has r {rank!r} and lora_alpha {alpha!r}, which must be numbers, r of at least 1", REMEDY)
        plain = targets != "all-linear" and not any(raw.get(name) for name in PLAIN)
        return cls(directory, rank, alpha, _targets(file, targets), plain, tensor_kinds(tensors, REMEDY))

    def problems(self, base: Mapping[str, tuple[int, ...]]) -> dict[str, list[str]]:
        """What does not fit a policy with these weights, shapes by name: tensors that are missing, left over or of another shape."""
        if self.plain:
            layers = {name.removesuffix(".weight") for name, shape in base.items() if name.endswith(".weight") and len(shape) == 2}
            modules = {layer for layer in layers if self._wraps(layer)}
        else:
            modules = {found[1] for name in self.kinds if (found := SIDE.fullmatch(name.removeprefix(PREFIX)))}
        wanted = {f"{PREFIX}{module}.lora_{side}.weight": (module, side) for module in modules for side in "AB"}
        left = [name for name in self.kinds if name not in wanted or f"{wanted[name][0]}.weight" not in base]
        different = []
        for name, (_, shape) in self.kinds.items():
            if name in left:
                continue
            module, side = wanted[name]
            expected = self._shape(base[f"{module}.weight"], side)
            if expected is not None and shape != expected:
                different.append(f"{name} is {list(shape)}, not {list(expected)}")
        missing = [name for name, (module, _) in wanted.items() if name not in self.kinds and f"{module}.weight" in base]
        return {"missing": sorted(missing), "left over": left if self.plain else [], "of another shape": different}

    def _wraps(self, layer: str) -> bool:
        if isinstance(self.targets, str):
            return re.fullmatch(self.targets, layer) is not None
        return any(layer == end or layer.endswith(f".{end}") for end in self.targets)

    def _shape(self, weight: tuple[int, ...], side: str) -> tuple[int, ...] | None:
        """Of one side of a layer of that weight; None where the configuration alone does not say it."""
        if not self.plain or len(weight) != 2:
            return None
        return (self.rank, weight[1]) if side == "A" else (weight[0], self.rank)


def _targets(file: Path, value: Any) -> str | tuple[str, ...]:
    if isinstance(value, list) and value and all(isinstance(name, str) for name in value):
        return tuple(value)
    if isinstance(value, str):
        try:
            re.compile(value)
        except re.error as error:
            raise FileError(file, f"has target_modules that are no regular expression: {error}", REMEDY) from None
        return value
    raise FileError(file, f"has no target_modules, but {value!r}", REMEDY)


def check(directory: Path, policy: Path) -> AdapterFiles:
    """The adapter in ``directory``, seen to fit the saved policy whose files lie in ``policy``: each tensor there, none left over.

    Names and shapes alone, in a moment. Where ``policy`` holds no saved policy, such as a release on the hub, the adapter is read and
    ``pararl.adapter.load`` compares it later. Raises FileError that names the file and the tensors.
    """
    found = AdapterFiles.read(directory)
    if (policy / "policy.json").is_file():
        base: Kinds = {}
        for file in weight_files(policy):
            base |= tensor_kinds(file)
        refuse(directory, f"the policy in {policy}", found.problems({name: shape for name, (_, shape) in base.items()}))
    return found


def refuse(directory: Path, what: str, problems: Mapping[str, list[str]]) -> None:
    """Raise FileError where an adapter does not fit ``what``: lists of tensors by what is wrong with them."""
    shown = {wrong: [*names[:LISTED], *["..."] * bool(names[LISTED:])] for wrong, names in problems.items()}
    lists = [f"{len(names)} {wrong} ({', '.join(shown[wrong])})" for wrong, names in problems.items() if names]
    if lists:
        raise FileError(directory / TENSORS, f"does not fit {what}: of its tensors are {'; '.join(lists)}", REMEDY)


def start_of(directory: Path) -> tuple[int, int]:
    """Rank and alpha of the LoRA adapter in a PEFT directory. Raises FileError for what no run can start from."""
    found, file = AdapterFiles.read(directory), directory / CONFIG
    if others := [name for name, value in read_json(file, REMEDY).items() if name in OTHER and value]:
        raise FileError(file, f"sets {', '.join(others)}, which a run does not train", REMEDY)
    if found.alpha != int(found.alpha):
        raise FileError(file, f"has lora_alpha {found.alpha}, and a run takes whole numbers", REMEDY)
    sides = [(".lora_A." in name, shape) for name, (_, shape) in found.kinds.items() if ".lora_A." in name or ".lora_B." in name]
    if not sides or any(found.rank != (shape[0] if down else shape[-1]) for down, shape in sides):
        raise FileError(directory / TENSORS, f"holds no LoRA tensors of rank {found.rank}, which {CONFIG} says they have", REMEDY)
    return found.rank, int(found.alpha)
