"""Sums and differences of counts, in words: ``two circles plus three circles equals how many circles ?`` -> ``five``."""

import random

from pararl.scenes.cases import Case
from pararl.scenes.grammar import pick
from pararl.scenes.words import NUMBERS, PLURALS, noun
from pararl.scenes.world import COLOURS, SHAPES

RESULTS: tuple[str, ...] = ("zero", *NUMBERS[1:])
"""The answers, zero .. ten, which come equally often."""


def draw_sum(rng: random.Random, result: int, paraphrased: bool = False) -> Case:
    """A sum or a difference with that result, of numbers, of objects (half of the time) or of objects with a colour."""
    if rng.random() < 0.5:
        first, sign = int(rng.random() * (result + 1)), "plus"
        second = result - first
    else:
        second, sign = int(rng.random() * (len(RESULTS) - result)), "minus"
        first = result + second
    shape = pick(rng, SHAPES) if rng.random() < 0.5 else None
    colour = f"{pick(rng, COLOURS)} " if shape and rng.random() < 0.5 else ""
    one, other = (f"{RESULTS[n]}{f' {colour}{noun(shape, n)}' if shape else ''}" for n in (first, second))
    many = f"how many {colour}{PLURALS[shape]}" if shape else "how many"
    if paraphrased:
        name = "sum" if sign == "plus" else "difference"
        options = (f"what is the {name} of {one} and {other} ?", f"{one} {'+' if sign == 'plus' else '-'} {other} = ?")
    else:
        options = (f"{one} {sign} {other} equals {many} ?", f"{many} are {one} {sign} {other} ?")
    text = pick(rng, options)
    return Case(text, {"tag": "arithmetic", "answer": RESULTS[result]}, text, answer=RESULTS[result])
