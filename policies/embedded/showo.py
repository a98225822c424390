"""The embedded policy of Show-o's kind."""

from collections.abc import Sequence
from pathlib import Path

from policies.backbones.showo import Showo, ShowoConfig
from policies.embedded.recipe import SETTINGS, FamilyRecipe, Recipe
from policies.families.showo import SHOWO
from policies.image.magvitv2 import MAGVITv2
from policies.policy import Policy
from policies.settings import Settings
from policies.text import SHOWO_TOKENS, word_tokenizer
from policies.weights import read_model

PHI = {
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "partial_rotary_factor": 0.5,
}


def new_showo(directory: Path, words: Sequence[str]) -> Policy:
    """An untrained Show-o policy around the image tokenizer in a directory, in the released layout: MASK is the last row."""
    images = read_model(MAGVITv2, directory)
    rows = len(word_tokenizer(words, SHOWO_TOKENS, 0)[0])
    mask = rows + images.codebook_size
    tokenizer, specials = word_tokenizer(words, SHOWO_TOKENS, mask)
    config = ShowoConfig(
        vocab_size=mask + 1, llm_vocab_size=rows - len(SHOWO_TOKENS), codebook_size=images.codebook_size, num_vq_tokens=16, phi=PHI
    )
    settings = Settings(**SETTINGS, tasks=("i2t", "t2i", "interleaved"), specials=specials)  # type: ignore[arg-type]
    return SHOWO.policy(Showo(config), tokenizer, images, settings)


SHOWO_RECIPE = FamilyRecipe(
    new_showo,
    {"policy": Recipe("policy", 1200, 2e-3, {"i2t": (1, 1), "t2i": (3, 3), "interleaved": (1, 1)})},
)
