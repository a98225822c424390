"""How the embedded policies are made: their sizes, and what each stage of their pretraining trains on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pararl import scenes
from pararl.types import KINDS, Kind, Output, Prompt
from policies import pretraining, showo_pretraining
from policies.backbones.llada import MMadaConfig, MMadaModelLM
from policies.backbones.showo import Showo, ShowoConfig
from policies.image.magvitv2 import MAGVITv2
from policies.mmada import MMadaPolicy
from policies.mmada_codec import MMadaSettings
from policies.showo import ShowoPolicy
from policies.text import SHOWO_TOKENS, word_tokenizer

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

Loss = Callable[[MMadaPolicy, Sequence[Prompt], Sequence[Output], torch.Generator], dict[str, Tensor]]


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
class Family:
    """How the embedded policy of a family is made."""

    new: Callable[[Path], MMadaPolicy]
    """An untrained policy around the image tokenizer in a directory."""
    loss: Loss
    recipes: Mapping[str, Recipe]
    """By stage."""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of prompts that it is trained on."""
        return tuple(kind for kind in KINDS if kind in self.recipes["policy"].mixture)


def new_mmada(directory: Path) -> MMadaPolicy:
    """An untrained MMaDA policy around the image tokenizer in a directory."""
    images = MAGVITv2.from_pretrained(directory)
    tokenizer, specials = word_tokenizer(scenes.VOCABULARY)
    rows = len(tokenizer) + images.codebook_size
    config = MMadaConfig(**LLADA, embedding_size=rows, mask_token_id=specials.mask, codebook_size=images.codebook_size, num_vq_tokens=16)
    return MMadaPolicy(MMadaModelLM(config), tokenizer, images, MMadaSettings(**SETTINGS, specials=specials))  # type: ignore[arg-type]


def new_showo(directory: Path) -> ShowoPolicy:
    """An untrained Show-o policy around the image tokenizer in a directory, in the released layout: MASK is the last row."""
    images = MAGVITv2.from_pretrained(directory)
    words = len(word_tokenizer(scenes.VOCABULARY, SHOWO_TOKENS, 0)[0])
    mask = words + images.codebook_size
    tokenizer, specials = word_tokenizer(scenes.VOCABULARY, SHOWO_TOKENS, mask)
    config = ShowoConfig(
        vocab_size=mask + 1, llm_vocab_size=words - len(SHOWO_TOKENS), codebook_size=images.codebook_size, num_vq_tokens=16, phi=PHI
    )
    settings = MMadaSettings(**SETTINGS, tasks=("i2t", "t2i", "interleaved"), specials=specials)  # type: ignore[arg-type]
    return ShowoPolicy(Showo(config), tokenizer, images, settings)


MMADA = Family(
    new_mmada,
    pretraining.supervised_loss,
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
)
SHOWO = Family(
    new_showo,
    showo_pretraining.supervised_loss,  # type: ignore[arg-type]
    {"policy": Recipe("policy", 1200, 2e-3, {"i2t": (1, 1), "t2i": (3, 3), "interleaved": (1, 1)})},
)
FAMILIES = {"mmada": MMADA, "showo": SHOWO}
