"""Task quotas: how the prompts of a batch are shared out among kinds of prompts. Pure functions of names and numbers."""

from collections.abc import Mapping, Sequence

from pararl.types import KINDS, Kind

PAIRED: tuple[Kind, Kind] = ("i2t", "t2i")
"""What the batches of a paired arm hold in equal parts: the first, second, ... prompts of both are about one scene."""


def task_shares(entries: Sequence[str]) -> dict[Kind, int]:
    """The share of each kind from entries like ``t2i`` or ``edit:2``, in their order; a kind without a number has 1.

    Raises ValueError for a kind that is unknown or given twice, and a share that is not a whole number of at least 1.
    """
    shares: dict[Kind, int] = {}
    for entry in entries:
        name, colon, number = (part.strip() for part in entry.partition(":"))
        kind = next((kind for kind in KINDS if kind == name), None)
        if kind is None:
            raise ValueError(f"unknown {name!r} (known: {', '.join(KINDS)})")
        if kind in shares:
            raise ValueError(f"{name!r} is named more than once")
        if colon and not (number.isdecimal() and int(number)):
            raise ValueError(f"the share of {name} must be a whole number of at least 1, got {number!r}")
        shares[kind] = int(number) if colon else 1
    return shares


def quotas(shares: Mapping[Kind, int], total: int) -> dict[Kind, int]:
    """``total`` prompts shared out in proportion, at least one each: whole numbers that sum to ``total``, the largest remainders first.

    Raises ValueError for fewer prompts than kinds.
    """
    if total < len(shares):
        raise ValueError(f"{total} prompts cannot hold {len(shares)} kinds ({', '.join(shares)})")
    exact = {kind: total * share / sum(shares.values()) for kind, share in shares.items()}
    found = {kind: max(1, int(value)) for kind, value in exact.items()}
    while sum(found.values()) != total:
        # At least one of each kind may already be more than the total, so the way may go down as well.
        step = 1 if sum(found.values()) < total else -1
        candidates = [kind for kind in found if found[kind] + step >= 1]
        kind = max(candidates, key=lambda kind: step * (exact[kind] - found[kind]))
        found[kind] += step
    return found
