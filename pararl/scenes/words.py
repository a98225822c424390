"""The closed vocabulary: every word of prompts, plans, questions and edits, lower case, parted by single spaces."""

from pararl.scenes.world import CELL_NAMES, COLOURS, SHAPES

NUMBERS: tuple[str, ...] = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
"""Number words; the index is the number."""
MAX_WORDS = 28
"""Longest prompt, in words."""
PLURALS: dict[str, str] = {"circle": "circles", "square": "squares", "triangle": "triangles", "cross": "crosses"}

_OBJECTS = (*SHAPES, *PLURALS.values(), *COLOURS, "object", "objects", "shape", "shapes", "colour", "colours", "color", "colors")
_NUMBERS = (*NUMBERS, "zero", "eleven", "twelve", "sixteen", *(str(n) for n in range(17)))
_PROMPTS = """
a an the and of left right above below with without to that are is there picture image scene draw show contains can be seen as well
together but any not over under i see exactly only in it by has have which all each every some none other both
"""
_EDITS = """
add remove delete recolour repaint paint reshape move swap make turn into change replace put place keep create
number equal same more fewer less than plus minus sum difference times increase decrease how many much what where
who yes does do empty cell cells row column grid top bottom middle centre corner side next beside near between
from at on for then so if else first second third last its their them this these up down new old
after before edit plan caption describe answer question list count result equals moved added removed true false
lies lie most least larger smaller exchange instead also just scenes pictures text words say tell me you please
"""
"""For edits, questions, arithmetic and scene texts. Some are not used yet: a tokenizer keeps its ids when they come to be."""
_MARKS = (".", ",", ";", ":", "?", "!", "=", "+", "-", "(", ")", "/")

VOCABULARY: tuple[str, ...] = tuple(dict.fromkeys((*_MARKS, *CELL_NAMES, *_OBJECTS, *_NUMBERS, *_PROMPTS.split(), *_EDITS.split())))
"""Every word, once each, in a fixed order: a word's place may serve as its id. Special tokens belong to the tokenizer."""


def noun(shape: str, count: int) -> str:
    """``shape`` in the singular for a count of one, else in the plural (also for zero)."""
    return shape if count == 1 else PLURALS[shape]


def article(word: str) -> str:
    """``a`` or ``an``, as the following word asks."""
    return "an" if word[0] in "aeio" else "a"
