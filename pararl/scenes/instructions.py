"""How an edit is said: ordinary wordings, and those held out for the split ``para``, which share no phrase with them."""

import random
from collections.abc import Callable, Sequence

from pararl.scenes.edits import Edit
from pararl.scenes.grammar import PARAPHRASE_RELATIONS, pick
from pararl.scenes.selectors import Selector
from pararl.scenes.words import NUMBERS, article

JOINTS: tuple[str, ...] = ("and", "then")
"""Between the two edits of one instruction."""


def instruction(edit: Edit, rng: random.Random, paraphrased: bool = False) -> list[str]:
    """The words of an edit, in one of its ordinary wordings or, ``paraphrased``, in one of the held-out ones."""
    return pick(rng, (_PARAPHRASES if paraphrased else _ORDINARY)[edit.operation](edit)).split()


def compound(edits: Sequence[Edit], rng: random.Random) -> list[str]:
    """The words of one edit, or of two in ordinary wordings joined by ``and`` or ``then``."""
    words = instruction(edits[0], rng)
    for edit in edits[1:]:
        words += [pick(rng, JOINTS), *instruction(edit, rng)]
    return words


def statement(edit: Edit) -> str:
    """The edit in its first ordinary wording, as atoms name it."""
    return _ORDINARY[edit.operation](edit)[0]


def _other(edit: Edit) -> Selector:
    return edit.other or edit.subject


def _number(count: int | None) -> str:
    return NUMBERS[count] if count else "zero"


def _add(edit: Edit) -> tuple[str, ...]:
    thing, place = edit.subject.one(), _location(edit)
    return f"add {thing}{place}", f"put {thing}{place or ' in an empty cell'}"


def _location(edit: Edit) -> str:
    if edit.relation:
        return f" {edit.relation} {_other(edit).the()}"
    return f" in {edit.cell}" if edit.cell else ""


def _remove(edit: Edit) -> tuple[str, ...]:
    thing = edit.subject.one() if edit.any_one else edit.subject.the()
    return f"remove {thing}", f"delete {thing}"


def _recolour(edit: Edit) -> tuple[str, ...]:
    thing = edit.subject.the()
    return f"make {thing} {edit.colour}", f"recolour {thing} {edit.colour}", f"change the colour of {thing} to {edit.colour}"


def _reshape(edit: Edit) -> tuple[str, ...]:
    thing, shape = edit.subject.the(), edit.shape or ""
    return f"turn {thing} into a {shape}", f"reshape {thing} into a {shape}", f"change the shape of {thing} to {shape}"


def _move(edit: Edit) -> tuple[str, ...]:
    thing = edit.subject.the()
    if edit.relation:
        return f"move {thing}{_location(edit)}", f"put {thing}{_location(edit)}"
    return f"move {thing} to {edit.cell}", f"put {thing} in {edit.cell}"


def _swap(edit: Edit) -> tuple[str, ...]:
    one, other = edit.subject.the(), _other(edit).the()
    return f"swap {one} and {other}", f"swap {one} with {other}"


def _count(edit: Edit) -> tuple[str, ...]:
    things = edit.subject.all()
    if edit.other:
        others = edit.other.all()
        return f"make the number of {things} equal to the number of {others}", f"change the number of {things} to the number of {others}"
    return f"make the number of {things} {_number(edit.count)}", f"change the number of {things} to {_number(edit.count)}"


def _add_otherwise(edit: Edit) -> tuple[str, ...]:
    thing, place = edit.subject.one(), _location_otherwise(edit)
    return f"place {thing} {place or 'in an empty cell'}", f"create {thing}{f' {place}' if place else ''}"


def _location_otherwise(edit: Edit) -> str:
    if edit.relation:
        return f"{' '.join(PARAPHRASE_RELATIONS[edit.relation])} {_other(edit).the()}"
    return f"at {edit.cell}" if edit.cell else ""


def _remove_otherwise(edit: Edit) -> tuple[str, ...]:
    if edit.any_one:
        return f"keep all but {edit.subject.several(1)}", f"decrease the number of {edit.subject.all()} by one"
    return f"keep all but {edit.subject.the()}", f"show the picture without {edit.subject.the()}"


def _recolour_otherwise(edit: Edit) -> tuple[str, ...]:
    thing = edit.subject.the()
    return f"paint {thing} {edit.colour}", f"repaint {thing} {edit.colour}", f"{thing} is {edit.colour} after the edit"


def _reshape_otherwise(edit: Edit) -> tuple[str, ...]:
    thing, shape = edit.subject.the(), edit.shape or ""
    return f"replace {thing} with {article(shape)} {shape} of the same colour", f"{thing} is {article(shape)} {shape} after the edit"


def _move_otherwise(edit: Edit) -> tuple[str, ...]:
    thing, place = edit.subject.the(), _location_otherwise(edit)
    return f"place {thing} {place}", f"{thing} is {place} after the edit"


def _swap_otherwise(edit: Edit) -> tuple[str, ...]:
    one, other = edit.subject.the(), _other(edit).the()
    return f"exchange {one} and {other}", f"put {one} in the place of {other} and {other} in the place of {one}"


def _count_otherwise(edit: Edit) -> tuple[str, ...]:
    things = edit.subject.all()
    if edit.other:
        others = edit.other.all()
        return f"make as many {things} as there are {others}", f"make the number of {things} the same as the number of {others}"
    count = edit.count or 0
    return (
        f"there {'is' if count == 1 else 'are'} {edit.subject.several(count)} after the edit",
        f"the new number of {things} is {_number(count)}",
    )


Wordings = Callable[[Edit], tuple[str, ...]]
_ORDINARY: dict[str, Wordings] = {
    "add": _add,
    "remove": _remove,
    "recolour": _recolour,
    "reshape": _reshape,
    "move": _move,
    "swap": _swap,
    "count": _count,
}
_PARAPHRASES: dict[str, Wordings] = {
    "add": _add_otherwise,
    "remove": _remove_otherwise,
    "recolour": _recolour_otherwise,
    "reshape": _reshape_otherwise,
    "move": _move_otherwise,
    "swap": _swap_otherwise,
    "count": _count_otherwise,
}
