"""The embedded policy of Chameleon's kind."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from policies.backbones.chameleon import Chameleon, ChameleonConfig
from policies.embedded.recipe import SETTINGS, FamilyRecipe, Recipe
from policies.families.chameleon import CHAMELEON, SPELLED, ChameleonSettings, ChameleonSpecials
from policies.image.chameleon import code_name
from policies.image.magvitv2 import MAGVITv2
from policies.policy import Policy
from policies.text import word_tokenizer

SIZES: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
}


def new_chameleon(directory: Path, words: Sequence[str]) -> Policy:
    """An untrained Chameleon policy around the MAGVIT-v2 tokenizer in a directory, whose codes stand behind the words.

    Chameleon's own VQGAN normalises 32 groups of channels at every level. One that is narrow enough to be embedded would have a channel in
    each, whose brightness the norm erases.
    """
    images = MAGVITv2.from_pretrained(directory)
    tokenizer, specials = word_tokenizer(words, SPELLED, kind=ChameleonSpecials)
    specials = replace(specials, **dict.fromkeys(("t2i", "mmu", "interleave"), specials.mask))
    named = tokenizer.get_vocab() | {code_name(code): len(tokenizer) + code for code in range(images.codebook_size)}
    config = ChameleonConfig(**SIZES, vocab_size=len(named), vocabulary_map=named)
    settings: dict[str, Any] = {**SETTINGS, "dialogue": "{text}", "specials": specials}
    return CHAMELEON.policy(Chameleon(config), tokenizer, images, ChameleonSettings(**settings))


CHAMELEON_RECIPE = FamilyRecipe(
    new_chameleon,
    {
        "policy": Recipe(
            "policy",
            6000,
            2e-3,
            {"t2t": (1, 4), "i2t": (1, 2), "t2i": (2, 6), "edit": (1, 3), "interleaved": (1, 4), "interleaved_edit": (1, 5)},
        )
    },
)
