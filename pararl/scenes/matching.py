"""Which object fills which required slot: a maximum bipartite matching."""

from dataclasses import dataclass

from pararl.scenes.spec import Include
from pararl.scenes.world import COLOURS


@dataclass(frozen=True, slots=True)
class Matching:
    """How objects (by their place in the list given) fill the slots of the includes, one slot per object wanted."""

    slots: int
    objects: int
    filled: int
    """Slots filled by distinct objects of the right shape and colour: the largest possible number."""
    near: tuple[int, ...]
    """Further objects, of the shape of an unfilled slot but of another colour, one per such slot."""
    extra: tuple[int, ...]
    """Objects left over."""
    overlapping: bool
    """Whether one object could belong to two includes."""

    def agreement(self, closed: bool, unreadable: int) -> float:
        """In [0, 1]: F1 between slots and what is drawn (``closed``) or the recall of slots; near fillings count half."""
        right = self.filled + len(self.near) / 2
        if not closed:
            return right / self.slots if self.slots else 1.0
        drawn = self.objects + unreadable
        return 2 * right / (self.slots + drawn) if self.slots + drawn else 1.0


def match(includes: tuple[Include, ...], kinds: list[int]) -> Matching:
    """Match objects of these kinds (in raster order, the earlier preferred) to the includes, by augmenting paths (Kuhn)."""
    slots = [i for i, include in enumerate(includes) for _ in range(include.count)]
    fits = [[_fits(include, kind) for kind in kinds] for include in includes]
    holder: list[int | None] = [None] * len(kinds)

    def place(slot: int, tried: set[int]) -> bool:
        for i, fit in enumerate(fits[slots[slot]]):
            if fit and i not in tried:
                tried.add(i)
                other = holder[i]
                if other is None or place(other, tried):
                    holder[i] = slot
                    return True
        return False

    unfilled = [slots[slot] for slot in range(len(slots)) if not place(slot, set())]
    near = []
    for i, kind in enumerate(kinds):
        slot = next((s for s in unfilled if holder[i] is None and includes[s].shape == kind // len(COLOURS)), None)
        if slot is not None:
            unfilled.remove(slot)
            near.append(i)
    extra = tuple(i for i, slot in enumerate(holder) if slot is None and i not in near)
    overlapping = any(_overlap(a, b) for k, a in enumerate(includes) for b in includes[:k])
    return Matching(len(slots), len(kinds), sum(slot is not None for slot in holder), tuple(near), extra, overlapping)


def _fits(include: Include, kind: int) -> bool:
    shape, colour = divmod(kind, len(COLOURS))
    return shape == include.shape and (include.colour is None or colour == include.colour)


def _overlap(a: Include, b: Include) -> bool:
    return a.shape == b.shape and (a.colour is None or b.colour is None or a.colour == b.colour)
