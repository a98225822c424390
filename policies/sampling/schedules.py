"""How many tokens are committed at each denoising step. Pure integer functions, checked against the released ones' recorded tables."""

import math
from typing import Literal

import torch
from torch import Tensor

Schedule = Literal["cosine", "linear", "pow2", "sigmoid"]


def masked_share(ratio: Tensor, schedule: Schedule = "cosine") -> Tensor:
    """Share of the tokens that is still masked after ``ratio`` of the way, 1 to 0: MaskGIT's schedules under the names of the releases."""
    if schedule == "cosine":
        return torch.cos(ratio * math.pi * 0.5)
    if schedule == "sigmoid":
        low, high = torch.sigmoid(torch.tensor([-3.0, 3.0]))
        return ((high - torch.sigmoid(6 * ratio - 3)) / (high - low)).clamp(1e-6, 1)
    if schedule not in ("linear", "pow2"):
        raise ValueError(f"unknown schedule {schedule!r}: known are cosine, linear, pow2 and sigmoid")
    return (1 - ratio ** (1 if schedule == "linear" else 2)).clamp(1e-6, 1)


def left_masked(tokens: int, unknown: int, ratio: float, schedule: Schedule = "cosine") -> int:
    """Tokens that stay masked where ``unknown`` of them were: ``floor(tokens * share)`` in float32 as released, at least one fewer than
    before and at least one."""
    return max(1, min(unknown - 1, int(torch.floor(tokens * masked_share(torch.tensor(ratio), schedule)))))


def remaining(tokens: int, steps: int, known: int = 0, schedule: Schedule = "cosine") -> list[int]:
    """Tokens still masked after each step of MaskGIT, the last entry 0: the final step commits all that is left.

    At least one new token is committed at every step while any is unknown, and at least one is kept for the next. More steps than unknown
    tokens leave idle steps before the last. Source: Chang et al. 2022 (MaskGIT); MMaDA ``t2i_generate``.
    """
    left, unknown = [], tokens - known
    for step in range(steps):
        unknown = 0 if step == steps - 1 else min(unknown, left_masked(tokens, unknown, (step + 1) / steps, schedule))
        left.append(unknown)
    return left


def reveal_chances(steps: int) -> list[float]:
    """The chance of each masked token to be revealed at each step of MaskGRPO's emerge sampler; 1 at the last.

    ``1 - cos(pi/2 (step + 1) / steps) / cos(pi/2 step / steps)``. So after each step as many tokens are masked on average as the cosine
    schedule says. Source: arXiv 2510.02880, ``t2i_generate_emerge`` of martian422/MaskGRPO.
    """
    left = [math.cos(math.pi / 2 * step / steps) for step in range(steps)] + [0.0]
    return [1 - after / before for before, after in zip(left, left[1:], strict=False)]


def transfer_counts(tokens: int, steps: int) -> list[int]:
    """Tokens that LLaDA's text sampler commits at each step of a block: even, the remainder on the first steps."""
    base, extra = divmod(tokens, steps)
    return [base + (step < extra) for step in range(steps)]


def block_counts(tokens: int, steps: int, block: int) -> tuple[list[int], list[int]]:
    """Commits and window ends per step of the block-wise text sampler, left to right.

    Returns (commits [steps], window [steps]): at step t, ``commits[t]`` of the masked positions before ``window[t]`` are committed. The
    last block may be shorter. Raises ValueError where the steps are not evenly divided by the blocks.
    """
    blocks = -(-tokens // block)
    if steps % blocks:
        raise ValueError(f"{tokens} text tokens in blocks of {block} need a number of steps divisible by {blocks}, got {steps}")
    ends = [min((i + 1) * block, tokens) for i in range(blocks)]
    sizes = [end - i * block for i, end in enumerate(ends)]
    commits = [count for size in sizes for count in transfer_counts(size, steps // blocks)]
    return commits, [end for end in ends for _ in range(steps // blocks)]
