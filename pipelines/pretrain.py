"""Make an embedded base: train the image tokenizer on scenes, then the masked-diffusion policy on scene prompts. Or the VAE of the embedded
flow-matching policies, or the embedded CLIP.

    python pipelines/pretrain.py tokenizer --out outputs/scenes-mmada
    python pipelines/pretrain.py policy    --out outputs/scenes-mmada
    python pipelines/pretrain.py slips     --out outputs/scenes-mmada

    python pipelines/pretrain.py vae       --out outputs/scenes-showo2

    python pipelines/pretrain.py clip      --out outputs/scenes-clip

The stage slips goes on with data of which a share has a slip (an object or a word that is wrong), as collected data have: a base that has
seen right outputs only samples nearly all that it knows, and leaves an alignment little to bring out (docs/results.md). All stages show
a progress bar, save what they need to go on every few minutes under OUT/.training and resume from there when run again.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:] = [str(ROOT), *(entry for entry in sys.path if Path(entry).resolve() not in (ROOT, ROOT / "pipelines"))]

import argparse
import math
import time
from dataclasses import dataclass, replace

import numpy as np
import torch
from tqdm import tqdm

import policies
from pararl import scenes
from pararl.quotas import quotas
from pararl.stage import Stage
from pararl.types import KINDS, Kind, Output
from pipelines.images import train_tokenizer, train_vae
from policies.backbones.llada import MMadaConfig, MMadaModelLM
from policies.image.magvitv2 import MAGVITv2
from policies.mmada import MMadaPolicy
from policies.mmada_codec import MMadaSettings
from policies.pretraining import supervised_loss
from policies.text import word_tokenizer
from rewards import pretraining as clip

SETTINGS = {
    "grid": (4, 4),
    "prompt_tokens": 32,
    "text_tokens": 24,
    "text_block": 12,
    "answer_tokens": 24,
    "answer_block": 12,
    "dialogue": "{text} <|endoftext|>",
    "steps": 8,
    "choice_temperature": 8.0,
}
SIZES = {"d_model": 128, "n_layers": 4, "n_heads": 4, "mlp_hidden_size": 384, "max_sequence_length": 128}
# A choice temperature of 8 is as good as random order: the most confident cells of a sparse scene are its empty ones, and committing those
# first leaves the objects to the end, where several are drawn at once.
GUIDED: tuple[Kind, ...] = ("t2i", "edit", "interleaved", "interleaved_edit")
"""Kinds of prompts whose outputs have an image, which guidance is for."""


@dataclass(frozen=True)
class Recipe:
    """What one stage of the policy is trained with."""

    name: str
    steps: int
    lr: float
    mixture: dict[Kind, tuple[int, int]]
    """Shares of each kind of prompt in the first and in the second half of the stage."""
    slips: float = 0.0
    """Share of the examples whose output has a slip."""
    first: int = 0
    """Index of the first example."""


POLICY = Recipe(
    "policy",
    9000,
    2e-3,
    # What is learnt early makes room for the rest.
    {"t2t": (1, 12), "i2t": (1, 3), "t2i": (1, 8), "edit": (1, 3), "interleaved": (1, 8), "interleaved_edit": (1, 14)},
)
SLIPS = Recipe(
    "slips",
    1600,
    1e-3,
    {"t2t": (9, 9), "i2t": (3, 3), "t2i": (4, 4), "edit": (3, 3), "interleaved": (4, 4), "interleaved_edit": (9, 9)},
    slips=0.3,
    first=10**7,
)


def new_policy(directory: Path) -> MMadaPolicy:
    """An untrained policy around the tokenizer that stage 1 left in the directory."""
    if not (directory / "image_tokenizer" / "config.json").exists():
        raise SystemExit(f"{directory / 'image_tokenizer'} is missing: run the tokenizer stage first")
    images = MAGVITv2.from_pretrained(directory / "image_tokenizer")
    tokenizer, specials = word_tokenizer(scenes.VOCABULARY)
    rows = len(tokenizer) + images.codebook_size
    config = MMadaConfig(**SIZES, embedding_size=rows, mask_token_id=specials.mask, codebook_size=images.codebook_size, num_vq_tokens=16)
    return MMadaPolicy(MMadaModelLM(config), tokenizer, images, MMadaSettings(**SETTINGS, specials=specials))  # type: ignore[arg-type]


def measure(policy: MMadaPolicy, kind: Kind, count: int, guidance: float = 0.0) -> float:
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
    fit(args, new_policy(args.out), POLICY)


def train_slips(args: argparse.Namespace) -> None:
    """Stage 3: the finished policy on examples of which some have a slip."""
    if not (args.out / "policy.json").exists():
        raise SystemExit(f"{args.out / 'policy.json'} is missing: run the policy stage first")
    policy = policies.load(args.out)
    assert isinstance(policy, MMadaPolicy)
    fit(args, policy, SLIPS)


def fit(args: argparse.Namespace, policy: MMadaPolicy, recipe: Recipe) -> None:
    """Train the policy in one stage, measure it, save it to OUT and record how it was made."""
    steps, lr = args.steps or recipe.steps, args.lr or recipe.lr
    run = Stage(policy.model, args.out / ".training" / recipe.name, steps, lr, args.seed, args.batch)
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
            strict = {f"{kind} strict": measure(policy, kind, min(128, args.final)) for kind in KINDS}
            run.curve.append({"step": run.step, **losses, **strict})
            bar.set_postfix({name.removesuffix(" strict"): f"{value:.2f}" for name, value in strict.items()})
            run.save()
    bar.close()
    policy.save(args.out)
    count = min(1024, args.final)
    scales = {kind: (0.0, 1.0) if kind in GUIDED else (0.0,) for kind in KINDS}
    strict = {f"{kind}, guidance {g}": measure(policy, kind, count, g) for kind in KINDS for g in scales[kind]}
    print(f"ID strict accuracy, {count:,} prompts:", strict)
    run.record(args.out, recipe.name, {"id_strict": strict})


def pretrain_step(policy: MMadaPolicy, run: Stage, counts: dict[Kind, int], slips: float, first: int) -> dict[str, float]:
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
    run = Stage(model, args.out / ".training" / "clip", args.steps or 2500, args.lr or 2e-3, args.seed, args.batch)
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
    parser.add_argument("--out", type=Path, help="directory of the checkpoint; default outputs/scenes-mmada, -showo2 or -clip")
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
    if args.stage in ("policy", "slips") and args.batch < len(KINDS):
        raise SystemExit(f"--batch {args.batch}: a batch of the policy holds every kind of prompt, at least {len(KINDS)} examples")
    args.out = args.out or Path("outputs") / {"clip": "scenes-clip", "vae": "scenes-showo2"}.get(args.stage, "scenes-mmada")
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    STAGES[args.stage](args)


if __name__ == "__main__":
    main()
