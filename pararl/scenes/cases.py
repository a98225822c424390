"""How the tasks beyond text to image draw their prompts: one family of prompts per task, split by split."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pararl.scenes.splits import HELD_OUT_SHARE, is_id_text
from pararl.scenes.words import MAX_WORDS
from pararl.scenes.world import Scene

MAX_ANSWER = 23
"""Longest answer in words, a plan of six objects (24) apart: with its end token it fits 24 tokens."""


@dataclass(frozen=True, slots=True)
class Case:
    """A prompt with a right answer."""

    text: str
    spec: dict[str, Any]
    key: str
    """The part of the text that decides between ``train`` and ``id``."""
    scene: Scene = field(default_factory=Scene.empty)
    """The scene that the answer shows or speaks of; empty where there is none."""
    answer: str = ""
    """The right text, for tasks that answer in text alone."""


Maker = Callable[[random.Random], Case | None]
"""One try at a case; None = try again."""
Plan = Callable[[random.Random], Maker]
"""Draws what kind of case comes. Its maker keeps to that over all tries, so that hard kinds come as often as easy ones."""


@dataclass(frozen=True, slots=True)
class Family:
    """The prompts of one task."""

    ordinary: Plan
    """Cases of ``train``, ``id`` and most of ``pretrain``."""
    held: Mapping[str, Plan]
    """Cases of the held-out splits."""
    pretrain: "Family | None" = None
    """The family that ``pretrain`` is drawn from; None = this one."""

    def draw(self, split: str, rng: random.Random) -> Case:
        """A case of a split, its text of at most 28 words and its answer of at most 23. ``split`` must be one that the family has."""
        if split == "pretrain" and self.pretrain is not None:
            return self.pretrain.draw(split, rng)
        # One number says whether and which: below the share it is uniform again.
        if split == "pretrain" and (share := rng.random() / HELD_OUT_SHARE) < 1:
            split = tuple(self.held)[int(share * len(self.held))]
        # Drawn once, before the tries: a kind that fails more often must not come less often.
        make = self.held.get(split, self.ordinary)(rng)
        if split in ("train", "id"):
            return _until(lambda: _of_side(make(rng), split == "id"))
        return _until(lambda: make(rng))


def _of_side(case: Case | None, of_id: bool) -> Case | None:
    return case if case is not None and is_id_text(case.key) == of_id else None


def _until(draw: Callable[[], Case | None]) -> Case:
    while True:
        case = draw()
        if case is not None and len(case.text.split()) <= MAX_WORDS and len(case.answer.split()) <= MAX_ANSWER:
            return case
