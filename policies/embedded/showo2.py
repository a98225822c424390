"""The embedded policy of Show-o2's kind."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from policies.backbones.showo2 import Showo2, Showo2Config
from policies.embedded.recipe import SETTINGS, FamilyRecipe, Recipe
from policies.families.showo2 import SHOWO2, Showo2Settings, Showo2Specials
from policies.image.latents import read_vae
from policies.policy import Policy
from policies.text import SHOWO2_TOKENS, word_tokenizer

# One latent a token: with patches of 2 the numbers of a token are not those of its own patch, as released (``showo2_state.patched``), and a
# policy of this size had nothing right after 300 steps.
SHOWO2_SIZES: dict[str, Any] = {
    "patch_size": 1,
    "hidden_size": 128,
    "clip_latent_dim": 64,
    "num_diffusion_layers": 2,
    "llm_config": {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "rope_theta": 1e4,
    },
    "clip_config": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,  # of which the last is left out, as in the releases
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    },
    "head_config": {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
    },
}


def new_showo2(directory: Path, words: Sequence[str]) -> Policy:
    """An untrained Show-o2 policy around the VAE in a directory: one latent for each cell of a scene."""
    images = read_vae(directory)
    tokenizer, specials = word_tokenizer(words, SHOWO2_TOKENS)
    taskless = dict.fromkeys(("t2i", "mmu", "interleave"), specials.mask)
    settings: dict[str, Any] = {**SETTINGS, "dialogue": "{text} <|im_end|>", "specials": Showo2Specials(**{**asdict(specials), **taskless})}
    config = Showo2Config(
        **SHOWO2_SIZES, llm_vocab_size=len(tokenizer), image_latent_dim=images.channels, image_latent_height=4, image_latent_width=4
    )
    settings |= {"tasks": ("i2t", "t2i", "interleaved"), "flow_noise": 0.7}
    model = Showo2(config)
    # Places stand beside latents that are mostly noise, and must be as large to be read from the first step on.
    torch.nn.init.normal_(model.position_embedding.weight)
    return SHOWO2.policy(model, tokenizer, images, Showo2Settings(**settings))


SHOWO2_RECIPE = FamilyRecipe(
    new_showo2,
    {
        # Its images begin to follow a plan behind a thousand steps only.
        "policy": Recipe("policy", 8000, 2e-3, {"i2t": (1, 1), "t2i": (3, 3), "interleaved": (1, 1)}),
        "slips": Recipe("slips", 500, 1e-3, {"i2t": (1, 1), "t2i": (3, 3), "interleaved": (1, 1)}, slips=0.3, first=10**7),
    },
)
