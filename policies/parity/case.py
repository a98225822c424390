"""A recorded case, and what comparing it found."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

LOGITS, PROBABILITIES, PIXELS, PIXELS_FULL = 2e-4, 2e-5, 1e-4, 1e-3
"""Largest differences that still count as the same, absolute; agreeing implementations come to 1e-5. Ids and counts must be equal."""


@dataclass(frozen=True, slots=True)
class Case:
    """A recorded case in memory."""

    directory: Path
    family: str
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    layout: dict[str, Any]
    """Ids and sizes of the reduced vocabulary."""
    settings: dict[str, Any]
    """Of the recorded runs."""

    def setting(self, name: str) -> Any:
        """One of ``settings`` or ``layout``. Raises ValueError where the README.md of the case does not give it."""
        for given in (self.settings, self.layout):
            if name in given:
                return given[name]
        raise ValueError(f"{self.directory}: README.md gives no {name!r} behind 'Settings:' or 'Layout numbers:', which its tensors need")


@dataclass(slots=True)
class Comparison:
    """What was compared, and what was not."""

    tensors: dict[str, dict[str, float]] = field(default_factory=dict)
    """Per tensor its largest absolute ``difference`` and the ``tolerance``; ids and counts: how many are not equal, and 0."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Recorded outputs that are not compared, each with the reason."""

    def close(self, name: str, ours: Tensor, theirs: Tensor, tolerance: float) -> None:
        """Compare floats, which must have the same shape."""
        same = ours.shape == theirs.shape
        gap = (ours.double() - theirs.double()).abs().max().item() if same and theirs.numel() else 0.0 if same else float("inf")
        self.tensors[name] = {"difference": float("inf") if gap != gap else gap, "tolerance": tolerance}

    def equal(self, name: str, ours: Tensor | list[int], theirs: Tensor | list[int]) -> None:
        """Compare ids or counts: the difference is the number of entries that are not equal."""
        a, b = torch.as_tensor(ours), torch.as_tensor(theirs)
        self.tensors[name] = {"difference": float((a != b).sum()) if a.shape == b.shape else float("inf"), "tolerance": 0.0}

    @property
    def ok(self) -> bool:
        """Whether something was compared and every difference is within its tolerance."""
        return bool(self.tensors) and all(entry["difference"] <= entry["tolerance"] for entry in self.tensors.values())


def read_case(directory: Path) -> Case:
    """The case in ``directory``. Raises ValueError where there is none that is known."""
    if (directory / "schedules.json").exists():
        return Case(directory, "schedules", json.loads((directory / "schedules.json").read_text()), {}, {}, {})
    if not (directory / "config.json").exists() or not (directory / "cases.safetensors").exists():
        raise ValueError(f"{directory} holds no recorded case: neither schedules.json nor config.json with cases.safetensors")
    config = json.loads((directory / "config.json").read_text())
    tensors = load_file(directory / "cases.safetensors")
    readme = directory / "README.md"
    text = readme.read_text() if readme.exists() else ""
    family = _family(config, tensors)
    if family is None:
        raise ValueError(f"{directory} holds a case of no known family (model_type {config.get('model_type')!r})")
    return Case(directory, family, config, tensors, _json_behind(text, "Layout numbers"), _json_behind(text, "Settings"))


def _family(config: dict[str, Any], tensors: dict[str, Tensor]) -> str | None:
    if {"encoder", "decoder", "quantize"} <= config.keys():
        return "magvitv2"
    if config.get("model_type") == "mmada":
        return "mmada_parallel_m" if "uncond_prompt_ids" in tensors else "mmada"
    return "mmada_parallel_a" if any(name.endswith(".uncon_text") for name in tensors) else None


def _json_behind(text: str, title: str) -> dict[str, Any]:
    """The first JSON object behind ``title`` and a colon; empty where the text has none."""
    found = re.search(re.escape(title) + r"[^:\n]*:\s*(?=\{)", text)
    return json.JSONDecoder().raw_decode(text[found.end() :])[0] if found else {}
