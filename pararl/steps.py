"""At which denoising steps the parts of an output advance: integer functions without torch, for samplers and for plans of runs."""

from typing import Literal

from pararl.types import MODALITIES, Modality

Decoding = Literal["parallel", "semi_parallel", "sequential", "released"]
CUTS: dict[Decoding, int] = {"parallel": 1, "released": 1, "semi_parallel": 4, "sequential": 2}
"""Into how many equal stretches each cuts the steps."""


def spread(updates: int, steps: int) -> list[int]:
    """The steps out of ``steps`` at which a segment of ``updates`` advances: evenly spread, the last step included.

    Raises ValueError for more updates than steps.
    """
    if updates > steps:
        raise ValueError(f"{updates} updates do not fit {steps} denoising steps; take as many steps or more")
    return [(i + 1) * steps // updates - 1 for i in range(updates)]


def late_updates(steps: int, updates: int) -> list[int]:
    """The steps at which the released MMaDA-Parallel samplers update the image: from a quarter of the way on, increasing.

    Rounded to even, so that several may fall together: there are ``updates`` of them or fewer.
    """
    first, last = steps // 4, steps - 1
    return list(dict.fromkeys(round(first + (last - first) * i / max(1, updates - 1)) for i in range(updates)))


def shared_steps(steps: int, decoding: Decoding) -> tuple[range, range]:
    """The steps at which the text and the image of one output are decoded, out of ``steps`` forwards; both end within them.

    parallel: both throughout. semi_parallel: the text in the first three quarters, the image in the last three. sequential: the text in the
    first half, the image in the second, sure of a finished plan. Source of the three: MMaDA-Parallel (arXiv 2511.09611, Table 10) does not
    say how far its semi-parallel decoding overlaps; half of all steps is our choice. released: both may be decoded throughout, the image by
    ``late_updates``. Raises ValueError where the steps cannot be cut so.
    """
    cut = CUTS[decoding]
    if steps % cut:
        raise ValueError(f"{decoding} decoding needs a number of steps divisible by {cut}, got {steps}")
    rest = 0 if cut == 1 else steps // cut
    return range(steps - rest), range(rest, steps)


def stretch(modality: Modality, joint: bool, steps: int, decoding: Decoding, image_steps: int) -> tuple[range, int]:
    """Within which of ``steps`` forwards a segment is decoded, and at how many of these it advances.

    ``joint``: the output has two segments, so ``decoding`` and ``image_steps`` (0 = at every step of its own) count. A segment alone
    advances at every step. Raises ValueError where the steps cannot be cut so.
    """
    active = shared_steps(steps, decoding)[MODALITIES.index(modality)] if joint else range(steps)
    given = image_steps if joint and modality == "image" else 0
    return active, given or len(active)


def advances(modality: Modality, joint: bool, steps: int, decoding: Decoding, image_steps: int) -> list[int]:
    """The steps at which a segment advances, increasing: those of ``stretch``, where the samplers put them. Raises ValueError as it does,
    and for more image steps than there are."""
    active, updates = stretch(modality, joint, steps, decoding, image_steps)
    if joint and decoding == "released" and modality == "image":
        return late_updates(steps, updates)
    return [active.start + place for place in spread(updates, len(active))]
