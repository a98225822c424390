"""Make an embedded base: train the image tokenizer on scenes, then the masked-diffusion policy on scene prompts.

    python pipelines/pretrain.py tokenizer --out outputs/scenes-mmada
    python pipelines/pretrain.py policy    --out outputs/scenes-mmada

Both stages show a progress bar, save what they need to go on every few minutes under OUT/.training and resume from there when run again.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:] = [str(ROOT), *(entry for entry in sys.path if Path(entry).resolve() not in (ROOT, ROOT / "pipelines"))]

import argparse
import json
import platform
import time
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from pararl import scenes
from pararl.files import atomic_path, write_json
from pararl.scenes.pixels import render_cells
from policies.backbones.llada import MMadaConfig, MMadaModelLM
from policies.image.magvitv2 import MAGVITv2, MAGVITv2Config
from policies.image.training import tokenizer_loss
from policies.mmada import MMadaPolicy, MMadaSettings
from policies.pretraining import supervised_loss
from policies.text import word_tokenizer

BITS = 8
LEVELS = {"ch": 32, "ch_mult": [1, 1, 1, 2], "num_res_blocks": [0, 1, 1, 1], "z_channels": BITS}
SETTINGS = {"grid": (4, 4), "prompt_tokens": 32, "text_tokens": 24, "text_block": 12, "steps": 8, "choice_temperature": 8.0}
SIZES = {"d_model": 128, "n_layers": 4, "n_heads": 4, "mlp_hidden_size": 384, "max_sequence_length": 128}
# A choice temperature of 8 is as good as random order: the most confident cells of a sparse scene are its empty ones, and committing those
# first leaves the objects to the end, where several are drawn at once.
UNSEEN = 10**9
"""Indices from here on are never trained on."""


@dataclass
class Training:
    """The state of one stage: model, optimiser, step and curve; saved and resumed as safetensors and JSON."""

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
        if (self.folder / "state.json").exists():
            self._resume()

    def rate(self) -> float:
        """Learning rate of this step: 5 % linear warm-up, then cosine to a twentieth."""
        warm = max(1, self.steps // 20)
        if self.step < warm:
            return self.lr * (self.step + 1) / warm
        share = (self.step - warm) / max(1, self.steps - warm)
        return self.lr * (0.05 + 0.95 * 0.5 * (1 + float(np.cos(np.pi * share))))

    def advance(self, loss: Tensor) -> None:
        """One optimiser step on a loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1

    def save(self) -> None:
        """Write the state so that an interrupted save leaves the previous one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        moments = {f"{i}.{name}": x for i, s in self.optimizer.state_dict()["state"].items() for name, x in s.items()}
        weights = {f"model.{k}": v.contiguous() for k, v in self.model.state_dict().items()}
        name = f"state-{self.step}.safetensors"
        save_file({**{f"optimizer.{k}": v.contiguous() for k, v in moments.items()}, **weights}, self.folder / name)
        facts = {"step": self.step, **self.recipe(), "seconds": self.seconds, "file": name, "curve": self.curve}
        write_json(self.folder / "state.json", facts)
        for old in set(self.folder.glob("state-*.safetensors")) - {self.folder / name}:
            old.unlink()

    def recipe(self) -> dict[str, float]:
        """What a training that goes on must not change."""
        return {"steps": self.steps, "lr": self.lr, "seed": self.seed, "batch": self.batch}

    def _resume(self) -> None:
        facts = json.loads((self.folder / "state.json").read_text())
        for option, asked in self.recipe().items():
            if facts[option] != asked:
                raise SystemExit(
                    f"{self.folder} holds a training with --{option} {facts[option]}, not {asked}: delete it, or ask for the same"
                )
        tensors = load_file(self.folder / facts["file"])
        self.model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, index, name = key.split(".")
                state.setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.step, self.seconds, self.curve = facts["step"], facts["seconds"], facts["curve"]


def random_cells(count: int, rng: np.random.Generator) -> np.ndarray:
    """Cells int64 [count, 4, 4] of random scenes of every density, from empty to full."""
    cells = rng.integers(0, 24, (count, 4, 4))
    return np.where(rng.random((count, 4, 4)) < rng.random((count, 1, 1)), cells, -1)


def to_pixels(images: np.ndarray) -> Tensor:
    """Pixels float32 [batch, 3, height, width] in [-1, 1] of uint8 [batch, height, width, 3]."""
    return torch.from_numpy(images).movedim(-1, 1).float() / 127.5 - 1


@torch.no_grad()
def share_identical(model: MAGVITv2, count: int, seed: int) -> float:
    """Share of unseen scenes that parse identically after encode and decode: half random densities, half scenes of prompts."""
    rng = np.random.default_rng(seed)
    worlds = [scenes.Scene(c) for c in random_cells(count // 2, rng)]
    worlds += [scenes.example("pretrain", UNSEEN + i).scene for i in range(count - count // 2)]
    same = 0
    for start in range(0, count, 256):
        part = worlds[start : start + 256]
        out = model(to_pixels(scenes.render_batch(part)))
        images = ((out.clamp(-1, 1) + 1) * 127.5).round().byte().movedim(1, -1).numpy()
        same += sum(bool(p.valid.all()) and p.scene == s for p, s in zip(scenes.parse_batch(images), part, strict=True))
    return same / count


def train_tokenizer(args: argparse.Namespace) -> None:
    """Stage 1: the MAGVIT-v2 tokenizer."""
    torch.manual_seed(args.seed)
    config = MAGVITv2Config(encoder=LEVELS, decoder=LEVELS, quantize={"codebook_dim": BITS}, norm_groups=4)
    model = MAGVITv2(config)
    nn.Module.to(model, memory_format=torch.channels_last)  # type: ignore[call-overload]
    run = Training(model, args.out / ".training" / "tokenizer", args.steps or 5000, args.lr or 3e-3, args.seed, args.batch)
    bar = tqdm(total=run.steps, initial=run.step, desc="tokenizer", mininterval=5)
    while run.step < run.steps:
        began = time.time()
        rng = np.random.default_rng((args.seed, run.step))
        torch.manual_seed(args.seed * 10**6 + run.step)
        # Quantisation enters gradually: signs from the first step on let most bits die before the decoder can use them.
        hardness = min(1.0, max(0.0, (run.step / run.steps - 0.15) / 0.35))
        loss = tokenizer_loss(model, to_pixels(render_cells(random_cells(args.batch, rng))), hardness)
        run.advance(loss)
        run.seconds += time.time() - began
        bar.update()
        if run.step % args.every == 0 or run.step == run.steps:
            run.curve.append({"step": run.step, "loss": loss.item(), "identical": share_identical(model, min(512, args.final), 1)})
            bar.set_postfix(loss=f"{loss.item():.4f}", identical=f"{run.curve[-1]['identical']:.4f}")
            run.save()
    bar.close()
    final = share_identical(model, args.final, 2)
    print(f"{final:.4%} of {args.final:,} unseen scenes parse identically after encode and decode")
    model.save_pretrained(args.out / "image_tokenizer")
    record(args, run, "tokenizer", {"identical": final, "scenes": args.final})


def new_policy(directory: Path) -> MMadaPolicy:
    """An untrained policy around the tokenizer that stage 1 left in the directory."""
    if not (directory / "image_tokenizer" / "config.json").exists():
        raise SystemExit(f"{directory / 'image_tokenizer'} is missing: run the tokenizer stage first")
    images = MAGVITv2.from_pretrained(directory / "image_tokenizer")
    tokenizer, specials = word_tokenizer(scenes.VOCABULARY)
    rows = len(tokenizer) + images.codebook_size
    config = MMadaConfig(**SIZES, embedding_size=rows, mask_token_id=specials.mask, codebook_size=images.codebook_size, num_vq_tokens=16)
    return MMadaPolicy(MMadaModelLM(config), tokenizer, images, MMadaSettings(**SETTINGS, specials=specials))  # type: ignore[arg-type]


def measure(policy: MMadaPolicy, task: str, count: int, guidance: float = 0.0) -> float:
    """Strict accuracy on the first ``count`` prompts of the ID split, one sample each."""
    prompts = [scenes.prompt("id", i, task=task) for i in range(count)]  # type: ignore[arg-type]
    policy.model.eval()
    rollouts = policy.generate(prompts, list(range(count)), replace(policy.sampling, guidance=guidance))
    parsed = scenes.parse_batch(np.stack([r.output.image for r in rollouts]))  # type: ignore[misc]
    checks = [scenes.check(r.prompt.spec, seen, r.output.text) for r, seen in zip(rollouts, parsed, strict=True)]
    return float(np.mean([bool(c.strict) for c in checks]))


def train_policy(args: argparse.Namespace) -> None:
    """Stage 2: the backbone, half of each batch t2i and half interleaved."""
    torch.manual_seed(args.seed)
    policy = new_policy(args.out)
    run = Training(policy.model, args.out / ".training" / "policy", args.steps or 6000, args.lr or 2e-3, args.seed, args.batch)
    bar = tqdm(total=args.stop or run.steps, initial=run.step, desc="policy", mininterval=5)
    half, end = args.batch // 2, args.stop or run.steps
    while run.step < end:
        began = time.time()
        policy.model.train()
        generator = torch.Generator().manual_seed(args.seed * 10**6 + run.step)
        losses: dict[str, Tensor] = {}
        for part, task in enumerate(("t2i", "interleaved")):
            first = run.step * args.batch + part * half
            made = [scenes.example("pretrain", first + i, args.seed, task) for i in range(half)]  # type: ignore[arg-type]
            both = supervised_loss(policy, [m.prompt for m in made], [m.output for m in made], generator)
            losses.update({f"{task}/{modality}": value for modality, value in both.items()})
        run.advance(torch.stack(list(losses.values())).sum())
        run.seconds += time.time() - began
        bar.update()
        if run.step % args.every == 0 or run.step == end:
            values = {name: loss.item() for name, loss in losses.items()}
            strict = {f"{task}/strict": measure(policy, task, min(256, args.final)) for task in ("t2i", "interleaved")}
            run.curve.append({"step": run.step, **values, **strict})
            bar.set_postfix({name.split("/")[0]: f"{value:.2f}" for name, value in strict.items()})
            run.save()
    bar.close()
    policy.save(args.out)
    strict = {
        f"{task}, guidance {g}": measure(policy, task, min(1024, args.final), g) for task in ("t2i", "interleaved") for g in (0.0, 1.0)
    }
    print(f"ID strict accuracy, {min(1024, args.final):,} prompts:", strict)
    record(args, run, "policy", {"id_strict": strict})


def record(args: argparse.Namespace, run: Training, stage: str, result: dict[str, Any]) -> None:
    """Add a stage's command, machine, curve and result to OUT/training.json."""
    path = args.out / "training.json"
    stages = json.loads(path.read_text()) if path.exists() else {}
    stages[stage] = {
        "command": "python pipelines/pretrain.py " + " ".join(sys.argv[1:]),
        "seed": args.seed,
        "steps": run.step,
        "schedule": run.steps,
        "batch": args.batch,
        "lr": run.lr,
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "seconds": round(run.seconds),
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__.split("+")[0],
        "date": date.today().isoformat(),
        "result": result,
        "curve": run.curve,
    }
    write_json(path, stages)
    draw_curve(args.out / f"{stage}.png", run.curve, stage)


def draw_curve(path: Path, curve: list[dict[str, float]], stage: str) -> None:
    """The losses (left) and accuracies (right) of a stage over its steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    losses, shares = figure.subplots(1, 2)
    for name in [key for key in curve[-1] if key != "step"]:
        is_share = name.endswith(("strict", "identical"))
        (shares if is_share else losses).plot([row["step"] for row in curve], [row[name] for row in curve], label=name)
    for axes, label in ((losses, "loss"), (shares, "share of unseen scenes" if stage == "tokenizer" else "ID strict accuracy")):
        axes.set(xlabel="step", ylabel=label)
        axes.grid(alpha=0.3)
        axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)


def main() -> None:
    """Run one stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("tokenizer", "policy"))
    parser.add_argument("--out", type=Path, default=Path("outputs/scenes-mmada"), help="directory of the checkpoint")
    parser.add_argument("--steps", type=int, default=0, help="optimiser steps; 0 = the recipe's")
    parser.add_argument("--stop", type=int, default=0, help="end after so many steps of that schedule; 0 = at its end")
    parser.add_argument("--batch", type=int, default=0, help="examples a step; 0 = the recipe's")
    parser.add_argument("--lr", type=float, default=0.0, help="peak learning rate; 0 = the recipe's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=250, help="steps between measurements and saves")
    parser.add_argument(
        "--final", type=int, default=10_000, help="scenes that the finished tokenizer is measured on (a policy: at most 1,024 prompts)"
    )
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    args.batch = args.batch or {"tokenizer": 16, "policy": 128}[args.stage]
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    (train_tokenizer if args.stage == "tokenizer" else train_policy)(args)


if __name__ == "__main__":
    main()
