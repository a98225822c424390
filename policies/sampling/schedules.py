"""How many tokens are committed at each denoising step. Pure integer functions, checked against the released ones' recorded tables."""

import math
from typing import Literal

import torch

Decoding = Literal["parallel", "semi_parallel", "sequential"]


def cosine_remaining(tokens: int, steps: int, known: int = 0) -> list[int]:
    """Tokens still masked after each step of MaskGIT's cosine schedule, the last entry 0: the final step commits all that is left.

    ``floor(tokens cos(pi/2 (s+1)/steps))`` in float32 as released, but at least one new token is committed at every step while any is
    unknown, and at least one is kept for the next. More steps than unknown tokens leave idle steps before the last.
    Source: Chang et al. 2022 (MaskGIT); MMaDA ``t2i_generate``.
    """
    remaining, unknown = [], tokens - known
    for step in range(steps):
        ratio = torch.tensor((step + 1) / steps)
        wanted = int(torch.floor(tokens * torch.cos(ratio * math.pi * 0.5)))
        unknown = 0 if step == steps - 1 else min(unknown, max(1, min(unknown - 1, wanted)))
        remaining.append(unknown)
    return remaining


def transfer_counts(tokens: int, steps: int) -> list[int]:
    """Tokens that LLaDA's text sampler commits at each step of a block: even, the remainder on the first steps."""
    base, extra = divmod(tokens, steps)
    return [base + (step < extra) for step in range(steps)]


def block_counts(tokens: int, steps: int, block: int) -> tuple[list[int], list[int]]:
    """Commits and window ends per step of the block-wise text sampler, left to right.

    Returns (commits [steps], window [steps]): at step t, ``commits[t]`` of the masked positions before ``window[t]`` are committed.
    Raises ValueError where blocks do not divide the tokens or the steps evenly.
    """
    if tokens % block or steps % (tokens // block):
        raise ValueError(f"{tokens} text tokens in blocks of {block} need a number of steps divisible by {tokens // block}, got {steps}")
    blocks = tokens // block
    commits = transfer_counts(block, steps // blocks) * blocks
    window = [(step * blocks // steps + 1) * block for step in range(steps)]
    return commits, window


def spread(updates: int, steps: int) -> list[int]:
    """The steps out of ``steps`` at which a segment of ``updates`` advances: evenly spread, the last step included.

    Raises ValueError for more updates than steps.
    """
    if updates > steps:
        raise ValueError(f"{updates} updates do not fit {steps} denoising steps; take as many steps or more")
    return [(i + 1) * steps // updates - 1 for i in range(updates)]


def shared_steps(steps: int, decoding: Decoding) -> tuple[range, range]:
    """The steps at which the text and the image of one output are decoded, out of ``steps`` forwards; both end within them.

    parallel: both throughout. semi_parallel: the text in the first three quarters, the image in the last three. sequential: the text
    in the first half, the image in the second, sure of a finished plan. Source of the three: MMaDA-Parallel (arXiv 2511.09611, Table 10),
    which does not say how far its semi-parallel decoding overlaps; half of all steps is our choice. Raises ValueError where the steps
    cannot be cut so.
    """
    cut = {"parallel": 1, "semi_parallel": 4, "sequential": 2}[decoding]
    if steps % cut:
        raise ValueError(f"{decoding} decoding needs a number of steps divisible by {cut}, got {steps}")
    rest = 0 if cut == 1 else steps // cut
    return range(steps - rest), range(rest, steps)
