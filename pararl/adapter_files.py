"""What the files of an adapter tell of it, read without torch."""

import json
import struct
from pathlib import Path
from typing import Any

from pararl.config import ConfigError

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
START = Path("adapters") / "start"
"""Where a run keeps a copy of the adapter that it starts from, in its folder."""
OTHER = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save", "layers_to_transform", "lora_bias")
"""Settings of PEFT that make another kind of adapter than the one that is trained here."""


def start_of(directory: Path) -> tuple[int, int]:
    """Rank and alpha of the LoRA adapter in a PEFT directory. Raises ConfigError for what no run can start from."""
    raw, shapes = _json(directory / CONFIG), _shapes(directory / TENSORS)
    rank, alpha = raw.get("r"), raw.get("lora_alpha")
    if raw.get("peft_type") != "LORA" or type(rank) is not int or rank < 1 or not isinstance(alpha, int | float) or alpha != int(alpha):
        raise ConfigError(f"{directory / CONFIG} is of no LoRA adapter with whole r and lora_alpha: r {rank!r}, lora_alpha {alpha!r}")
    if others := [name for name in OTHER if raw.get(name)]:
        raise ConfigError(f"{directory / CONFIG} sets {', '.join(others)}, which a run does not train")
    sides = [(".lora_A." in name, shape) for name, shape in shapes.items() if ".lora_A." in name or ".lora_B." in name]
    if not sides or any(rank != (shape[0] if down else shape[-1]) for down, shape in sides):
        raise ConfigError(f"{directory / TENSORS} holds no LoRA tensors of rank {rank}, which {CONFIG} says they have")
    return rank, int(alpha)


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{file} is not a JSON object")
    return found


def _shapes(file: Path) -> dict[str, list[int]]:
    """Shapes by name, from the header: eight bytes of its length, then JSON."""
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            if length > file.stat().st_size:
                raise ValueError("it is cut off, or no safetensors file")
            header = json.loads(opened.read(length))
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        if 8 + length + max((entry["data_offsets"][1] for entry in tensors.values()), default=0) != file.stat().st_size:
            raise ValueError("it is cut off")
        return {name: entry["shape"] for name, entry in tensors.items()}
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
