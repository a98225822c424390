"""Text of Show-o with kept keys and values, against the loop without them: a forward over all of the sequence for every new token.

    python benchmarks/autoregressive_text.py [--policy NAME] [--batch 16] [--tokens 64]

By default a policy with random weights, at the size of the embedded one; each prompt shows an image. The loop is that of Show-o's
``mmu_generate``, but for a whole batch at once, with the head on the last place alone: to its advantage. Both are given the same
uniforms and no end token, so both must come to the same ``tokens`` new tokens. Where they do not, the script fails. Seconds are
those of the processor, which other work on the machine disturbs less than those of the clock.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import policies
from pararl import scenes
from pararl.types import Prompt
from policies import Policy, cpu
from policies.attention.masks import omni
from policies.backbones.showo import Showo, ShowoConfig
from policies.canvas import pad_left
from policies.embedded.showo import PHI, new_showo
from policies.families.showo import SHOWO
from policies.sampling.context import Context, write
from policies.sampling.denoise import draw

WORDS = ("red", "blue", "green", "circle", "square", "triangle", "above", "left")


def random_policy(width: int, layers: int) -> Policy:
    """A policy with random weights around the image tokenizer of an embedded one: what it says is nonsense, how long it takes is not."""
    torch.manual_seed(0)
    made = new_showo(policies.CHECKPOINTS / "scenes-mmada" / "image_tokenizer", scenes.VOCABULARY)
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers, "num_attention_heads": width // 32}
    config = ShowoConfig(vocab_size=made.model.config.vocab_size, phi={**PHI, **sizes, "initializer_range": 0.1})
    return SHOWO.policy(Showo(config), made.layout.text.tokenizer, made.layout.images.module, made.settings)


def questions(policy: Policy, count: int) -> tuple[Tensor, Tensor]:
    """Prompts of different lengths about an image of noise, padded on the left: ids and which are real, each [batch, length]."""
    rng = np.random.default_rng(0)
    height, width = policy.layout.images.size
    images = rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    asked = [Prompt(f"p{i}", "i2t", " ".join(rng.choice(WORDS, 2 + i % 5)), image=image) for i, image in enumerate(images)]
    prefixes = [policy.layout.prefix(prompt, shown.ids) for prompt, shown in zip(asked, policy.layout.shown(asked), strict=True)]
    return pad_left(prefixes, policy.settings.specials.pad)


@torch.no_grad()
def kept(policy: Policy, ids: Tensor, real: Tensor, noise: Tensor) -> Tensor:
    """New tokens [batch, n], each from a forward over itself."""
    context = Context(policy.model.states, len(ids), ids.device)
    hidden = context.read(ids, real, policy.layout.blocks(ids))[:, -1]
    return write(context, hidden, lambda h: policy.tokens.rows(h, "text"), noise, 1.0, ())[0]


@torch.no_grad()
def whole(policy: Policy, ids: Tensor, real: Tensor, noise: Tensor) -> Tensor:
    """New tokens [batch, n], each from a forward over all before it."""
    start, blocks = ids.shape[1], policy.layout.blocks(ids)
    assert blocks is not None
    for uniform in noise.T:
        # An end token that is said opens no image here.
        mask = omni(F.pad(blocks, (0, ids.shape[1] - start)), real)
        hidden = policy.model.states(ids, mask.dense()[:, 0], mask.positions())[:, -1]
        new = draw(policy.tokens.rows(hidden, "text").float(), 1.0, uniform)[:, None]
        ids, real = torch.cat((ids, new), 1), torch.cat((real, torch.ones_like(new, dtype=torch.bool)), 1)
    return ids[:, start:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="random", help="what policies.load takes, or random, of the sizes below")
    parser.add_argument("--width", type=int, default=PHI["hidden_size"])
    parser.add_argument("--layers", type=int, default=PHI["num_hidden_layers"])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64, help="new tokens of each text")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--passes", type=int, default=3, help="the fastest of so many passes counts")
    args = parser.parse_args()
    found = random_policy(args.width, args.layers) if args.policy == "random" else policies.load(args.policy)
    assert isinstance(found, Policy)
    ids, real = questions(found, args.batch)
    noise = torch.rand(args.batch, args.tokens, generator=torch.Generator().manual_seed(0))
    ways: dict[str, Callable[..., Tensor]] = {"keys and values kept": kept, "a forward over everything": whole}
    times: dict[str, list[float]] = {name: [] for name in ways}
    with cpu.computing(args.threads):
        tokens = kept(found, ids, real, noise)
        for name, way in list(ways.items()) * args.passes:
            start = time.process_time()
            said = way(found, ids, real, noise)
            times[name].append((time.process_time() - start) / args.threads)
            if not torch.equal(said, tokens):
                raise SystemExit(f"{name}: the two do not come to the same tokens")
    rates = {name: args.batch * args.tokens / min(values) for name, values in times.items()}
    fast, slow = rates.values()
    distinct = len(set(map(tuple, tokens.tolist())))
    print(
        json.dumps(
            {"tokens/s": rates, "times as fast": fast / slow, "prompt": ids.shape[1], "different texts": distinct, **vars(args)}, indent=1
        )
    )


if __name__ == "__main__":
    main()
