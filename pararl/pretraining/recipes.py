"""How the embedded policies are made: their sizes, and what each stage of their pretraining trains on."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from pararl import scenes
from pararl.types import KINDS, Kind
from policies import Policy
from policies.backbones.llada import MMadaConfig, MMadaModelLM
from policies.backbones.showo import Showo, ShowoConfig
from policies.backbones.showo2 import Showo2, Showo2Config
from policies.families.mmada import MMADA
from policies.families.showo import SHOWO
from policies.families.showo2 import SHOWO2, Showo2Settings, Showo2Specials
from policies.image.latents import read_vae
from policies.image.magvitv2 import MAGVITv2
from policies.settings import Settings
from policies.text import SHOWO2_TOKENS, SHOWO_TOKENS, word_tokenizer
from policies.weights import read_model

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
# A choice temperature of 8 is as good as random order: the most confident cells of a sparse scene are its empty ones, and committing those
# first leaves the objects to the end, where several are drawn at once.
LLADA = {"d_model": 128, "n_layers": 4, "n_heads": 4, "mlp_hidden_size": 384, "max_sequence_length": 128}
PHI = {
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "partial_rotary_factor": 0.5,
}
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


@dataclass(frozen=True, slots=True)
class Recipe:
    """What one stage of a policy is trained with."""

    name: str
    steps: int
    lr: float
    mixture: Mapping[Kind, tuple[int, int]]
    """Shares of each kind of prompt in the first and in the second half of the stage."""
    slips: float = 0.0
    """Share of the examples whose output has a slip."""
    first: int = 0
    """Index of the first example."""


@dataclass(frozen=True, slots=True)
class FamilyRecipe:
    """How the embedded policy of a family is made."""

    new: Callable[[Path], Policy]
    """An untrained policy around the image tokenizer in a directory."""
    recipes: Mapping[str, Recipe]
    """By stage."""
    own_products: bool = False
    """Whether its shipped weights were made with torch's own float32 products, not with the faster ones of ``policies.cpu``."""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of prompts that it is trained on."""
        return tuple(kind for kind in KINDS if kind in self.recipes["policy"].mixture)


def new_mmada(directory: Path) -> Policy:
    """An untrained MMaDA policy around the image tokenizer in a directory."""
    images = read_model(MAGVITv2, directory)
    tokenizer, specials = word_tokenizer(scenes.VOCABULARY)
    rows = len(tokenizer) + images.codebook_size
    config = MMadaConfig(**LLADA, embedding_size=rows, mask_token_id=specials.mask, codebook_size=images.codebook_size, num_vq_tokens=16)
    return MMADA.policy(MMadaModelLM(config), tokenizer, images, Settings(**SETTINGS, specials=specials))  # type: ignore[arg-type]


def new_showo(directory: Path) -> Policy:
    """An untrained Show-o policy around the image tokenizer in a directory, in the released layout: MASK is the last row."""
    images = read_model(MAGVITv2, directory)
    words = len(word_tokenizer(scenes.VOCABULARY, SHOWO_TOKENS, 0)[0])
    mask = words + images.codebook_size
    tokenizer, specials = word_tokenizer(scenes.VOCABULARY, SHOWO_TOKENS, mask)
    config = ShowoConfig(
        vocab_size=mask + 1, llm_vocab_size=words - len(SHOWO_TOKENS), codebook_size=images.codebook_size, num_vq_tokens=16, phi=PHI
    )
    settings = Settings(**SETTINGS, tasks=("i2t", "t2i", "interleaved"), specials=specials)  # type: ignore[arg-type]
    return SHOWO.policy(Showo(config), tokenizer, images, settings)


def new_showo2(directory: Path) -> Policy:
    """An untrained Show-o2 policy around the VAE in a directory: one latent for each cell of a scene."""
    images = read_vae(directory)
    tokenizer, specials = word_tokenizer(scenes.VOCABULARY, SHOWO2_TOKENS)
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


MMADA_RECIPE = FamilyRecipe(
    new_mmada,
    {
        "policy": Recipe(
            "policy",
            9000,
            2e-3,
            # What is learnt early makes room for the rest.
            {"t2t": (1, 12), "i2t": (1, 3), "t2i": (1, 8), "edit": (1, 3), "interleaved": (1, 8), "interleaved_edit": (1, 14)},
        ),
        "slips": Recipe(
            "slips",
            1600,
            1e-3,
            {"t2t": (9, 9), "i2t": (3, 3), "t2i": (4, 4), "edit": (3, 3), "interleaved": (4, 4), "interleaved_edit": (9, 9)},
            slips=0.3,
            first=10**7,
        ),
    },
    own_products=True,
)
SHOWO_RECIPE = FamilyRecipe(
    new_showo,
    {"policy": Recipe("policy", 1200, 2e-3, {"i2t": (1, 1), "t2i": (3, 3), "interleaved": (1, 1)})},
)
SHOWO2_RECIPE = FamilyRecipe(
    new_showo2,
    {
        # Its images begin to follow a plan behind a thousand steps only.
        "policy": Recipe("policy", 8000, 2e-3, {"i2t": (1, 1), "t2i": (3, 3), "interleaved": (1, 1)}),
        "slips": Recipe("slips", 500, 1e-3, {"i2t": (1, 1), "t2i": (3, 3), "interleaved": (1, 1)}, slips=0.3, first=10**7),
    },
)
FAMILIES = {"mmada": MMADA_RECIPE, "showo": SHOWO_RECIPE, "showo2": SHOWO2_RECIPE}
