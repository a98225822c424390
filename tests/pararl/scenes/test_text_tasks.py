"""Tasks in words alone: edits of plans, sums, rewordings."""

import collections
import re

import pytest

from pararl import scenes
from pararl.scenes.rewording import facts
from pararl.scenes.splits import is_id_text
from pararl.types import Output, Prompt, Score
from tests.wording import telling

COUNT = 3000
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@pytest.fixture(scope="module")
def drawn() -> dict[str, list[Prompt]]:
    return {split: [scenes.prompt(split, index, task="t2t") for index in range(COUNT)] for split in ("train", "id", "para")}


def tagged(prompts: list[Prompt], tag: str) -> list[Prompt]:
    return [prompt for prompt in prompts if prompt.spec["tag"] == tag]


def said(prompt: Prompt, text: str) -> Score:
    return scenes.score("t2t", prompt.spec, Output(text))


def test_the_three_kinds_come_equally_often(drawn: dict[str, list[Prompt]]) -> None:
    for prompts in drawn.values():
        shares = collections.Counter(prompt.spec["tag"] for prompt in prompts)
        assert set(shares) == {"scene_edit", "arithmetic", "paraphrase"}
        assert all(abs(count / COUNT - 1 / 3) < 0.04 for count in shares.values()), shares


def test_sums_are_right_and_results_balanced(drawn: dict[str, list[Prompt]]) -> None:
    for prompts in drawn.values():
        sums = tagged(prompts, "arithmetic")
        for prompt in sums:
            numbers = [NUMBERS.index(word) for word in prompt.text.split() if word in NUMBERS]
            assert len(numbers) == 2
            plus = bool(re.search(r"plus|sum|\+", prompt.text))
            assert plus != bool(re.search(r"minus|difference|-", prompt.text))
            assert prompt.spec["answer"] == NUMBERS[sum(numbers) if plus else numbers[0] - numbers[1]], prompt.text
        counts = collections.Counter(prompt.spec["answer"] for prompt in sums)
        assert set(counts) == set(NUMBERS)
        assert max(counts.values()) / len(sums) < 1 / 11 + 4 * (1 / 11 * 10 / 11 / len(sums)) ** 0.5
    prompt = tagged(drawn["id"], "arithmetic")[0]
    assert said(prompt, prompt.spec["answer"]).strict and said(prompt, f"{prompt.spec['answer']} circles").value == 0


def test_an_edited_plan_is_scored_as_the_scene_it_describes(drawn: dict[str, list[Prompt]]) -> None:
    for prompt in tagged(drawn["train"], "scene_edit")[:100]:
        source = scenes.Scene.from_cells(prompt.spec["source"])
        assert prompt.text.startswith(f"{scenes.plan_text(source)} ") and prompt.image is None
        assert len(source.objects()) <= 3
        unchanged = said(prompt, scenes.plan_text(source))
        assert unchanged.value == 0 and unchanged.credit is None
        for text in ("", ".", "red circle", prompt.text):
            assert said(prompt, text).value == 0 and said(prompt, text).strict is False
    shown = scenes.example("train", next(i for i in range(COUNT) if drawn["train"][i].spec["tag"] == "scene_edit"), task="t2t")
    assert said(shown.prompt, scenes.plan_text(shown.scene)).strict


def test_texts_belong_to_the_side_that_their_instruction_or_sentence_says(drawn: dict[str, list[Prompt]]) -> None:
    def key(prompt: Prompt) -> str:
        if prompt.spec["tag"] == "scene_edit":
            return prompt.text.split(" . ")[-1]
        return prompt.spec["text"] if prompt.spec["tag"] == "paraphrase" else prompt.text

    for split in ("train", "id"):
        assert all(is_id_text(key(prompt)) == (split == "id") for prompt in drawn[split])


def reworded(text: str, answer: str) -> Score:
    return scenes.score("t2t", {"tag": "paraphrase", "text": text}, Output(answer))


@pytest.mark.parametrize(
    "answer",
    [
        "a picture of two red circles left of a blue square and no crosses",
        "a blue square right of two red circles and no cross",
        "there are two red circles to the left of a blue square without any crosses",
        "one blue square to the right of two circles that are red and no crosses",
    ],
)
def test_any_other_sentence_of_the_same_meaning_will_do(answer: str) -> None:
    score = reworded("two red circles left of a blue square and no crosses", answer)
    assert score.strict and score.value == 1.0


def test_the_given_words_other_meanings_and_broken_sentences_will_not() -> None:
    text = "two red circles left of a blue square"
    same = reworded(text, f" {text} ")
    assert (same.value, same.strict) == (0.0, False) and same.atoms[-1].reason == "the words are those given"
    for answer in ("", "two red circles of", "a dog", f"{text} please"):
        assert reworded(text, answer).value == 0 and not reworded(text, answer).strict
    fewer = reworded(text, "draw one red circle left of a blue square")
    assert not fewer.strict and fewer.atoms[1].reason == "missing object circle, colour circle red"
    assert fewer.value == pytest.approx((2 * 5 / (7 + 5)) ** 2)
    turned = reworded(text, "a blue square left of two red circles")
    assert not turned.strict and turned.value == pytest.approx((12 / 14) ** 2)
    assert reworded("a circle and a square", "a circle above a square").value == pytest.approx((4 / 5) ** 2)


def test_naming_one_of_two_objects_does_not_pay() -> None:
    """Found by a policy: a short sentence that is half of it, always readable, earned more than trying to say it all."""
    assert reworded("a red circle above a blue square", "one red circle").value < 1 / 3


def test_facts_are_equal_exactly_for_the_same_meaning() -> None:
    def of(text: str) -> object:
        description = scenes.parse_caption(text)
        assert description is not None
        return facts(description)

    assert of("a circle above two squares") == of("two squares below one circle") != of("two squares above a circle")
    assert of("a red circle and a square") == of("show one square and a red circle") != of("a circle and a red square")
    assert of("a circle and no square") != of("a circle and no red square") != of("a circle and no cross")


def test_a_paraphrase_spec_without_a_sentence_is_an_error() -> None:
    for text in (None, 3, "", "a dog"):
        with pytest.raises(ValueError, match=telling("text", repr(text))):
            scenes.score("t2t", {"text": text}, Output("a circle"))
