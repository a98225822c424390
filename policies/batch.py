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
        self._stacked: dict[tuple[Modality, str], Tensor] = {}

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

    def length(self, modality: Modality) -> int:
        """Tokens of the segments of a modality."""
        segment = self.rollouts[0].segment(modality)
        return 0 if segment is None else len(segment.tokens)

    def stacked(self, modality: Modality, name: str) -> Tensor:
        """One array of the segments of a modality, [batch, ...]."""
        if (modality, name) not in self._stacked:
            arrays = np.stack([getattr(rollout.segment(modality), name) for rollout in self.rollouts])
            self._stacked[modality, name] = torch.from_numpy(arrays).to(self.device)
        return self._stacked[modality, name]
