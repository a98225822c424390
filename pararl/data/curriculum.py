"""Which prompts an arm trains on: fixed task quotas in every batch, one cursor per kind of prompt, rest for prompts that teach nothing."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from pararl import scenes
from pararl.config import Config
from pararl.data.own import Own
from pararl.data.prompts import paired
from pararl.data.quotas import PAIRED, quotas, task_shares
from pararl.types import Kind, Prompt

State = dict[str, Any]


class Cursor(Protocol):
    """The prompts of one kind, in order."""

    def next(self, count: int) -> list[Prompt]:
        """The next ``count`` prompts, all different."""

    def told(self, flat: Iterable[str]) -> None:
        """Ids of prompts whose group had no spread."""

    def state(self) -> State:
        """All that ``load_state`` needs; JSON values."""

    def load_state(self, state: State) -> None:
        """Go on from there."""


class Endless:
    """The training prompts of one kind in the scene world, an endless stream; those of some tags are passed over."""

    def __init__(self, kind: Kind, seed: int, canaries: Sequence[str] = ()) -> None:
        self.kind, self.seed, self.canaries = kind, seed, frozenset(canaries)
        self.cursor = 0

    def _at(self, index: int) -> list[Prompt]:
        """The prompt at a place of the stream, and before it those that must be trained on with it. Empty: the place is passed over."""
        return [scenes.prompt("train", index, self.seed, *scenes.FORMS[self.kind])]

    def next(self, count: int) -> list[Prompt]:
        """See ``Cursor``, here and below."""
        found: list[Prompt] = []
        while len(found) < count:
            here = self._at(self.cursor)
            self.cursor += 1
            if here and self.canaries.isdisjoint(p.spec["tag"] for p in here):
                found.append(here[-1])
        return found

    def told(self, flat: Iterable[str]) -> None:
        """No prompt comes back, so there is none to rest."""

    def state(self) -> State:
        return {"cursor": self.cursor}

    def load_state(self, state: State) -> None:
        self.cursor = int(state["cursor"])


class EndlessPaired(Endless):
    """One side of the descriptions and captions of the same scenes."""

    def _at(self, index: int) -> list[Prompt]:
        caption = scenes.captioned("train", index, self.seed)
        if caption is None:
            return []
        pair = [caption, scenes.prompt("train", index, self.seed)]
        # Both prompts, so that a tag passed over on one side is passed over on the other, and the cursors stay at one scene.
        return pair if self.kind == "t2i" else pair[::-1]


class Finite:
    """The user's prompts of one kind, pass after pass, each in an order of its own.

    ``rest``: a prompt whose group had no spread, always right or always wrong, sits out the next pass.
    """

    def __init__(self, prompts: Sequence[Prompt], seed: int, rest: bool = True) -> None:
        self.prompts, self.seed, self.rest = list(prompts), seed, rest
        self.epoch, self.cursor = 0, 0
        self.resting: dict[str, int] = {}
        """Per prompt id the pass that it sits out."""
        self.drawn: dict[str, int] = {}
        """Per prompt id of the last batch the pass that it was drawn in."""
        # The cursor is a place in the list: in another list a resumed run would go on with other prompts, and nothing would tell.
        texts = json.dumps([(p.id, p.text) for p in self.prompts])
        self.digest = hashlib.blake2b(texts.encode(), digest_size=8).hexdigest()

    def next(self, count: int) -> list[Prompt]:
        """See ``Cursor``, here and below. Raises ValueError for more prompts than there are."""
        if count > len(self.prompts):
            raise ValueError(f"{count} different prompts of kind {self.prompts[0].kind} are wanted, but there are {len(self.prompts)}")
        found: dict[str, Prompt] = {}
        self.drawn = {}
        while len(found) < count:
            prompt = self._advance()
            # A batch may cross into the next pass, whose order may bring a prompt again: a batch has one group of each.
            if self.resting.get(prompt.id) != self.epoch and prompt.id not in found:
                found[prompt.id] = prompt
                self.drawn[prompt.id] = self.epoch
        return list(found.values())

    def _advance(self) -> Prompt:
        if self.cursor == len(self.prompts):
            self.epoch, self.cursor = self.epoch + 1, 0
        # Made anew for every prompt, so that two numbers say where a killed run goes on.
        order = np.random.default_rng((self.seed, self.epoch)).permutation(len(self.prompts))
        self.cursor += 1
        return self.prompts[order[self.cursor - 1]]

    def told(self, flat: Iterable[str]) -> None:
        if self.rest:
            # From the pass that drew it: the batch may have crossed into the next one since.
            self.resting |= {name: self.drawn[name] + 1 for name in flat}

    def state(self) -> State:
        return {"epoch": self.epoch, "cursor": self.cursor, "resting": dict(self.resting), "digest": self.digest}

    def load_state(self, state: State) -> None:
        if state["digest"] != self.digest:
            raise ValueError(f"the prompts of kind {self.prompts[0].kind} are not those that the run began with; restore curriculum.file")
        self.epoch, self.cursor, self.resting = int(state["epoch"]), int(state["cursor"]), dict(state["resting"])


class Curriculum:
    """The batches of prompts of one arm. ``pairs``: captions and images of the same scenes, in the user's prompts of the same id."""

    def __init__(self, config: Config, pairs: bool = False) -> None:
        c = config.curriculum
        self.shares = dict.fromkeys(PAIRED, 1) if pairs else task_shares(c.tasks)
        self.count, self.alternate = config.rollout.prompts, c.order == "alternate" and not pairs
        self.done = 0
        """Batches given so far."""
        self.cursors: dict[Kind, Cursor]
        if not c.file:
            endless = EndlessPaired if pairs else Endless
            self.cursors = {kind: endless(kind, config.run.seed, c.canaries) for kind in self.shares}
            return
        own = [p for p in Own.of(config, "curriculum.file").prompts() if p.spec.get("tag") not in c.canaries]
        of_kind = paired(own) if pairs else {kind: [p for p in own if p.kind == kind] for kind in self.shares}
        # Pairs stay together: they are drawn in the same order, and neither side rests alone.
        self.cursors = {kind: Finite(of_kind[kind], config.run.seed, c.rest and not pairs) for kind in self.shares}

    def quotas(self) -> dict[Kind, int]:
        """How many prompts of each kind the next batch has."""
        if self.alternate:
            # Spread evenly over a round: ten batches of one kind in a row would have the others forgotten in between.
            turns = sorted(((i + 0.5) / share, place) for place, share in enumerate(self.shares.values()) for i in range(share))
            return {list(self.shares)[turns[self.done % len(turns)][1]]: self.count}
        return quotas(self.shares, self.count)

    def next(self) -> list[Prompt]:
        """The next batch, kind by kind."""
        batch = [prompt for kind, count in self.quotas().items() for prompt in self.cursors[kind].next(count)]
        self.done += 1
        return batch

    def told(self, flat: Sequence[Prompt]) -> None:
        """Prompts of the last batch whose groups had no spread."""
        for kind, cursor in self.cursors.items():
            cursor.told(prompt.id for prompt in flat if prompt.kind == kind)

    def state(self) -> State:
        """All that ``load_state`` needs; JSON values."""
        return {"done": self.done, "cursors": {kind: cursor.state() for kind, cursor in self.cursors.items()}}

    def load_state(self, state: State) -> None:
        """Go on from there."""
        self.done = int(state["done"])
        for kind, cursor in self.cursors.items():
            cursor.load_state(state["cursors"][kind])
