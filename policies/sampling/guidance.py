"""Classifier-free guidance: the logits of a prompt, moved away from those of prompts of which a part is left out."""

from collections.abc import Iterable

from torch import Tensor


def guided(logits: Tensor, branches: Iterable[tuple[float, Tensor]]) -> Tensor:
    """``logits`` [..., rows] with s times the difference from the logits of each branch added, s being its scale; the same object without
    branches."""
    found = logits
    for scale, without in branches:
        # Forbidden rows are at -inf in both, which have no difference there.
        found = found + scale * (logits - without).masked_fill_(logits.isneginf(), 0.0)
    return found
