"""The stages of ``pipelines/pretrain.py`` that make an image tokenizer: MAGVIT-v2, or a continuous VAE."""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pararl import scenes
from pararl.files import atomic_folder
from pararl.pretraining.state import PretrainingState
from pararl.scenes.pixels import render_cells
from pararl.tracking.progress import Bar
from policies.image.continuous import ContinuousVAE, ContinuousVAEConfig
from policies.image.magvitv2 import MAGVITv2, MAGVITv2Config
from policies.image.training import tokenizer_loss, vae_loss

BITS = 8
LEVELS = {"ch": 32, "ch_mult": [1, 1, 1, 2], "num_res_blocks": [0, 1, 1, 1], "z_channels": BITS}
VAE_LEVELS = {"ch": 24, "ch_mult": [1, 1, 1, 2], "num_res_blocks": [0, 1, 1, 1]}
"""One latent of 16 channels for 8 pixels a side, as in the Wan 2.1 VAE."""
KL_WEIGHT = 5e-4
"""Of the VAE's loss."""
UNSEEN = 10**9
"""Indices from here on are never trained on."""


def random_cells(count: int, rng: np.random.Generator) -> np.ndarray:
    """Cells int64 [count, 4, 4] of random scenes of every density, from empty to full."""
    cells = rng.integers(0, 24, (count, 4, 4))
    return np.where(rng.random((count, 4, 4)) < rng.random((count, 1, 1)), cells, -1)


def to_pixels(images: np.ndarray) -> Tensor:
    """Pixels float32 [batch, 3, height, width] in [-1, 1] of uint8 [batch, height, width, 3]."""
    return torch.from_numpy(images).movedim(-1, 1).float() / 127.5 - 1


@torch.no_grad()
def share_identical(repeat: Callable[[Tensor], Tensor], count: int, seed: int) -> float:
    """Share of unseen scenes that parse identically after encode and decode: half random densities, half scenes of prompts.

    ``repeat``: pixels [batch, 3, height, width] in [-1, 1] to such pixels.
    """
    rng = np.random.default_rng(seed)
    worlds = [scenes.Scene(c) for c in random_cells(count // 2, rng)]
    worlds += [scenes.example("pretrain", UNSEEN + i).scene for i in range(count - count // 2)]
    same = 0
    for start in range(0, count, 256):
        part = worlds[start : start + 256]
        out = repeat(to_pixels(scenes.render_batch(part)))
        images = ((out.clamp(-1, 1) + 1) * 127.5).round().byte().movedim(1, -1).numpy()
        same += sum(bool(p.valid.all()) and p.scene == s for p, s in zip(scenes.parse_batch(images), part, strict=True))
    return same / count


def fit(
    args: argparse.Namespace, name: str, model: PreTrainedModel, steps: int, lr: float, loss_at: Callable[[Tensor, float], Tensor]
) -> PretrainingState:
    """Train on random scenes by ``loss_at(pixels, share of the steps that is done)``."""
    nn.Module.to(model, memory_format=torch.channels_last)  # type: ignore[call-overload]
    run = PretrainingState(model, args.out / ".training" / name, args.steps or steps, args.lr or lr, args.seed, args.batch)
    bar = Bar(run.steps, name, "step", run.step, parts=10, every_seconds=60)
    said = ""
    while run.step < run.steps:
        began = time.time()
        # Functions of the step: a training that is resumed draws what it would have drawn.
        rng = np.random.default_rng((args.seed, run.step))
        torch.manual_seed(args.seed * 10**6 + run.step)
        loss = loss_at(to_pixels(render_cells(random_cells(args.batch, rng))), run.step / run.steps)
        loss.backward()
        run.advance()
        run.seconds += time.time() - began
        if run.step % args.every == 0 or run.step == run.steps:
            run.curve.append({"step": run.step, "loss": loss.item(), "identical": share_identical(model, min(512, args.final), 1)})
            said = f"loss {loss.item():.4f}  identical {run.curve[-1]['identical']:.4f}"
            run.save()
        bar.step(said)
    bar.close()
    return run


def train_tokenizer(args: argparse.Namespace) -> None:
    """The MAGVIT-v2 tokenizer."""
    torch.manual_seed(args.seed)
    model = MAGVITv2(MAGVITv2Config(encoder=LEVELS, decoder=LEVELS, quantize={"codebook_dim": BITS}, norm_groups=4))

    def loss_at(pixels: Tensor, done: float) -> Tensor:
        # Quantisation enters gradually: signs from the first step on let most bits die before the decoder can use them.
        return tokenizer_loss(model, pixels, min(1.0, max(0.0, (done - 0.15) / 0.35)))

    run = fit(args, "tokenizer", model, 5000, 3e-3, loss_at)
    # Other scenes than those that were watched on the way.
    final = share_identical(model, args.final, 2)
    print(f"{final:.4%} of {args.final:,} unseen scenes parse identically after encode and decode")
    with atomic_folder(args.out / "image_tokenizer") as part:
        model.save_pretrained(part)
    run.record(args.out, "tokenizer", {"identical": final, "scenes": args.final})


def train_vae(args: argparse.Namespace) -> None:
    """The continuous VAE, in place of the tokenizer where images are made by flow matching."""
    torch.manual_seed(args.seed)
    model = ContinuousVAE(ContinuousVAEConfig(encoder=VAE_LEVELS, decoder=VAE_LEVELS, channels=16))
    run = fit(args, "vae", model, 1500, 4e-3, lambda pixels, done: vae_loss(model, pixels, KL_WEIGHT))
    prompts = scenes.render_batch([scenes.example("pretrain", i).scene for i in range(512)])
    known = to_pixels(np.concatenate((prompts, render_cells(random_cells(512, np.random.default_rng(args.seed))))))
    model.normalise(known)
    shares = {f"identical at noise {noise}": share_identical(noisy(model, noise), args.final, 2) for noise in (0.0, 0.1, 0.2, 0.3)}
    deviation = posterior_noise(model, known)
    print(f"share of {args.final:,} unseen scenes that parse identically after encode, noise on the latents and decode:", shares)
    print("posterior deviation of each channel in units of its latents' (1 and more: it carries nothing):", deviation)
    with atomic_folder(args.out / "image_tokenizer") as part:
        model.save_pretrained(part)
    run.record(args.out, "vae", {**shares, "scenes": args.final, "posterior deviation": deviation})


@torch.no_grad()
def posterior_noise(model: ContinuousVAE, pixels: Tensor) -> list[float]:
    """Root-mean-square deviation of the posterior in each channel, over the deviation of its means over images."""
    deviation = model.posterior(pixels)[1].exp().mean((0, 2, 3)).sqrt()
    return [round(x, 3) for x in (deviation / deviation.new_tensor(model.config.latents_std)).tolist()]


def noisy(model: ContinuousVAE, deviation: float) -> Callable[[Tensor], Tensor]:
    """Encode, add Gaussian noise to the latents (whose own deviation is 1), decode: the same noise at every call."""

    def repeat(pixels: Tensor) -> Tensor:
        latents = model.encode(pixels)
        return model.decode(latents + deviation * torch.randn(latents.shape, generator=torch.Generator().manual_seed(0)))

    return repeat
