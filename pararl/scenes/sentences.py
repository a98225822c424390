"""Sentences of the prompt grammar: reading what they say, and writing what a scene holds."""

from collections import Counter
from collections.abc import Sequence

from pararl.scenes.grammar import FRAMES, PARAPHRASE_RELATIONS, Description, Group
from pararl.scenes.selectors import Selector
from pararl.scenes.words import NUMBERS, PLURALS
from pararl.scenes.world import COLOURS, EMPTY, RELATIONS, SHAPES, Scene

_FRAMES = sorted([*FRAMES[1:], ("there", "is"), ("there", "are"), ("the", "picture", "contains"), ("i", "see")], key=len, reverse=True)
_ENDING = ("can", "be", "seen")
_COUNTS = {"a": 1, "an": 1} | {word: number for number, word in enumerate(NUMBERS) if number}
_SINGULAR = {shape: shape for shape in SHAPES}
_PLURAL = {plural: shape for shape, plural in PLURALS.items()}
_RELATIONS = {tuple(relation.split()): relation for relation in RELATIONS} | {words: name for name, words in PARAPHRASE_RELATIONS.items()}
_JOINTS = (("and",), ("together", "with"), ("as", "well", "as"))
_NEGATIONS = (("and", "no"), ("without", "any"))


class _Reader:
    """The words of a sentence, and how far they have been read."""

    def __init__(self, text: str) -> None:
        self.words = text.split()
        self.at = 0

    def take(self, phrase: Sequence[str]) -> bool:
        """Step over the phrase if it comes next."""
        found = tuple(self.words[self.at : self.at + len(phrase)]) == tuple(phrase)
        self.at += len(phrase) if found else 0
        return found

    def take_any(self, phrases: Sequence[Sequence[str]]) -> bool:
        return any(self.take(phrase) for phrase in phrases)

    def next(self) -> str:
        """Step over a word; the empty string after the last."""
        self.at += 1
        return self.words[self.at - 1] if self.at <= len(self.words) else ""

    def peek(self) -> str:
        return self.words[self.at] if self.at < len(self.words) else ""


def parse_caption(text: str) -> Description | None:
    """What a sentence of the prompt grammar says, in ordinary or held-out wording, or None when it is none. Never raises.

    It may have any number of groups, whose selectors may overlap. Number and noun must agree; ``a`` and ``an`` are not told apart.
    """
    reader = _Reader(text)
    reader.take_any(_FRAMES)
    group = _read_group(reader)
    if group is None:
        return None
    groups, relation, negation = [group], None, None
    for words, name in _RELATIONS.items():
        if reader.take(words):
            relation = name
            break
    expects_group = relation is not None
    while expects_group or reader.peek():
        if not expects_group:
            if reader.take(_ENDING):
                break
            if reader.take_any(_NEGATIONS):
                negation = _read_negation(reader)
                if negation is None:
                    return None
                reader.take(_ENDING)
                break
            if not reader.take_any(_JOINTS):
                return None
        group = _read_group(reader)
        if group is None:
            return None
        groups.append(group)
        expects_group = False
    if reader.peek():
        return None
    return Description("caption", tuple(groups), relation, negation)


def _read_group(reader: _Reader) -> Group | None:
    count = _COUNTS.get(reader.next())
    if count is None:
        return None
    colour = reader.next() if reader.peek() in COLOURS else None
    shape = (_SINGULAR if count == 1 else _PLURAL).get(reader.next())
    if shape is None:
        return None
    if colour is None and reader.take(("that", "is" if count == 1 else "are")):
        colour = reader.next()
        if colour not in COLOURS:
            return None
    return Group(shape, colour, count)


def _read_negation(reader: _Reader) -> tuple[str, str | None] | None:
    colour = reader.next() if reader.peek() in COLOURS else None
    shape = (_SINGULAR | _PLURAL).get(reader.next())
    return None if shape is None else (shape, colour)


def caption(scene: Scene) -> str:
    """The scene's objects as a sentence: groups of equal objects in the order of their first cells. At most 23 words for six objects."""
    counts = Counter(value for value in scene.cells.ravel().tolist() if value != EMPTY)
    groups = [(Selector(SHAPES[value // len(COLOURS)], COLOURS[value % len(COLOURS)]), count) for value, count in counts.items()]
    return " and ".join(selector.one() if count == 1 else selector.several(count) for selector, count in groups)
