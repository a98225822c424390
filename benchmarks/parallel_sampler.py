"""Text and image decoded together for a batch at once, against one row after the other with a forward for every branch of guidance.

    python benchmarks/parallel_sampler.py [--policy NAME] [--batch 16] [--steps 24] [--image-steps 6]

By default the embedded policy, its image at a quarter of the steps as published (30 of 128). ``--policy random``: one of the sizes given.

The reference is written here from the paper's description (arXiv 2511.09611, section 3.2): one sample at a time, whole logits of three
forwards a step. These are of the prompt, without its text, and without its input image. It is given the same uniforms, so both must come to
the same tokens; the script ends with an error where they do not. ``frugal`` is the same reference without the two branches at steps that do
not move the image. Seconds are those of the processor, which other work on the machine disturbs less than those of the clock.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import policies
from pararl.types import Prompt
from policies import Policy, Sampling, cpu
from policies.backbones.llada import MMadaConfig, MMadaModelLM
from policies.families.mmada import MMADA
from policies.settings import Part, Settings

PARTS: tuple[Part | None, ...] = (None, "text", "image")
WORDS = ("red", "blue", "green", "circle", "square", "triangle", "above", "left")


def random_policy(width: int, layers: int, side: int, words: int) -> Policy:
    """A policy with random weights, with the image tokenizer of the embedded one: what it says is nonsense, how long it takes is not."""
    embedded = policies.load("scenes-mmada")
    assert isinstance(embedded, Policy)
    torch.manual_seed(0)
    rows = len(embedded.layout.text.tokenizer) + embedded.layout.images.module.codebook_size
    sizes = {"d_model": width, "n_layers": layers, "n_heads": width // 32, "mlp_hidden_size": 3 * width, "embedding_size": rows}
    settings = Settings(
        grid=(side, side),
        prompt_tokens=32,
        text_tokens=words,
        text_block=words // 4,
        dialogue="{text}",
        specials=embedded.settings.specials,
    )
    return MMADA.policy(
        MMadaModelLM(MMadaConfig(**sizes, init_std=0.1)), embedded.layout.text.tokenizer, embedded.layout.images.module, settings
    )


def prompts_of(policy: Policy, count: int) -> list[Prompt]:
    """Edits with a plan, of different lengths, each with an image of noise."""
    rng = np.random.default_rng(0)
    height, width = policy.layout.images.size
    return [
        Prompt(
            f"p{i}",
            "interleaved",
            " ".join(rng.choice(WORDS, 2 + i % 5)),
            image=rng.integers(0, 256, (height, width, 3), dtype=np.uint8),
        )
        for i in range(count)
    ]


Samples = list[tuple[list[int], ...]]


def drawn(logits: Tensor, uniform: Tensor) -> Tensor:
    """Rows of logits [n, rows] by inverse transform of ``uniform`` [n]."""
    reach = logits.softmax(-1).cumsum(-1)
    return (reach > uniform[:, None] * reach[:, -1:]).byte().argmax(-1)


@torch.no_grad()
def one_row(policy: Policy, prompt: Prompt, seed: int, sampling: Sampling, frugal: bool) -> tuple[list[int], list[int]]:
    """Image and text tokens of one sample."""
    s, specials, shown = policy.settings, policy.settings.specials, policy.layout.shown([prompt])[0].ids
    image, words, steps = s.grid[0] * s.grid[1], s.text_tokens, sampling.steps
    tail = [specials.soi, *[specials.mask] * image, specials.eoi, specials.bos, *[specials.mask] * words]
    front, *others = [policy.layout.prefix(prompt, shown, without=part) for part in PARTS]
    text_rows, first = len(policy.layout.text.tokenizer), len(policy.layout.text.tokenizer)
    codes = slice(first, first + policy.layout.images.module.codebook_size)
    never = [i for i in policy.layout.text.vocabulary.forbidden if i < text_rows]
    noise = torch.rand(2, steps, image + words, generator=torch.Generator().manual_seed(seed))
    updates = [(i + 1) * steps // sampling.image_steps - 1 for i in range(sampling.image_steps)]
    masked, done = image, 0
    for step in range(steps):

        def logits(front: list[int], tail: list[int] = tail) -> Tensor:
            return policy.model(torch.tensor([front + tail]))[0, len(front) :]

        with_all = logits(front)
        without = [logits(other) for other in others] if step in updates or not frugal else []
        plain = with_all[2 + image + 1 :, :text_rows].clone()
        plain[:, never] = -math.inf
        token = drawn(plain, noise[0, step, image:])
        sure = plain.log_softmax(-1).gather(-1, token[:, None]).squeeze(-1)
        block = step * (words // s.text_block) // steps
        open_places = [i for i in range(block * s.text_block, (block + 1) * s.text_block) if tail[3 + image + i] == specials.mask]
        each = steps // (words // s.text_block)
        count = s.text_block // each + (step % each < s.text_block % each)
        chosen = sorted(open_places, key=lambda i: -float(sure[i]))[:count]
        if step in updates:
            plain = picture = with_all[1 : 1 + image, codes]
            for other, scale in zip(without, (sampling.guidance, sampling.input_guidance), strict=True):
                picture = picture + scale * (plain - other[1 : 1 + image, codes])
            code = drawn(picture, noise[0, step, :image])
            gumbel = -(-noise[1, step, :image].clamp_min(1e-20).log()).clamp_min(1e-20).log()
            fall = sampling.choice_temperature * (1 - (step + 1) / steps)
            confidence = picture.log_softmax(-1).gather(-1, code[:, None]).squeeze(-1) + fall * gumbel
            done += 1
            share = float(torch.cos(torch.tensor(done / len(updates)) * math.pi * 0.5))  # float32, as the release computes it
            left = 0 if done == len(updates) else max(1, min(masked - 1, int(image * share)))
            free = [i for i in range(image) if tail[1 + i] == specials.mask]
            for i in sorted(free, key=lambda i: -float(confidence[i]))[: masked - left]:
                tail[1 + i] = first + int(code[i])
            masked = left
        for i in chosen:
            tail[3 + image + i] = int(token[i])
    return tail[1 : 1 + image], tail[3 + image :]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="scenes-mmada", help="what policies.load takes, or random, of the sizes below")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--side", type=int, default=8, help="image tokens along each side")
    parser.add_argument("--words", type=int, default=32, help="text tokens")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--image-steps", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--passes", type=int, default=3, help="the fastest of so many passes counts")
    args = parser.parse_args()
    found = random_policy(args.width, args.layers, args.side, args.words) if args.policy == "random" else policies.load(args.policy)
    assert isinstance(found, Policy)
    prompts, seeds = prompts_of(found, args.batch), list(range(args.batch))
    sampling = Sampling(steps=args.steps, image_steps=args.image_steps, guidance=2.5, input_guidance=4.0, choice_temperature=4.0)
    batch: Samples = [tuple(s.tokens.tolist() for s in r.segments) for r in found.generate(prompts, seeds, sampling)]
    ways: dict[str, Callable[[], object]] = {
        "batch": lambda: found.generate(prompts, seeds, sampling),
        "three forwards": lambda: [one_row(found, p, seed, sampling, False) for p, seed in zip(prompts, seeds, strict=True)],
        "frugal": lambda: [one_row(found, p, seed, sampling, True) for p, seed in zip(prompts, seeds, strict=True)],
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    with cpu.computing(args.threads):
        for name, way in list(ways.items()) * args.passes:
            start = time.process_time()
            done = way()
            times[name].append((time.process_time() - start) / args.threads)
            if name != "batch" and done != batch:
                raise SystemExit(f"{name}: the two samplers do not come to the same tokens")
    rates = {name: args.batch / min(values) for name, values in times.items()}
    ratios = {name: rates["batch"] / rate for name, rate in rates.items() if name != "batch"}
    print(json.dumps({"samples/s": rates, "times as fast as": ratios, **vars(args)}, indent=1))


if __name__ == "__main__":
    main()
