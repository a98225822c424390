"""What a family of policies can and cannot do, one row each, without torch: all that the rest of the program knows of a family.

A new family is its own files under ``policies/``, one row here and one in ``families/table.py``. What follows from these facts (which
settings have an effect, what a plan can count) is derived where it is needed, never listed by family.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pararl.config import ConfigError
from pararl.policy_files import description
from pararl.types import Task

ANSWERS: tuple[Task, ...] = ("t2t", "i2t")
"""Tasks whose output is text alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """What a plan of a run must know of the sequences of a family, beside the sizes in its files."""

    framed: bool = False
    """Whether the prompt is one message and the answer stands between two tokens of its own; else they are parts in a row."""
    line_breaks: bool = False
    """Whether a token stands behind every row of an image."""
    image_weights: int = 95_493_513
    """Parameters of the released image tokenizer, which is float32; by default those of ``showlab/magvitv2``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What a family can and cannot do."""

    text: Literal["masked", "causal"]
    """Head of texts: tokens are unmasked in any order, or written one after the other."""
    image: Literal["masked", "causal", "flow"]
    """Head of images: the same, or continuous latents that flow from noise."""
    text_guided: bool = False
    """Whether the text of an output that has both can be guided."""
    spoken: tuple[Task, ...] = ANSWERS
    """Tasks that are asked in its dialogue; the prompts of others are their text alone."""
    apart: bool = False
    """Whether the text of a prompt is tokenized apart from what the dialogue puts around it."""
    patched: bool = False
    """Whether one image token is a patch of several places of the image tokenizer's, ``patch_size`` in the backbone's config."""
    trl: bool = False
    """Whether TRL can train its texts: a causal text head, and images that are read as tokens."""
    counted: Counted | None = None
    """What a plan counts it by; None = a plan does not count it."""

    @property
    def joint(self) -> bool:
        """Whether text and image of one output are denoised together, and so share its steps."""
        return self.text == self.image == "masked"

    @property
    def masks(self) -> bool:
        """Whether any likelihood is that of hidden tokens."""
        return "masked" in (self.text, self.image)


TRAITS: dict[str, Traits] = {
    "mmada": Traits(text="masked", image="masked", text_guided=True, counted=Counted()),
    # 146 million: the aMUSEd tokenizer, about.
    "mmada_parallel_a": Traits(
        text="masked",
        image="masked",
        text_guided=True,
        spoken=("t2i", "edit", "interleaved"),
        counted=Counted(framed=True, line_breaks=True, image_weights=146_000_000),
    ),
    "showo": Traits(text="causal", image="masked", trl=True),
    "showo2": Traits(text="causal", image="flow", spoken=(*ANSWERS, "interleaved"), apart=True, patched=True),
    "chameleon": Traits(text="causal", image="causal", spoken=()),
}
"""The families by the names that ``policy.json`` calls them."""


def traits_of(name: str, directory: Path) -> Traits | None:
    """The traits of the policy ``name``, whose files, where there are any, lie in ``directory``; None where nothing describes it.

    Raises ConfigError for a description that names no family, or one that is not known.
    """
    found = description(name, directory)
    if found is None:
        return None
    family = found.get("family")
    if not isinstance(family, str) or family not in TRAITS:
        what = "names no family" if family is None else f"names the unknown family {family!r}"
        raise ConfigError(f"policy.name: {directory / 'policy.json'} {what} (known: {', '.join(TRAITS)}; set --policy.name)")
    return TRAITS[family]
