"""The embedded policy of MMaDA's kind."""

from collections.abc import Sequence
from pathlib import Path

from policies.backbones.llada import MMadaConfig, MMadaModelLM
from policies.embedded.recipe import SETTINGS, FamilyRecipe, Recipe
from policies.families.mmada import MMADA
from policies.image.magvitv2 import MAGVITv2
from policies.policy import Policy
from policies.settings import Settings
from policies.text import word_tokenizer
from policies.weights import read_model

LLADA = {"d_model": 128, "n_layers": 4, "n_heads": 4, "mlp_hidden_size": 384, "max_sequence_length": 128}


def new_mmada(directory: Path, words: Sequence[str]) -> Policy:
    """An untrained MMaDA policy around the image tokenizer in a directory."""
    images = read_model(MAGVITv2, directory)
    tokenizer, specials = word_tokenizer(words)
    rows = len(tokenizer) + images.codebook_size
    config = MMadaConfig(**LLADA, embedding_size=rows, mask_token_id=specials.mask, codebook_size=images.codebook_size, num_vq_tokens=16)
    return MMADA.policy(MMadaModelLM(config), tokenizer, images, Settings(**SETTINGS, specials=specials))  # type: ignore[arg-type]


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
