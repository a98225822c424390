"""Rollouts as a policy has laid them out, once for all passes of an update."""

from collections.abc import Sequence
from functools import cached_property
from typing import overload

import numpy as np
import torch
from torch import Tensor

from pararl.types import Modality, Rollout
from policies.canvas import Canvas
from policies.layout import Layout, Shown


class Batch(Sequence[Rollout]):
    """Rollouts with the ids of their prompts and their encoded input images; made by ``Policy.prepare``."""

    def __init__(
        self,
        layout: Layout,
        device: torch.device,
        rollouts: Sequence[Rollout],
        prefixes: Sequence[Sequence[int]],
        shown: Sequence[Shown],
    ) -> None:
        self.layout, self.device = layout, device
        self.rollouts, self.prefixes, self.shown = tuple(rollouts), tuple(prefixes), tuple(shown)
        self._stacked: dict[tuple[int, str], Tensor] = {}

    @classmethod
    def of(cls, layout: Layout, device: torch.device, rollouts: Sequence[Rollout]) -> "Batch":
        """Lay rollouts out. Prompts that a rollout carries the ids of are not tokenized again; images of codes are in these ids."""
        encoded = [r.prompt_ids is None or not layout.images.codes for r in rollouts]
        found = iter(layout.shown([r.prompt for r, wanted in zip(rollouts, encoded, strict=True) if wanted]))
        shown = [next(found) if wanted else Shown() for wanted in encoded]
        prefixes = [
            layout.prefix(r.prompt, image.ids) if r.prompt_ids is None else r.prompt_ids.tolist()
            for r, image in zip(rollouts, shown, strict=True)
        ]
        return cls(layout, device, rollouts, prefixes, shown)

    @overload
    def __getitem__(self, place: int) -> Rollout: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Rollout]: ...
    def __getitem__(self, place: int | slice) -> Rollout | Sequence[Rollout]:
        return self.rollouts[place]

    def __len__(self) -> int:
        return len(self.rollouts)

    def take(self, index: Sequence[int]) -> "Batch":
        """Some of the rollouts, in the order of ``index``; nothing is encoded again."""
        prefixes, shown = [self.prefixes[i] for i in index], [self.shown[i] for i in index]
        return Batch(self.layout, self.device, [self.rollouts[i] for i in index], prefixes, shown)

    @cached_property
    def canvas(self) -> Canvas:
        """The blank canvas. Raises ValueError for rollouts of several tasks."""
        if len({rollout.prompt.task for rollout in self.rollouts}) != 1:
            raise ValueError("a likelihood batch holds rollouts of one task; split it by task")
        return self.layout.lay_out(self.rollouts[0].prompt.task, self.prefixes, self.shown).to(self.device)

    # ---- segments, by their place in the output

    def modality(self, place: int) -> Modality:
        """That of the segment at a place."""
        return self.rollouts[0].segments[place].modality

    def places(self, modality: Modality) -> list[int]:
        """Where the segments of a modality are."""
        return [place for place, segment in enumerate(self.rollouts[0].segments) if segment.modality == modality]

    def length(self, modality: Modality) -> int:
        """Tokens of all segments of a modality."""
        return sum(len(self.rollouts[0].segments[place].tokens) for place in self.places(modality))

    def part(self, place: int) -> slice:
        """Which of the tokens of its modality, one segment behind the other, are those of the segment at a place."""
        sizes = [len(self.rollouts[0].segments[other].tokens) for other in self.places(self.modality(place)) if other <= place]
        return slice(sum(sizes[:-1]), sum(sizes))

    def stacked(self, place: int, name: str) -> Tensor:
        """One array of the segments at a place, [batch, ...]."""
        if (place, name) not in self._stacked:
            arrays = np.stack([getattr(rollout.segments[place], name) for rollout in self.rollouts])
            self._stacked[place, name] = torch.from_numpy(arrays).to(self.device)
        return self._stacked[place, name]
