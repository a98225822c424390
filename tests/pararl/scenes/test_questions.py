"""Answers are those a reader of the question finds in the picture, and no blind guess does better than chance."""

import collections
import itertools
import re
from typing import Any

import pytest

from pararl import scenes
from pararl.scenes.questions import QUESTION_KINDS
from pararl.scenes.world import CELL_NAMES, COLOURS, SHAPES
from pararl.types import Output, Prompt
from tests.wording import telling

COUNT = 6000
SIDES = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1), "over": (0, -1), "under": (0, 1)}
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
Thing = tuple[str, str, int, int]


@pytest.fixture(scope="module")
def asked() -> dict[str, list[Prompt]]:
    drawn = {split: [scenes.prompt(split, index, task="i2t") for index in range(COUNT)] for split in ("train", "id")}
    return drawn | {split: [scenes.prompt(split, i, task="i2t") for i in range(800)] for split in scenes.splits("i2t")[2:]}


def things(spec: Any) -> list[Thing]:
    return [(SHAPES[v // 6], COLOURS[v % 6], i % 4, i // 4) for i, v in enumerate(spec["source"]) if v >= 0]


def meant(words: str, there: list[Thing]) -> list[Thing]:
    """The things that ``red circles``, ``circle``, ``red object`` or ``object in b2`` names."""
    if " in " in words and words.split(" in ")[1] in CELL_NAMES:
        name = words.split(" in ")[1]
        return [t for t in there if f"{'abcd'[t[3]]}{t[2] + 1}" == name]
    shape = next((s for s in SHAPES if re.search(rf"\b{s}(s|es)?\b", words)), None)
    colour = next((c for c in COLOURS if c in words.split()), None)
    return [t for t in there if shape in (None, t[0]) and colour in (None, t[1])]


def answer(text: str, there: list[Thing]) -> str:
    """The answer, from the words of the question alone."""
    if found := re.search(r"(colour|shape) (?:is|of|does) the (.*?)(?: have)?(?: \?)?$", text):
        (thing,) = meant(found[2], there)
        return thing[1] if found[1] == "colour" else thing[0]
    if found := re.search(r"(?:how many|the number of) (.*?)(?: are there| are in the picture| you see)?(?: \?)?$", text):
        if " the number of " not in found[1]:
            return NUMBERS[len(meant(found[1], there))]
    for pattern, compare in (
        (r"more (.*) than (.*?) \?", int.__gt__), (r"fewer (.*) than (.*?) \?", int.__lt__), (r"as many (.*) as (.*?) \?", int.__eq__),
        (r"number of (.*) larger than the number of (.*?) \?", int.__gt__),
        (r"number of (.*) smaller than the number of (.*?) \?", int.__lt__),
        (r"number of (.*) equal to the number of (.*?) \?", int.__eq__),
    ):  # fmt: skip
        if found := re.search(pattern, text):
            return "yes" if compare(len(meant(found[1], there)), len(meant(found[2], there))) else "no"
    if found := re.search(rf"(?:is|does|see) the (.*?)(?: lie)? (?:to the )?({'|'.join(SIDES)}) the (.*?) \?", text):
        (a,), (b,) = meant(found[1], there), meant(found[3], there)
        x, y = SIDES[found[2]]
        dx, dy = a[2] - b[2], a[3] - b[3]
        return "yes" if 4 * max(0, dx * x + dy * y) ** 2 > dx * dx + dy * dy else "no"
    found = re.search(r"(?:is there|can|see) an? (.*?)(?: in the picture| be seen)? \?", text)
    assert found, text
    return "yes" if meant(found[1], there) else "no"


def questions(prompts: list[Prompt]) -> list[Prompt]:
    return [prompt for prompt in prompts if prompt.spec["tag"] != "caption"]


def test_answers_are_what_the_picture_shows(asked: dict[str, list[Prompt]]) -> None:
    for prompt in questions(list(itertools.chain.from_iterable(asked.values()))):
        assert prompt.image is not None and (prompt.image == scenes.render(scenes.Scene.from_cells(prompt.spec["source"]))).all()
        assert answer(prompt.text, things(prompt.spec)) == prompt.spec["answer"], (prompt.text, things(prompt.spec))


@pytest.mark.parametrize("split", ["train", "id"])
def test_answers_are_balanced_within_each_kind(asked: dict[str, list[Prompt]], split: str) -> None:
    kinds = collections.Counter(prompt.spec["tag"] for prompt in asked[split])
    assert set(kinds) == {"caption", *(f"vqa_{kind}" for kind in QUESTION_KINDS)}
    assert abs(kinds["caption"] / COUNT - 0.5) < 0.03
    answers = {"count": 5, "exist": 2, "colour": 6, "shape": 4, "relation": 2, "compare": 2}
    for kind, number in answers.items():
        given = collections.Counter(prompt.spec["answer"] for prompt in asked[split] if prompt.spec["tag"] == f"vqa_{kind}")
        total = given.total()
        assert len(given) == number and abs(total / COUNT - 1 / 12) < 0.02
        # four standard deviations of the share of the most frequent of equally likely answers
        assert max(given.values()) / total < 1 / number + 4 * (1 / number * (1 - 1 / number) / total) ** 0.5, given


def test_the_words_of_a_question_do_not_tell_a_yes_from_a_no(asked: dict[str, list[Prompt]]) -> None:
    """The majority answer of each word, learnt on one half, is right about half of the time on the other."""
    prompts = [prompt for prompt in questions(asked["train"]) if prompt.spec["answer"] in ("yes", "no")]
    votes: dict[str, int] = collections.defaultdict(int)
    for prompt in prompts[::2]:
        for word in {prompt.spec["tag"], *prompt.text.split()}:
            votes[word] += 1 if prompt.spec["answer"] == "yes" else -1
    right = [(sum(votes[word] for word in prompt.text.split()) > 0) == (prompt.spec["answer"] == "yes") for prompt in prompts[1::2]]
    assert abs(sum(right) / len(right) - 0.5) < 4 * (0.25 / len(right)) ** 0.5


def test_each_held_out_split_asks_for_what_it_is_named_after(asked: dict[str, list[Prompt]]) -> None:
    held = {"purple circle", "yellow square", "blue triangle", "red cross"}

    def names_held(text: str) -> bool:
        plain = text.replace("circles", "circle").replace("squares", "square").replace("triangles", "triangle").replace("crosses", "cross")
        return any(pair in plain for pair in held)

    for split in ("train", "id", "ood_rel", "ood_count", "para"):
        for prompt in asked[split]:
            assert not any(f"{colour} {shape}" in held for shape, colour, _, _ in things(prompt.spec)) and not names_held(prompt.text)
    assert all(names_held(prompt.text) for prompt in questions(asked["ood_pair"]))
    for prompt in asked["ood_pair"]:
        assert prompt.spec["tag"] != "caption" or any(f"{colour} {shape}" in held for shape, colour, _, _ in things(prompt.spec))
    assert all(
        ("below" in prompt.text.split()) == (split == "ood_rel") for split in asked if split != "pretrain" for prompt in asked[split]
    )
    assert {prompt.spec["answer"] for prompt in questions(asked["ood_count"])} == {"five", "six"}
    texts = {split: {prompt.text for prompt in questions(asked[split])} for split in ("train", "id", "para")}
    captions = {split: {p.text for p in asked[split] if p.spec["tag"] == "caption"} for split in ("train", "id", "para")}
    assert not texts["train"] & texts["id"] and not texts["para"] & (texts["train"] | texts["id"])
    assert captions["train"] == captions["id"] and len(captions["para"]) == 3 and not captions["para"] & captions["train"]


def test_only_the_exact_answer_is_right() -> None:
    spec = {"tag": "vqa_count", "source": [0] + [-1] * 15, "answer": "one"}
    assert scenes.score("i2t", spec, Output(" one ")).strict
    for text in ("", "two", "one one", "one circle", "One", "1", "one ."):
        score = scenes.score("i2t", spec, Output(text))
        assert (score.value, score.strict) == (0.0, False)
        assert [(atom.statement, atom.skill, atom.reason) for atom in score.atoms] == [
            ("the answer is one", "vqa_count", f"expected 'one', found {text!r}")
        ]
    with pytest.raises(ValueError, match=telling("answer", 1)):
        scenes.score("i2t", spec | {"answer": 1}, Output("one"))
