"""A recorded case, and what comparing it found."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pararl.readers import read_json, read_tensors, read_text

LOGITS, LOSSES, PROBABILITIES, PIXELS, PIXELS_FULL = 2e-4, 1e-4, 2e-5, 1e-4, 1e-3
"""Largest differences that still count as the same, absolute; agreeing implementations come to 1e-5. Ids and counts must be equal."""

LISTS = ("magvitv2", "mmada_8b", "showo_1.3b", "showo2_1.5b")
"""Files of a case that lists the parameters of released models."""


@dataclass(frozen=True, slots=True)
class Case:
    """A recorded case in memory."""

    directory: Path
    family: str
    config: dict[str, Any]
    tensors: "Recorded"
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

    def run(self, name: str) -> dict[str, Any]:
        """The settings of one recorded run. Raises ValueError where the README.md of the case does not give them."""
        found = self.settings.get(name)
        if not isinstance(found, dict):
            raise ValueError(f"{self.directory}: README.md gives no settings of {name!r} behind 'Settings:', which its tensors need")
        return found


class Recorded(dict[str, Tensor]):
    """Recorded tensors by name, which keep account of those that were looked at."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__(tensors)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        if name not in self:
            raise ValueError(f"the case has no tensor {name!r}, which others of it need")
        self.read.add(name)
        return super().__getitem__(name)


@dataclass(slots=True)
class Comparison:
    """What was compared, and what was not."""

    tensors: dict[str, dict[str, float]] = field(default_factory=dict)
    """Per tensor its largest absolute ``difference`` and the ``tolerance``; ids and counts: how many are not equal, and 0. The difference
    is infinite for another shape, for what is not a number, and where nothing was left to compare."""
    left_out: dict[str, str] = field(default_factory=dict)
    """What is not compared, each with the reason: a tensor, or until ``account`` all behind ``name.``."""
    unread: list[str] = field(default_factory=list)
    """Recorded tensors that nothing looked at: they might be anything, so the case does not hold."""

    def close(self, name: str, ours: Tensor, theirs: Tensor, tolerance: float) -> None:
        """Compare floats, which must have the same shape."""
        gap = float("inf")
        if ours.shape == theirs.shape and theirs.numel():
            gap = (ours.double() - theirs.double()).abs().max().item()
        # NaN has no place in an order, so that nobody could say which tensor is furthest off; and JSON has none.
        self._add(name, float("inf") if gap != gap else gap, tolerance)

    def equal(self, name: str, ours: Tensor | Sequence[int], theirs: Tensor | Sequence[int]) -> None:
        """Compare ids or counts: the difference is the number of entries that are not equal."""
        a, b = torch.as_tensor(ours), torch.as_tensor(theirs)
        self._add(name, float((a != b).sum()) if a.shape == b.shape and a.numel() else float("inf"), 0.0)

    def _add(self, name: str, difference: float, tolerance: float) -> None:
        if name in self.tensors:
            raise ValueError(f"{name} is compared twice: the second would hide the first")
        self.tensors[name] = {"difference": difference, "tolerance": tolerance}

    def account(self, recorded: Recorded) -> None:
        """Note which recorded tensors nothing looked at, and name each that was left out."""
        if not recorded:
            return
        reasons, self.left_out = self.left_out, {}
        for name in sorted(recorded.keys() - recorded.read):
            reason = next((why for group, why in reasons.items() if f"{name}.".startswith(f"{group}.")), None)
            if reason is None:
                self.unread.append(name)
            else:
                self.left_out[name] = reason

    @property
    def ok(self) -> bool:
        """Whether something was compared, every difference is within its tolerance, and no recorded tensor was passed over."""
        within = all(entry["difference"] <= entry["tolerance"] for entry in self.tensors.values())
        return bool(self.tensors) and within and not self.unread


def read_case(directory: Path) -> Case:
    """The case in ``directory``. Raises ValueError where there is none that is known."""
    for name in ("schedules", "prompts"):
        if (directory / f"{name}.json").exists():
            return Case(directory, name, read_json(directory / f"{name}.json"), Recorded({}), {}, {})
    if any((directory / f"{name}.json").exists() for name in LISTS):
        lists = {path.stem: read_json(path) for path in sorted(directory.glob("*.json"))}
        return Case(directory, "released_keys", lists, Recorded({}), {}, {})
    if not (directory / "config.json").exists() or not (directory / "cases.safetensors").exists():
        known = ", ".join(f"{name}.json" for name in ("schedules", "prompts", *LISTS))
        raise ValueError(f"{directory} holds no recorded case: none of {known}, and no config.json with cases.safetensors")
    config = read_json(directory / "config.json")
    tensors = Recorded(read_tensors(directory / "cases.safetensors"))
    readme = directory / "README.md"
    text = read_text(readme) if readme.exists() else ""
    family = _family(config, tensors)
    if family is None:
        raise ValueError(f"{directory} holds a case of no known family (model_type {config.get('model_type')!r})")
    return Case(directory, family, config, tensors, _json_behind(text, "Layout numbers"), _json_behind(text, "Settings"))


def _family(config: dict[str, Any], tensors: Mapping[str, Tensor]) -> str | None:
    if {"encoder", "decoder", "quantize"} <= config.keys():
        return "magvitv2"
    named = {"VQModel": "amused_vq", "Showo": "showo", "Showo2Qwen2_5": "showo2"}
    if config.get("_class_name") in named:
        return named[config["_class_name"]]
    if "ddconfig" in config:
        return "taming_vqgan"
    if config.get("model_type") == "chameleon":
        return "chameleon"
    if config.get("model_type") == "mmada":
        return "mmada_parallel_m" if "uncond_prompt_ids" in tensors else "mmada"
    return "mmada_parallel_a" if "LLaDAForMultiModalGeneration" in (config.get("architectures") or ()) else None


def _json_behind(text: str, title: str) -> dict[str, Any]:
    """The first JSON object behind ``title`` and a colon; empty where the text has none."""
    found = re.search(re.escape(title) + r"[^:\n]*:\s*(?=\{)", text)
    return json.JSONDecoder().raw_decode(text[found.end() :])[0] if found else {}
