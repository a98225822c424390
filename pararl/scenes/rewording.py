"""The same in other words: ``say in other words : two red circles left of a blue square`` -> ``a blue square right of two red circles``."""

import random
from collections import Counter
from collections.abc import Mapping
from typing import Any

from pararl.scenes.cases import Case
from pararl.scenes.grammar import Description, pick, word
from pararl.scenes.sentences import parse_caption
from pararl.scenes.splits import HELD_RELATION, Draft
from pararl.types import Atom, Score

_INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
_ASKING: tuple[str, ...] = ("say in other words :", "say the same in other words :")
_ASKING_OTHERWISE: tuple[str, ...] = ("tell me the same with new words :", "change the words :")


def draw_rewording(rng: random.Random, drafted: Draft, paraphrased: bool = False) -> Case:
    """A prompt's text to be said in other words; ``paraphrased``: asked for in held-out words.

    The answer is an ordinary wording: another opening, ``one`` for ``a``, and the groups the other way round where that is possible.
    """
    description, wording = drafted
    asking = pick(rng, _ASKING_OTHERWISE if paraphrased else _ASKING)
    answer = wording.text
    # An ordinary wording may come out as the text that is given, which is worth nothing.
    while answer == wording.text:
        answer = word(_turned(description) if rng.random() < 0.5 else description, rng).text
    text = f"{asking} {wording.text}"
    return Case(text, {"tag": "paraphrase", "text": wording.text}, wording.text, answer=answer)


def _turned(description: Description) -> Description:
    """The same with the groups in another order; a relation that would become the held-out one stays."""
    groups, relation = description.groups, description.relation
    if relation is None:
        return Description(description.tag, groups[::-1], None, description.negation)
    if _INVERSE[relation] == HELD_RELATION:
        return description
    return Description(description.tag, (groups[1], groups[0], *groups[2:]), _INVERSE[relation], description.negation)


def read_text(spec: Mapping[str, Any]) -> tuple[str, Description]:
    """The text that a paraphrase spec gives, and what it says. Raises ValueError when it is no sentence of the grammar."""
    text = spec.get("text")
    description = parse_caption(text) if isinstance(text, str) else None
    if not isinstance(text, str) or description is None:
        raise ValueError(f"spec text: a sentence of the grammar is needed, got {text!r}")
    return text, description


def facts(description: Description) -> Counter[tuple[str | None, ...]]:
    """What a sentence says, however it is said: its objects one by one, their colours, its relation and its negation.

    Two sentences mean the same exactly when their facts are equal. ``right of`` and ``below`` are taken as what they say of the other side.
    """
    found: Counter[tuple[str | None, ...]] = Counter()
    for group in description.groups:
        found["object", group.shape] += group.count
        if group.colour:
            found["colour", group.shape, group.colour] += group.count
    if description.relation:
        first, second = ((group.shape, group.colour) for group in description.groups[:2])
        relation = description.relation
        if relation in ("right of", "below"):
            first, second, relation = second, first, _INVERSE[relation]
        found["relation", *first, relation, *second] += 1
    if description.negation:
        found["no", *description.negation] += 1
    return found


def check_rewording(spec: Mapping[str, Any], answer: str) -> Score:
    """The score of a text that should say what the spec's text says, in other words.

    Soft: the square of the F1 of the facts, but 0 for a text that cannot be read or repeats the given words. Squared, because F1 itself
    pays .57 for naming one of two objects: a policy learnt to say "one red square" to everything. Raises ValueError for a malformed spec.
    """
    text, description = read_text(spec)
    said = parse_caption(answer)
    if said is None:
        return Score(0.0, False, (Atom("the text is a sentence of the grammar", "validity", False, f"cannot read {answer!r}"),))
    wanted, found = facts(description), facts(said)
    new = answer.split() != text.split()
    missing, added = wanted - found, found - wanted
    reason = "; ".join(f"{label} {_list(part)}" for label, part in (("missing", missing), ("not asked for", added)) if part)
    atoms = (
        Atom("the text is a sentence of the grammar", "validity", True),
        Atom("it says the same", "meaning", not reason, reason),
        Atom("it uses other words", "wording", new, "" if new else "the words are those given"),
    )
    value = (2 * (wanted & found).total() / (wanted.total() + found.total())) ** 2 if new else 0.0
    return Score(value, not reason and new, atoms)


def _list(part: Counter[tuple[str | None, ...]]) -> str:
    return ", ".join(" ".join(word for word in fact if word) + (f" x {count}" if count > 1 else "") for fact, count in part.items())
