"""One stage of a pretraining: the model, its optimiser and its curve, from which an interrupted training goes on; and the record of it."""

import platform
import sys
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from pararl import optimizer_state
from pararl.files import atomic_folder, atomic_path, latest, write_json
from pararl.readers import FileError, read_json, read_tensors

STATE, TENSORS = "state.json", "tensors.safetensors"


@dataclass
class PretrainingState:
    """The state of one stage, saved and resumed as safetensors and JSON."""

    model: nn.Module
    folder: Path
    steps: int
    lr: float
    seed: int
    batch: int
    step: int = 0

    def __post_init__(self) -> None:
        self.curve: list[dict[str, float]] = []
        self.seconds = 0.0
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=self.lr, betas=(0.9, 0.99), weight_decay=0.01)
        place = latest(self.folder)
        if (place / STATE).exists():
            self._resume(place)

    def rate(self) -> float:
        """Learning rate of this step: 5 % linear warm-up, then cosine to a twentieth."""
        warm = max(1, self.steps // 20)
        if self.step < warm:
            return self.lr * (self.step + 1) / warm
        share = (self.step - warm) / max(1, self.steps - warm)
        return self.lr * (0.05 + 0.95 * 0.5 * (1 + float(np.cos(np.pi * share))))

    def advance(self) -> None:
        """One optimiser step on the gradients that the model's parameters hold; they are cleared."""
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1

    def save(self) -> None:
        """Write the state so that an interrupted save leaves the previous one."""
        tensors = {f"model.{name}": x.contiguous().clone() for name, x in self.model.state_dict().items()}  # tied ones are kept twice
        tensors |= {f"optimizer.{name}": x.contiguous() for name, x in optimizer_state.tensors(self.optimizer).items()}
        with atomic_folder(self.folder) as part:
            save_file(tensors, part / TENSORS)
            write_json(part / STATE, {"step": self.step, **self.recipe(), "seconds": self.seconds, "curve": self.curve})

    def recipe(self) -> dict[str, float]:
        """What a training that goes on must not change."""
        return {"steps": self.steps, "lr": self.lr, "seed": self.seed, "batch": self.batch}

    def _resume(self, place: Path) -> None:
        remedy = "delete its folder: the stage begins anew"
        facts = read_json(place / STATE, remedy, keys=("step", "seconds", "curve", *self.recipe()))
        for option, asked in self.recipe().items():
            if facts[option] != asked:
                raise SystemExit(
                    f"{self.folder} holds a training with --{option} {facts[option]}, not {asked}: delete it, or ask for the same"
                )
        tensors = read_tensors(place / TENSORS, remedy)
        moments = {key.removeprefix("optimizer."): value for key, value in tensors.items() if key.startswith("optimizer.")}
        try:
            self.model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
            optimizer_state.load_tensors(self.optimizer, moments)
        except (RuntimeError, ValueError) as error:
            raise FileError(place / TENSORS, f"holds no training of this model: {error}", remedy) from error
        self.step, self.seconds, self.curve = facts["step"], facts["seconds"], facts["curve"]

    def record(self, out: Path, name: str, result: dict[str, Any]) -> None:
        """Add this stage's command, machine, curve and result to OUT/training.json, and draw the curve to OUT/<name>.png."""
        path = out / "training.json"
        stages = read_json(path, "move it away: it is written anew") if path.exists() else {}
        stages[name] = {
            "command": "python pipelines/pretrain.py " + " ".join(sys.argv[1:]),
            "seed": self.seed,
            "steps": self.step,
            "schedule": self.steps,
            "batch": self.batch,
            "lr": self.lr,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "seconds": round(self.seconds),
            "threads": torch.get_num_threads(),
            "machine": platform.processor() or platform.machine(),
            "torch": torch.__version__.split("+")[0],
            "date": date.today().isoformat(),
            "result": result,
            "curve": self.curve,
        }
        write_json(path, stages)
        draw_curve(out / f"{name}.png", self.curve)


def draw_curve(path: Path, curve: list[dict[str, float]]) -> None:
    """The losses (left) and shares (right: names that end in ``strict``, ``identical`` or ``right``) of a stage over its steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    losses, shares = figure.subplots(1, 2)
    for name in [key for key in curve[-1] if key != "step"]:
        is_share = name.endswith(("strict", "identical", "right"))
        (shares if is_share else losses).plot([row["step"] for row in curve], [row[name] for row in curve], label=name)
    for axes, label in ((losses, "loss"), (shares, "share right, on what was never trained on")):
        axes.set(xlabel="step", ylabel=label)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    losses.set_yscale("log")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
