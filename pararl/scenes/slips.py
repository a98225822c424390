"""Slips: outputs that are nearly right, as a share of the pairs of any collected data set is."""

import numpy as np

from pararl.scenes.pixels import parse, render
from pararl.scenes.words import NUMBERS, PLURALS
from pararl.scenes.world import CELL_NAMES, COLOURS, EMPTY, KINDS, RELATIONS, SHAPES, Scene
from pararl.types import Output

_CLASSES: tuple[tuple[str, ...], ...] = (
    ("yes", "no"),
    ("zero", *NUMBERS),
    COLOURS,
    SHAPES,
    tuple(PLURALS.values()),
    CELL_NAMES,
    tuple(relation.split()[0] for relation in RELATIONS),
)
"""Words that may stand in for one another; ``no`` is an answer where it is all of the text, else a number."""


def slip(output: Output, rng: np.random.Generator) -> Output:
    """The output with one slip: another word of its class in the text, or another content in one cell of the image.

    An output of both has it in either, so that text and image disagree. Raises ValueError for an output without anything to change.
    """
    if output.image is not None and (output.text is None or rng.random() < 0.5):
        return Output(output.text, slip_image(output.image, rng))
    if output.text is None:
        raise ValueError("an output without text and image has nothing that could slip")
    return Output(slip_text(output.text, rng), output.image)


def slip_image(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The image uint8 [32, 32, 3] of a scene, with an object or, as often, an empty cell turned into anything else."""
    cells = parse(image).scene.cells.ravel().copy()
    taken = cells != EMPTY
    wanted = taken if taken.all() or (taken.any() and rng.random() < 0.5) else ~taken
    place = rng.choice(np.flatnonzero(wanted))
    cells[place] = rng.choice([value for value in range(EMPTY, KINDS) if value != cells[place]])
    return render(Scene.from_cells(cells.tolist()))


def slip_text(text: str, rng: np.random.Generator) -> str:
    """The text with one word exchanged for another of its class. Raises ValueError for a text that has no word of any class."""
    words = text.split()
    classes = [next((c for c in _CLASSES[len(words) > 1 :] if word in c), None) for word in words]
    places = [place for place, found in enumerate(classes) if found]
    if not places:
        raise ValueError(f"no word of {text!r} can be exchanged: none is a number, colour, shape, cell, relation or answer")
    place = rng.choice(places)
    words[place] = str(rng.choice([word for word in classes[place] or () if word != words[place]]))
    return " ".join(words)
