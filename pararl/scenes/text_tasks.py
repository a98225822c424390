"""The prompts of task ``t2t``: edits of scenes in words, sums of counts and rewordings, a third each.

All belong to ``train`` or ``id`` by their instruction, question or text. Held-out splits:

- ``ood_pair`` and ``ood_rel``: edits and rewordings that name a held-out pair, or use ``below``;
- ``ood_count``: edits to five of a kind, rewordings with five or six;
- ``ood_ops``: two edits;
- ``para``: all three, worded otherwise.
"""

import random

from pararl.scenes.arithmetic import RESULTS, draw_sum
from pararl.scenes.cases import Family, Maker, Plan
from pararl.scenes.edit_tasks import IN_WORDS, PLANNED_IN_WORDS, EditTask
from pararl.scenes.rewording import draw_rewording
from pararl.scenes.splits import draft, ordinary


def _texts(edits: EditTask, pretrain: Family | None = None) -> Family:
    """The family with these edits, its split ``pretrain`` drawn from another one where there is one."""

    def usual(rng: random.Random) -> Maker:
        return _third(rng, edits.ordinary, lambda rng: draw_rewording(rng, ordinary(rng)))

    def paraphrased(rng: random.Random) -> Maker:
        return _third(rng, edits.paraphrased, lambda rng: draw_rewording(rng, draft("para", rng), paraphrased=True), paraphrased=True)

    held = {
        "ood_pair": _or_reworded(edits.held_pair, "ood_pair"),
        "ood_rel": _or_reworded(edits.held_relation, "ood_rel"),
        "ood_count": _or_reworded(edits.held_count, "ood_count"),
        "ood_ops": edits.two,
        "para": paraphrased,
    }
    return Family(usual, held, pretrain)


def _third(rng: random.Random, edits: Plan, reword: Maker, paraphrased: bool = False) -> Maker:
    """An edit, a sum or a rewording, a third each."""
    share = rng.random()
    if share < 1 / 3:
        return edits(rng)
    if share < 2 / 3:
        result = int(rng.random() * len(RESULTS))
        return lambda rng: draw_sum(rng, result, paraphrased=paraphrased)
    return reword


def _or_reworded(edits: Plan, split: str) -> Plan:
    """Plans edits, and rewordings of prompts of that split, half each."""
    return lambda rng: edits(rng) if rng.random() < 0.5 else lambda rng: draw_rewording(rng, draft(split, rng))


TEXTS = _texts(PLANNED_IN_WORDS, pretrain=_texts(IN_WORDS))
