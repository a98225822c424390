"""Questions about a picture, with balanced answers.

The answer is drawn first, uniformly, and the question apart from it; then a scene in which the answer is right. The answers of a kind are
therefore equally frequent, also given the wording, and for yes and no and counts also given the whole question.

======== ============================================== ========================
kind     question                                       answers
======== ============================================== ========================
count    how many red circles are there ?               zero .. four
exist    is there a red circle ?                        yes, no
colour   what colour is the circle ?                    the six colours
shape    what shape is the red object ?                 the four shapes
relation is the red circle left of the blue square ?    yes, no
compare  are there more circles than squares ?          yes, no
======== ============================================== ========================
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from pararl.scenes.describe import ALL_PAIRS, MAX_OBJECTS
from pararl.scenes.grammar import PARAPHRASE_RELATIONS, pick
from pararl.scenes.place import draw
from pararl.scenes.selectors import Selector, overlap
from pararl.scenes.splits import HELD_PAIRS
from pararl.scenes.world import CELL_NAMES, CELL_RELATIONS, CELLS, COLOURS, EMPTY, SHAPES, kind

Pair = tuple[str, str]
YES_NO: tuple[str, ...] = ("yes", "no")
COUNTS: tuple[str, ...] = ("zero", "one", "two", "three", "four", "five", "six")
_COMPARISONS: tuple[str, ...] = ("more", "fewer", "as many")


@dataclass(frozen=True, slots=True)
class QuestionRules:
    """What random questions may use."""

    pairs: tuple[Pair, ...] = tuple(pair for pair in ALL_PAIRS if pair not in HELD_PAIRS)
    """(shape, colour) of the objects that are there or asked for."""
    asked: tuple[Pair, ...] | None = None
    """Pairs of which a question names one; None = it may name shapes or colours alone."""
    relations: tuple[str, ...] = ("left of", "right of", "above")
    counts: tuple[int, ...] = (0, 1, 2, 3, 4)
    paraphrased: bool = False


@dataclass(frozen=True, slots=True)
class Question:
    """A question, its answer, and the 16 cells of a scene in which it is right."""

    text: str
    answer: str
    cells: list[int]


def draw_answer(rng: random.Random, name: str, rules: QuestionRules) -> str:
    """An answer to a question of that kind, uniformly."""
    return pick(rng, {"count": [COUNTS[n] for n in rules.counts], "colour": COLOURS, "shape": SHAPES}.get(name, YES_NO))


def ask(rng: random.Random, name: str, answer: str, rules: QuestionRules) -> Question | None:
    """One try at a question of that kind with that answer; None when it would name one object twice, whatever the answer."""
    return _KINDS[name](rng, answer, rules)


def _count(rng: random.Random, answer: str, rules: QuestionRules) -> Question:
    number = COUNTS.index(answer)
    things = _things(rng, rules)
    text = _say(
        rng,
        rules,
        (f"how many {things.all()} are there ?", f"how many {things.all()} are in the picture ?"),
        (f"what is the number of {things.all()} ?", f"tell me how many {things.all()} you see"),
    )
    others = _others(rng, rules, (things,), MAX_OBJECTS - number, least=0 if number else 1)
    return Question(text, answer, _scatter(_some(rng, rules, things, number) + others, rng))


def _exist(rng: random.Random, answer: str, rules: QuestionRules) -> Question:
    thing = _things(rng, rules)
    text = _say(
        rng,
        rules,
        (f"is there {thing.one()} ?", f"is there {thing.one()} in the picture ?"),
        (f"can {thing.one()} be seen ?", f"do you see {thing.one()} ?"),
    )
    number = 1 + int(rng.random() * 2) if answer == "yes" else 0
    others = _others(rng, rules, (thing,), MAX_OBJECTS - 1 - number, least=1)
    return Question(text, answer, _scatter(_some(rng, rules, thing, number) + others, rng))


def _colour(rng: random.Random, answer: str, rules: QuestionRules) -> Question:
    shape = pick(rng, [shape for shape, colour in rules.pairs if colour == answer])
    return _attribute(rng, rules, answer, Selector(shape), (shape, answer), "colour")


def _shape(rng: random.Random, answer: str, rules: QuestionRules) -> Question:
    colour = pick(rng, [colour for shape, colour in rules.pairs if shape == answer])
    return _attribute(rng, rules, answer, Selector(None, colour), (answer, colour), "shape")


def _attribute(rng: random.Random, rules: QuestionRules, answer: str, selector: Selector, pair: Pair, attribute: str) -> Question:
    """A question for an attribute of one object, which the question names by its other attribute or by its cell."""
    by_cell = rng.random() < 0.5
    # Named by its cell, an object may have others like it.
    others = _others(rng, rules, () if by_cell else (selector,), MAX_OBJECTS - 1, least=1)
    cells = _scatter([_kind(*pair), *others], rng)
    if by_cell:
        selector = Selector(cell=CELL_NAMES[pick(rng, [place for place, value in enumerate(cells) if value == _kind(*pair)])])
    the = selector.the()
    text = _say(
        rng,
        rules,
        (f"what {attribute} is {the} ?", f"what is the {attribute} of {the} ?"),
        (f"which {attribute} does {the} have ?", f"tell me the {attribute} of {the}"),
    )
    return Question(text, answer, cells)


def _relation(rng: random.Random, answer: str, rules: QuestionRules) -> Question | None:
    relation = pick(rng, rules.relations)
    one, other = _things(rng, rules), _things(rng, replace(rules, asked=None))
    if rng.random() < 0.5:
        one, other = other, one
    if overlap(one, other):
        return None
    holds = CELL_RELATIONS[relation]
    pairs = [(a, b) for a in range(CELLS) for b in range(CELLS) if a != b and holds[a][b] == (answer == "yes")]
    first, second = pick(rng, pairs)
    others = _others(rng, rules, (one, other), MAX_OBJECTS - 2, least=0)
    cells = [EMPTY] * CELLS
    cells[first], cells[second] = _some(rng, rules, one, 1)[0], _some(rng, rules, other, 1)[0]
    free = [place for place in range(CELLS) if place not in (first, second)]
    for value, place in zip(others, draw(free, len(others), rng), strict=True):
        cells[place] = value
    otherwise = " ".join(PARAPHRASE_RELATIONS[relation])
    text = _say(
        rng,
        rules,
        (f"is {one.the()} {relation} {other.the()} ?", f"does {one.the()} lie {relation} {other.the()} ?"),
        (f"is {one.the()} {otherwise} {other.the()} ?", f"do you see {one.the()} {otherwise} {other.the()} ?"),
    )
    return Question(text, answer, cells)


def _compare(rng: random.Random, answer: str, rules: QuestionRules) -> Question | None:
    comparison = pick(rng, _COMPARISONS)
    one, other = _things(rng, rules, plain=0.7), _things(rng, replace(rules, asked=None), plain=0.7)
    if rng.random() < 0.5:
        one, other = other, one
    if overlap(one, other):
        return None
    numbers = [(a, b) for a in range(4) for b in range(4) if a + b and _compares(comparison, a, b) == (answer == "yes")]
    first, second = pick(rng, numbers)
    others = _others(rng, rules, (one, other), min(2, MAX_OBJECTS - first - second), least=0)
    cells = _scatter(_some(rng, rules, one, first) + _some(rng, rules, other, second) + others, rng)
    a, b = one.all(), other.all()
    word = {"more": "larger than", "fewer": "smaller than", "as many": "equal to"}[comparison]
    than = f"as many {a} as {b}" if comparison == "as many" else f"{comparison} {a} than {b}"
    text = _say(
        rng,
        rules,
        (f"are there {than} ?", f"is the number of {a} {word} the number of {b} ?"),
        (f"do you see {than} ?", f"does the picture have {than} ?"),
    )
    return Question(text, answer, cells)


def _compares(comparison: str, first: int, second: int) -> bool:
    return {"more": first > second, "fewer": first < second, "as many": first == second}[comparison]


def _say(rng: random.Random, rules: QuestionRules, ordinary: tuple[str, ...], otherwise: tuple[str, ...]) -> str:
    return pick(rng, otherwise if rules.paraphrased else ordinary)


def _things(rng: random.Random, rules: QuestionRules, plain: float = 0.3) -> Selector:
    """What a question names: a shape alone with probability ``plain``, else shape and colour."""
    if rules.asked is not None:
        return Selector(*pick(rng, rules.asked))
    shape, colour = pick(rng, rules.pairs)
    return Selector(shape, None if rng.random() < plain else colour)


def _some(rng: random.Random, rules: QuestionRules, selector: Selector, number: int) -> list[int]:
    """Random objects that the selector means."""
    options = [_kind(*pair) for pair in {*rules.pairs, *(rules.asked or ())} if selector.admits(_kind(*pair))]
    # Sorted: the order of a set changes from process to process.
    return [pick(rng, sorted(options)) for _ in range(number)]


def _others(rng: random.Random, rules: QuestionRules, named: tuple[Selector, ...], most: int, least: int) -> list[int]:
    """``least`` to ``most`` objects (at most four) that none of the selectors means."""
    options = [value for value in (_kind(*pair) for pair in rules.pairs) if not any(selector.admits(value) for selector in named)]
    return [pick(rng, options) for _ in range(least + int(rng.random() * (min(most, 4) - least + 1)))]


def _kind(shape: str, colour: str) -> int:
    return kind(SHAPES.index(shape), COLOURS.index(colour))


def _scatter(kinds: list[int], rng: random.Random) -> list[int]:
    cells = [EMPTY] * CELLS
    for value, place in zip(kinds, draw(list(range(CELLS)), len(kinds), rng), strict=True):
        cells[place] = value
    return cells


_KINDS: dict[str, Callable[[random.Random, str, QuestionRules], Question | None]] = {
    "count": _count,
    "exist": _exist,
    "colour": _colour,
    "shape": _shape,
    "relation": _relation,
    "compare": _compare,
}
QUESTION_KINDS: tuple[str, ...] = tuple(_KINDS)
