"""The prompts of task ``i2t``: half of them ask for a caption, half ask a question (all six kinds alike).

A caption belongs to ``train`` or ``id`` by its right answer, a question by its text. Held-out splits: ``ood_pair`` (pictures that hold
a held-out pair, questions that name one), ``ood_rel`` (questions with ``below``), ``ood_count`` (five or six alike), ``para`` (asked
otherwise).
"""

import random
from dataclasses import replace

from pararl.scenes.cases import Case, Family, Maker
from pararl.scenes.grammar import pick
from pararl.scenes.place import satisfy
from pararl.scenes.questions import QUESTION_KINDS, QuestionRules, ask, draw_answer
from pararl.scenes.sentences import caption
from pararl.scenes.splits import HELD_PAIRS, HELD_RELATION, Draft, draft, ordinary
from pararl.scenes.world import Scene

_ASKING: tuple[str, ...] = ("describe the picture", "describe the image", "what is in the picture ?")
_ASKING_OTHERWISE: tuple[str, ...] = ("tell me what you see", "say what can be seen", "what does the image show ?")
_PLAIN = QuestionRules()
_OTHERWISE = replace(_PLAIN, paraphrased=True)
_RELATED = replace(_PLAIN, relations=(HELD_RELATION,))
_MANY = replace(_PLAIN, counts=(5, 6))
_NAMED = replace(_PLAIN, asked=tuple(sorted(HELD_PAIRS)))


def _ordinary(rng: random.Random) -> Maker:
    if rng.random() < 0.5:
        return lambda rng: _caption(rng, ordinary(rng), _ASKING)
    return _question(rng, pick(rng, QUESTION_KINDS), _PLAIN)


def _held_pair(rng: random.Random) -> Maker:
    if rng.random() < 0.5:
        return lambda rng: _caption(rng, draft("ood_pair", rng), _ASKING)
    return _question(rng, pick(rng, ("count", "exist", "relation", "compare")), _NAMED)


def _held_count(rng: random.Random) -> Maker:
    def describe_many(rng: random.Random) -> Case | None:
        case = _caption(rng, draft("ood_count", rng), _ASKING)
        # Free colours may part the objects into groups that the caption counts one by one.
        return case if {"five", "six"} & set(case.answer.split()) else None

    return describe_many if rng.random() < 0.5 else _question(rng, "count", _MANY)


def _paraphrased(rng: random.Random) -> Maker:
    if rng.random() < 0.5:
        return lambda rng: _caption(rng, ordinary(rng), _ASKING_OTHERWISE)
    return _question(rng, pick(rng, QUESTION_KINDS), _OTHERWISE)


def _caption(rng: random.Random, drafted: Draft, asking: tuple[str, ...]) -> Case:
    """A picture of which the drafted description is true, to be described."""
    return caption_case(satisfy(drafted[0], rng, HELD_PAIRS), rng, asking)


def caption_case(scene: Scene, rng: random.Random, asking: tuple[str, ...] = _ASKING) -> Case:
    """The picture of a scene, to be described."""
    answer = caption(scene)
    return Case(pick(rng, asking), {"tag": "caption", "source": scene.cells.ravel().tolist()}, answer, scene, answer)


def _question(rng: random.Random, kind: str, rules: QuestionRules) -> Maker:
    """Makes questions of that kind, all with one answer that is drawn here: no try that fails can favour an answer."""
    answer = draw_answer(rng, kind, rules)

    def make(rng: random.Random) -> Case | None:
        asked = ask(rng, kind, answer, rules)
        if asked is None:
            return None
        scene = Scene.from_cells(asked.cells)
        return Case(asked.text, {"tag": f"vqa_{kind}", "source": asked.cells, "answer": answer}, asked.text, scene, answer)

    return make


PICTURE_QUESTIONS = Family(
    _ordinary,
    {
        "ood_pair": _held_pair,
        "ood_rel": lambda rng: _question(rng, "relation", _RELATED),
        "ood_count": _held_count,
        "para": _paraphrased,
    },
)
