"""What a prompt says, and how it says it.

::

    prompt  := frame clause ("and" clause)* ("and no" [colour] shape)?
    clause  := group | group relation group
    group   := count [colour] shape
    count   := a | an | one | two | three | four        (five and six are held out)

A prompt has 1 to 3 groups, 1 to 6 objects, at most one negation and at most one relation. The relation is always between the first two
groups, which makes the first clause. Counts are exact, a colour that is not named is free, and nothing else may be in the scene.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from pararl.scenes.words import NUMBERS, PLURALS, article, noun

Option = TypeVar("Option")

FRAMES: tuple[tuple[str, ...], ...] = ((), ("a", "picture", "of"), ("an", "image", "of"), ("a", "scene", "with"), ("draw",), ("show",))
"""Openings of ordinary prompts; the empty one has half of the weight."""
PARAPHRASE_RELATIONS: dict[str, tuple[str, ...]] = {
    "left of": ("to", "the", "left", "of"),
    "right of": ("to", "the", "right", "of"),
    "above": ("over",),
    "below": ("under",),
}


@dataclass(frozen=True, slots=True)
class Group:
    """``count`` objects of one shape and, unless None, of one colour."""

    shape: str
    colour: str | None
    count: int


@dataclass(frozen=True, slots=True)
class Description:
    """The meaning of a prompt. The selectors of its groups never overlap."""

    tag: str
    groups: tuple[Group, ...]
    relation: str | None = None
    """Holds between every object of the first group and every one of the second."""
    negation: tuple[str, str | None] | None = None
    """(shape, colour or None): none of these."""

    @property
    def objects(self) -> int:
        """How many objects the scene has."""
        return sum(group.count for group in self.groups)


@dataclass(slots=True)
class Wording:
    """The words of a prompt, and which of them say what (indices into ``words``)."""

    words: list[str] = field(default_factory=list)
    groups: list[dict[str, list[int]]] = field(default_factory=list)
    """Per group the places of ``count``, ``colour`` and ``shape``."""
    relation: list[int] = field(default_factory=list)
    negation: list[int] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The prompt."""
        return " ".join(self.words)

    def say(self, *words: str) -> list[int]:
        """Append words and return their places."""
        start = len(self.words)
        self.words.extend(words)
        return list(range(start, len(self.words)))

    def say_group(self, group: Group, count: str, trailing_colour: bool = False) -> None:
        """Append a group: ``two red circles``, or ``two circles that are red``."""
        thing = noun(group.shape, group.count)
        places = {"count": self.say(count)}
        if group.colour is None:
            places["shape"] = self.say(thing)
        elif trailing_colour:
            places["shape"] = self.say(thing)
            places["colour"] = self.say("that", "is" if group.count == 1 else "are", group.colour)[-1:]
        else:
            places["colour"] = self.say(group.colour)
            places["shape"] = self.say(thing)
        self.groups.append(places)


def pick(rng: random.Random, options: Sequence[Option]) -> Option:
    """One of the options, from one call of ``rng.random`` (whose stream Python keeps stable across versions)."""
    return options[int(rng.random() * len(options))]


def word(description: Description, rng: random.Random) -> Wording:
    """The ordinary wording of a description."""
    wording = Wording()
    wording.say(*(pick(rng, FRAMES[1:]) if rng.random() < 0.5 else ()))
    for i, group in enumerate(description.groups):
        if i:
            joint = wording.say(*(description.relation.split() if description.relation and i == 1 else ("and",)))
            wording.relation += joint if description.relation and i == 1 else []
        wording.say_group(group, _count_word(group, rng, one=0.25, leading=group.colour or group.shape))
    if description.negation:
        shape, colour = description.negation
        wording.say("and")
        wording.negation = wording.say("no", *((colour,) if colour else ()), PLURALS[shape] if rng.random() < 0.5 else shape)
    return wording


def paraphrase(description: Description, rng: random.Random) -> Wording:
    """A held-out wording: other frames, other relation phrases, other joints and negations, at times a trailing colour."""
    wording = Wording()
    frame = int(rng.random() * 4)
    if frame == 0:
        wording.say("there", "is" if description.groups[0].count == 1 else "are")
    else:
        wording.say(*((), ("the", "picture", "contains"), ("i", "see"), ())[frame])
    trailing = len(description.groups) < 3 and rng.random() < 0.3
    joint = pick(rng, (("together", "with"), ("as", "well", "as"), ("and",)))
    for i, group in enumerate(description.groups):
        if i == 1 and description.relation:
            wording.relation = wording.say(*PARAPHRASE_RELATIONS[description.relation])
        elif i:
            wording.say(*joint)
        wording.say_group(
            group, _count_word(group, rng, one=0.0, leading=group.shape if trailing else group.colour or group.shape), trailing
        )
    if description.negation:
        shape, colour = description.negation
        wording.negation = wording.say("without", "any", *((colour,) if colour else ()), PLURALS[shape])
    if frame == 3:
        wording.say("can", "be", "seen")
    return wording


def _count_word(group: Group, rng: random.Random, one: float, leading: str) -> str:
    """The number word; for one object ``one`` with that probability, else the article."""
    if group.count > 1:
        return NUMBERS[group.count]
    return "one" if rng.random() < one else article(leading)
