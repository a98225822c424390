"""How an embedded policy is made: a new one, and what each stage of its pretraining trains on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pararl.types import KINDS, Kind
from policies.policy import Policy

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
# A choice temperature of 8 is as good as random order. The most confident cells of a sparse scene are its empty ones. Committing those
# first leaves the objects to the end, where several are drawn at once.


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

    new: Callable[[Path, Sequence[str]], Policy]
    """``new(directory, words)``: an untrained policy of these words around the image tokenizer in a directory."""
    recipes: Mapping[str, Recipe]
    """By stage."""
    own_products: bool = False
    """Whether its shipped weights were made with torch's own float32 products, not with the faster ones of ``policies.cpu``."""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of prompts that it is trained on."""
        return tuple(kind for kind in KINDS if kind in self.recipes["policy"].mixture)
