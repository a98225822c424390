"""The splits, each a pure function of (seed, split, index).

======== ====================================================================================================================
train    prompts for RL
id       the same distribution; a prompt belongs to ``id`` when a hash of its text says so (one text in five), else to ``train``
ood_pair names at least one of the four held-out pairs of shape and colour
ood_rel  uses the held-out relation, ``below``
ood_count asks for five or six of a kind
para     ordinary content in wordings that ``train`` and ``id`` never use
pretrain for pretraining: as train and id together, but 18 % of the prompts come from the four held-out kinds (4.5 % each), so that
         these are held out of RL, not unknown to the base
======== ====================================================================================================================

Scenes of train and id examples hold no held-out pair either, nor do free colours of pretraining make one.

This is the table for descriptions; ``edit_tasks``, ``picture_tasks`` and ``text_tasks`` say what these and ``ood_ops`` mean there.
"""

import hashlib
import random
from collections.abc import Callable

from pararl.scenes.describe import ALL_PAIRS, TAGS, Rules, describe, describe_many
from pararl.scenes.grammar import Description, Wording, paraphrase, word
from pararl.scenes.words import MAX_WORDS

SPLITS: tuple[str, ...] = ("train", "id", "ood_pair", "ood_rel", "ood_count", "para", "pretrain")
HELD_PAIRS: frozenset[tuple[str, str]] = frozenset(
    {("circle", "purple"), ("square", "yellow"), ("triangle", "blue"), ("cross", "red")},
)
"""One colour per shape, all different: every shape keeps five colours, every colour at least three shapes."""
HELD_RELATION = "below"
HELD_OUT_SHARE = 0.18
"""Share of pretraining prompts that come from the held-out kinds."""

_PAIRS = tuple(pair for pair in ALL_PAIRS if pair not in HELD_PAIRS)
_RELATIONS = ("left of", "right of", "above")
_ORDINARY = Rules(_PAIRS, _RELATIONS, TAGS)
# Sorted: the order of a set changes from process to process, and with it what a seed draws.
_PAIR_RULES = Rules(_PAIRS + 4 * tuple(sorted(HELD_PAIRS)), _RELATIONS, ("colors", "position", "color_attr", "negation", "complex"))
_RELATION_RULES = Rules(_PAIRS, (HELD_RELATION,), ("position", "complex"))
_OOD: tuple[str, ...] = ("ood_pair", "ood_rel", "ood_count", "para")

Draft = tuple[Description, Wording]


def random_stream(split: str, index: int, seed: int, family: str = "", known: tuple[str, ...] = SPLITS) -> random.Random:
    """The random stream of one example; every ``family`` of prompts beyond the first has its own.

    Raises ValueError for a split that is not ``known`` or a negative index.
    """
    if split not in known:
        raise ValueError(f"unknown split {split!r}: use one of {', '.join(known)}")
    if index < 0:
        raise ValueError(f"index must not be negative, got {index}")
    digest = hashlib.blake2b(f"{seed}/{split}/{index}{family and f'/{family}'}".encode(), digest_size=8).digest()
    return random.Random(int.from_bytes(digest))


def draft(split: str, rng: random.Random) -> Draft:
    """A description of the split and its wording, of at most 28 words. Draws again until both fit, which takes a few tries at most."""
    if split == "pretrain":
        # One number says whether and which: below the share it is uniform again.
        share = rng.random() / HELD_OUT_SHARE
        return draft(_OOD[int(share * len(_OOD))], rng) if share < 1 else _shorten(ordinary, rng)
    return _shorten(_DRAFTS[split], rng)


def is_id_text(text: str) -> bool:
    """Whether a prompt of the ordinary distribution belongs to ``id``; the others belong to ``train``."""
    return hashlib.blake2b(text.encode(), digest_size=2).digest()[0] < 51


def _shorten(make: Callable[[random.Random], Draft | None], rng: random.Random) -> Draft:
    while True:
        made = make(rng)
        if made is not None and len(made[1].words) <= MAX_WORDS:
            return made


def ordinary(rng: random.Random) -> Draft:
    """A draft of the distribution that train and id share, of any length."""
    description = describe(rng, _ORDINARY)
    return description, word(description, rng)


def _half(rng: random.Random, of_id: bool) -> Draft:
    """An ordinary draft of one side. The tag is kept over the tries, so that the side does not change how often it comes."""
    rules = Rules(_PAIRS, _RELATIONS, (TAGS[int(rng.random() * len(TAGS))],))
    while True:
        description = describe(rng, rules)
        wording = word(description, rng)
        if is_id_text(wording.text) == of_id:
            return description, wording


def _held_pair(rng: random.Random) -> Draft | None:
    description = describe(rng, _PAIR_RULES)
    if not any((group.shape, group.colour) in HELD_PAIRS for group in description.groups):
        return None
    return description, word(description, rng)


def _held_relation(rng: random.Random) -> Draft | None:
    description = describe(rng, _RELATION_RULES)
    return (description, word(description, rng)) if description.relation else None


def _many(rng: random.Random) -> Draft:
    description = describe_many(rng, _ORDINARY)
    return description, word(description, rng)


def _paraphrased(rng: random.Random) -> Draft:
    description = describe(rng, _ORDINARY)
    return description, paraphrase(description, rng)


_DRAFTS: dict[str, Callable[[random.Random], Draft | None]] = {
    "train": lambda rng: _half(rng, of_id=False),
    "id": lambda rng: _half(rng, of_id=True),
    "ood_pair": _held_pair,
    "ood_rel": _held_relation,
    "ood_count": _many,
    "para": _paraphrased,
}
