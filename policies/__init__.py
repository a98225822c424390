"""Unified multimodal policies: how they sample, and what samples are worth to them. ``load`` gives one by name or directory.

policy = policies.load("scenes-mmada")
policy.sample("two red circles left of a blue square")[0].image

torch is loaded by the first use of what needs it, so that a program may read names and options without.

May import: the ground floor.
"""

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pararl.options import Drawing, Sampling
from pararl.releases import RELEASES

if TYPE_CHECKING:
    import torch

    from policies.batch import Batch
    from policies.families.table import FAMILIES
    from policies.policy import Policy
    from policies.records import Draws, DrawTokens, StepTokens
    from policies.sources import CHECKPOINTS

LAZY = {
    **dict.fromkeys(("DrawTokens", "Draws", "StepTokens"), "policies.records"),
    "Batch": "policies.batch",
    "Policy": "policies.policy",
    "FAMILIES": "policies.families.table",
    "CHECKPOINTS": "policies.sources",
}
"""Where the names live that load torch."""

__all__ = ["CHECKPOINTS", "Batch", "FAMILIES", "RELEASES", "Drawing", "DrawTokens", "Draws", "Policy", "Sampling", "StepTokens", "load"]


def __getattr__(name: str) -> Any:
    if name in LAZY:
        return getattr(import_module(LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load(
    name: str | Path,
    *,
    dtype: "torch.dtype | None" = None,
    device_map: str | dict[str, Any] | None = None,
    release: str | None = None,
    image_tokenizer: str | Path | None = None,
    text_tokenizer: str | Path | None = None,
) -> "Policy":
    """The policy of an embedded checkpoint (``"scenes-mmada"``), of a directory that ``Policy.save`` wrote, or of a release.

    A release is ``"Gen-Verse/MMaDA-8B-MixCoT"``, with a revision behind an ``@``, or a directory that holds a copy. ``release`` says of
    which one it is a copy, where the directory's name does not. ``image_tokenizer`` and ``text_tokenizer``: a directory or a hub name in
    place of the one it was released with.
    ``dtype`` and ``device_map`` are the backbone's, as in ``from_pretrained``; weights stay mapped from their file until they are used.

    Raises FileNotFoundError when there is no such checkpoint, and ValueError for an unknown family. Weights, shapes or a vocabulary that
    are not exactly those of the model are a ValueError that names the keys.
    """
    from policies import sources
    from policies.families.table import family_of

    parts = replace(sources.find(name, release, image_tokenizer, text_tokenizer), dtype=dtype, device_map=device_map)
    return family_of(parts).load(parts)
