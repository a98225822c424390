"""Make an embedded base: train the image tokenizer on scenes, then the masked-diffusion policy on scene prompts. Or the VAE of the embedded
flow-matching policies, or the embedded CLIP.

    python pipelines/pretrain.py tokenizer --out outputs/scenes-mmada
    python pipelines/pretrain.py policy    --out outputs/scenes-mmada
    python pipelines/pretrain.py slips     --out outputs/scenes-mmada

    python pipelines/pretrain.py policy    --family showo --images policies/checkpoints/scenes-mmada/image_tokenizer

    python pipelines/pretrain.py vae       --family showo2
    python pipelines/pretrain.py policy    --family showo2

    python pipelines/pretrain.py clip      --out outputs/scenes-clip

The stage slips goes on with data of which a share has a slip (an object or a word that is wrong), as collected data have. A base that has
seen only right outputs samples nearly all that it knows, and leaves alignment little to bring out (docs/results.md). All stages show a
progress bar, save what they need to go on every few minutes under OUT/.training and resume from there when run again.
"""

import sys
from pathlib import Path

if not (__package__ or sys.flags.safe_path):
    import _root  # noqa: F401

import argparse
import math
import time
from dataclasses import replace

import numpy as np
import torch
from tqdm import tqdm

import policies
from pararl import scenes
from pararl.cli.parse import fail
from pararl.config import ConfigError
from pararl.data.quotas import quotas
from pararl.pretraining.recipes import FAMILIES, Recipe
from pararl.pretraining.state import PretrainingState
from pararl.types import Kind, Output
from pipelines.images import train_tokenizer, train_vae
from policies import Policy, cpu
from policies.pretraining import supervised_loss
from rewards import pretraining as clip

GUIDED: tuple[Kind, ...] = ("t2i", "edit", "interleaved", "interleaved_edit")
"""Kinds of prompts whose outputs have an image, which guidance is for."""


def new_policy(args: argparse.Namespace) -> Policy:
    """An untrained policy around the tokenizer that stage 1 left in OUT, or around one that --images names."""
    images = args.images or args.out / "image_tokenizer"
    if not (images / "config.json").exists():
        raise SystemExit(f"{images} is missing: run the tokenizer stage first, or name one (--images)")
    return FAMILIES[args.family].new(images)


def measure(policy: Policy, kind: Kind, count: int, guidance: float = 0.0) -> float:
    """Strict accuracy on the first ``count`` ID prompts of a kind, one sample each."""
    prompts = [scenes.prompt("id", i, 0, *scenes.FORMS[kind]) for i in range(count)]
    policy.model.eval()
    rollouts = policy.generate(prompts, list(range(count)), replace(policy.sampling, guidance=guidance))
    scores = [scenes.score(r.prompt.task, r.prompt.spec, r.output) for r in rollouts]
    return float(np.mean([bool(s.strict) for s in scores]))


def train_policy(args: argparse.Namespace) -> None:
    """Stage 2: the backbone on all five tasks at once, every kind of prompt in every batch."""
    if (args.out / "slips.png").exists():
        raise SystemExit(f"{args.out} holds a policy that the slips stage has finished: give another --out, it would be overwritten")
    torch.manual_seed(args.seed)
    fit(args, new_policy(args), FAMILIES[args.family].recipes["policy"])


def train_slips(args: argparse.Namespace) -> None:
    """Stage 3: the finished policy on examples of which some have a slip."""
    if not (args.out / "policy.json").exists():
        raise SystemExit(f"{args.out / 'policy.json'} is missing: run the policy stage first")
    policy = policies.load(args.out)
    if "slips" not in FAMILIES[args.family].recipes:
        raise SystemExit(f"--family {args.family} has no slips stage")
    fit(args, policy, FAMILIES[args.family].recipes["slips"])


def fit(args: argparse.Namespace, policy: Policy, recipe: Recipe) -> None:
    """Train the policy in one stage, measure it, save it to OUT and record how it was made."""
    family = FAMILIES[args.family]
    steps, lr = args.steps or recipe.steps, args.lr or recipe.lr
    run = PretrainingState(policy.model, args.out / ".training" / recipe.name, steps, lr, args.seed, args.batch)
    end = args.stop or run.steps
    bar = tqdm(total=end, initial=run.step, desc=recipe.name, mininterval=5)
    while run.step < end:
        began = time.time()
        policy.model.train()
        counts = quotas({kind: share[2 * run.step >= run.steps] for kind, share in recipe.mixture.items()}, run.batch)
        losses = pretrain_step(policy, run, counts, recipe.slips, recipe.first + run.step * run.batch)
        run.advance()
        run.seconds += time.time() - began
        bar.update()
        if run.step % args.every == 0 or run.step == end:
            strict = {f"{kind} strict": measure(policy, kind, min(128, args.final)) for kind in family.kinds}
            run.curve.append({"step": run.step, **losses, **strict})
            bar.set_postfix({name.removesuffix(" strict"): f"{value:.2f}" for name, value in strict.items()})
            run.save()
    bar.close()
    policy.save(args.out)
    count = min(1024, args.final)
    scales = {kind: (0.0, 1.0) if kind in GUIDED else (0.0,) for kind in family.kinds}
    strict = {f"{kind}, guidance {g}": measure(policy, kind, count, g) for kind in family.kinds for g in scales[kind]}
    print(f"ID strict accuracy, {count:,} prompts:", strict)
    run.record(args.out, recipe.name, {"id_strict": strict})


def pretrain_step(policy: Policy, run: PretrainingState, counts: dict[Kind, int], slips: float, first: int) -> dict[str, float]:
    """Add the gradients of one batch to the model, kind by kind, so that only one kind's graph is held; returns the losses.

    ``counts`` examples of each kind, the first of them example ``first`` of the pretraining stream; each has a slip with probability
    ``slips``.
    """
    generator = torch.Generator().manual_seed(run.seed * 10**6 + run.step)
    found: dict[str, float] = {}
    for kind, count in counts.items():
        made = [scenes.example("pretrain", first + i, run.seed, *scenes.FORMS[kind]) for i in range(count)]
        outputs = [slipped(example.output, (run.seed, first + i), slips) for i, example in enumerate(made)]
        first += count
        losses = supervised_loss(policy, [m.prompt for m in made], outputs, generator)
        torch.stack(list(losses.values())).sum().backward()
        found |= {f"{kind} {modality}": loss.item() for modality, loss in losses.items()}
    return found


def slipped(output: Output, seed: tuple[int, ...], probability: float) -> Output:
    """The output, with a slip in it as often as the probability says."""
    rng = np.random.default_rng(seed)
    return scenes.slip(output, rng) if rng.random() < probability else output


def train_clip(args: argparse.Namespace) -> None:
    """The CLIP model of the reward ``scenes-clip``."""
    torch.manual_seed(args.seed)
    model, processor = clip.new_model()
    run = PretrainingState(model, args.out / ".training" / "clip", args.steps or 2500, args.lr or 2e-3, args.seed, args.batch)
    bar = tqdm(total=run.steps, initial=run.step, desc="clip", mininterval=5)
    while run.step < run.steps:
        began = time.time()
        model.train()
        loss = clip.contrastive_loss(model, processor, clip.training_pairs(run.step * run.batch, run.batch, run.seed))
        loss.backward()
        run.advance()
        model.logit_scale.data.clamp_(max=math.log(100))  # as CLIP's own training does
        run.seconds += time.time() - began
        bar.update()
        if run.step % args.every == 0 or run.step == run.steps:
            shares = clip.measure(model, processor, min(256, args.final))
            run.curve.append({"step": run.step, "loss": loss.item(), **shares})
            bar.set_postfix({name.removesuffix(" right"): f"{value:.2f}" for name, value in shares.items()})
            run.save()
    bar.close()
    model.save_pretrained(args.out)
    processor.save_pretrained(args.out)
    count = min(2048, args.final)
    final = clip.measure(model, processor, count)
    print(f"share right, {count:,} ID prompts:", final)
    run.record(args.out, "clip", {"prompts": count, **final})


STAGES = {"tokenizer": train_tokenizer, "policy": train_policy, "slips": train_slips, "vae": train_vae, "clip": train_clip}


def main() -> None:
    """Run one recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=tuple(STAGES))
    parser.add_argument("--family", choices=tuple(FAMILIES), default="mmada", help="family of the policy")
    parser.add_argument("--images", type=Path, help="directory of a trained image tokenizer; default OUT/image_tokenizer")
    parser.add_argument("--out", type=Path, help="directory of the checkpoint; default outputs/scenes-FAMILY, or outputs/scenes-clip")
    parser.add_argument("--steps", type=int, default=0, help="optimiser steps; 0 = the recipe's")
    parser.add_argument("--stop", type=int, default=0, help="end after so many steps of that schedule; 0 = at its end")
    parser.add_argument("--batch", type=int, default=0, help="examples a step; 0 = the recipe's")
    parser.add_argument("--lr", type=float, default=0.0, help="peak learning rate; 0 = the recipe's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=500, help="steps between measurements and saves")
    parser.add_argument(
        "--final",
        type=int,
        default=10_000,
        help="scenes that the finished tokenizer is measured on (a policy: at most 1,024 prompts, a CLIP: 2,048)",
    )
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    args.batch = args.batch or {"tokenizer": 16, "vae": 16, "clip": 64}.get(args.stage, 96)
    kinds = FAMILIES[args.family].kinds
    if args.stage in ("policy", "slips") and args.batch < len(kinds):
        raise SystemExit(f"--batch {args.batch}: a batch of the policy holds every kind of prompt, at least {len(kinds)} examples")
    args.out = args.out or Path("outputs") / ("scenes-clip" if args.stage == "clip" else f"scenes-{args.family}")
    args.out.mkdir(parents=True, exist_ok=True)
    if FAMILIES[args.family].own_products:
        torch.set_num_threads(args.threads)
    else:
        cpu.use(args.threads)
    try:
        STAGES[args.stage](args)
    except ConfigError as error:
        fail(str(error))


if __name__ == "__main__":
    main()
