"""The prompts that ask for edits: of pictures (``edit``, ``interleaved`` with an input image) and of scenes in words (in ``t2t``).

An instruction belongs to ``train`` or ``id`` by its text. Held-out splits:

- ``ood_pair``: it names, makes or moves a held-out pair;
- ``ood_rel``: it says ``below``;
- ``ood_count``: five or six of a kind;
- ``ood_ops``: two edits in one instruction;
- ``para``: other wordings.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pararl.scenes.cases import Case, Family, Maker
from pararl.scenes.changes import apply, change, write_edits
from pararl.scenes.draw_edits import EditRules, draw_edit, draw_two
from pararl.scenes.edits import OPERATIONS, Edit
from pararl.scenes.grammar import pick
from pararl.scenes.instructions import compound, instruction
from pararl.scenes.plans import plan_text
from pararl.scenes.splits import HELD_PAIRS, HELD_RELATION
from pararl.scenes.world import COLOURS, SHAPES, Scene, kind

TWO = "two_edits"
"""Tag of an instruction with two operations; others have their operation as tag."""
_HELD_KINDS = frozenset(kind(SHAPES.index(shape), COLOURS.index(colour)) for shape, colour in HELD_PAIRS)


@dataclass(frozen=True, slots=True)
class EditTask:
    """Edits of pictures or, ``in_words``, of scenes in words."""

    rules: EditRules
    in_words: bool

    def ordinary(self, rng: random.Random) -> Maker:
        """Plans ``train``, ``id`` and most of ``pretrain``."""
        return self._one(pick(rng, OPERATIONS), self.rules)

    def held_pair(self, rng: random.Random) -> Maker:
        """Plans ``ood_pair``."""
        rules = replace(self.rules, pairs=self.rules.pairs + 4 * tuple(sorted(HELD_PAIRS)))
        return self._one(pick(rng, OPERATIONS), rules, names_held=True)

    def held_relation(self, rng: random.Random) -> Maker:
        """Plans ``ood_rel``."""
        return self._one(pick(rng, ("add", "move")), replace(self.rules, relations=(HELD_RELATION,), places=("relation",)))

    def held_count(self, rng: random.Random) -> Maker:
        """Plans ``ood_count``."""
        counts = tuple(count for count in (5, 6) if count <= self.rules.most_after)
        return self._one("count", replace(self.rules, counts=counts))

    def two(self, rng: random.Random) -> Maker:
        """Plans ``ood_ops``."""

        def make(rng: random.Random) -> Case | None:
            drawn = draw_two(rng, self.rules)
            return None if drawn is None else self._case(rng, *drawn, compound(drawn[0], rng))

        return make

    def paraphrased(self, rng: random.Random) -> Maker:
        """Plans ``para``."""
        return self._one(pick(rng, OPERATIONS), self.rules, paraphrased=True)

    def _one(self, operation: str, rules: EditRules, paraphrased: bool = False, names_held: bool = False) -> Maker:
        """Makes cases of one edit; ``names_held``: only those that a held-out pair has a part in."""

        def make(rng: random.Random) -> Case | None:
            drawn = draw_edit(rng, operation, rules)
            if drawn is None or (names_held and not names_held_pair(*drawn)):
                return None
            edit, cells = drawn
            return self._case(rng, [edit], cells, instruction(edit, rng, paraphrased))

        return make

    def _case(self, rng: random.Random, edits: Sequence[Edit], cells: list[int], words: list[str]) -> Case:
        source, said = Scene.from_cells(cells), " ".join(words)
        result = apply(edits, source, rng, HELD_PAIRS)
        if self.in_words:
            return Case(f"{plan_text(source)} {said}", write_edits(edits, source, "scene_edit"), said, result, plan_text(result))
        return Case(said, write_edits(edits, source, edits[0].operation if len(edits) == 1 else TWO), said, result)


def names_held_pair(edit: Edit, cells: list[int]) -> bool:
    """Whether an instruction names a held-out pair of shape and colour, or makes, alters or moves an object of one."""
    if {edit.subject.pair, edit.other.pair if edit.other else None} & HELD_PAIRS:
        return True
    made = change(edit, cells)
    # A free colour never makes a held-out pair (``apply``), so its kinds do not count.
    free_colour = made.fill is not None and len(made.fill.kinds) > 1
    return not free_colour and not _HELD_KINDS.isdisjoint(made.makes)


PICTURES = EditTask(EditRules(), in_words=False)
IN_WORDS = EditTask(EditRules(most_before=4, most_after=5), in_words=True)
"""A plan of four objects takes 16 of a prompt's 28 words, one of five 20 of an answer's 23."""
PLANNED = EditTask(EditRules(most_before=3), in_words=False)
PLANNED_IN_WORDS = EditTask(EditRules(most_before=3, most_after=5), in_words=True)
"""Edits that are answered with a plan. A plan names every object of the scene, and one misread word fails it, so their scenes are smaller
than those a policy learns from."""


def _pictures(task: EditTask, pretrain: Family | None = None) -> Family:
    held = {
        "ood_pair": task.held_pair,
        "ood_rel": task.held_relation,
        "ood_count": task.held_count,
        "ood_ops": task.two,
        "para": task.paraphrased,
    }
    return Family(task.ordinary, held, pretrain)


PICTURE_EDITS = _pictures(PICTURES)
"""Of task ``edit``."""
PLANNED_EDITS = _pictures(PLANNED, pretrain=PICTURE_EDITS)
"""Of task ``interleaved``. A policy learns them from scenes of any size, those of ``edit``."""
