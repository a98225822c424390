"""Prompts are pure functions of (seed, split, index), their splits keep apart what they promise, and examples are true."""

import collections
import hashlib
import itertools
import json

import pytest

from pararl import scenes
from pararl.scenes.describe import TAGS
from pararl.scenes.splits import HELD_PAIRS, is_id_text
from pararl.scenes.words import MAX_WORDS
from pararl.scenes.world import COLOURS, SHAPES
from pararl.types import Prompt, Task
from tests.wording import telling

COUNT = 2500
DESCRIBED: tuple[Task, ...] = ("t2i", "interleaved")
"""Tasks whose prompts describe a scene."""
PARAPHRASE_WORDS = {"there", "contains", "see", "seen", "to", "over", "under", "without", "any", "together", "well", "that"}


@pytest.fixture(scope="module")
def drawn() -> dict[str, list[Prompt]]:
    return {split: [scenes.prompt(split, index) for index in range(COUNT)] for split in scenes.SPLITS}


def named_pairs(text: str) -> set[tuple[str, str]]:
    """Pairs that a text names, read from its words alone: ``colour shape`` or ``shape that is colour``."""
    words = text.split()
    singular = {"circles": "circle", "squares": "square", "triangles": "triangle", "crosses": "cross"}
    words = [singular.get(word, word) for word in words]
    pairs = {(b, a) for a, b in itertools.pairwise(words) if a in COLOURS and b in SHAPES}
    trailing = zip(words, words[1:], words[3:], strict=False)
    return pairs | {(a, b) for a, that, b in trailing if a in SHAPES and that == "that" and b in COLOURS}


def test_prompts_are_pure_functions_of_seed_split_and_index(drawn: dict[str, list[Prompt]]) -> None:
    for split in scenes.SPLITS:
        again = [scenes.prompt(split, index) for index in reversed(range(50))][::-1]
        assert again == drawn[split][:50]
        assert [scenes.prompt(split, index, seed=1).text for index in range(50)] != [prompt.text for prompt in again]
        first, second = (scenes.example(split, 7) for _ in range(2))
        assert first.scene == second.scene and first.prompt == drawn[split][7]
    assert scenes.prompt("id", 3).id == "id-3" and scenes.prompt("id", 3, seed=5).id == "id-3-s5"


def test_the_stream_is_pinned() -> None:
    """Shipped checkpoints and recorded results refer to these texts; a change of them is a change of the world."""
    assert [scenes.prompt("train", index).text for index in range(3)] == [
        "a red square and a green cross",
        "an image of two circles right of one orange square and one triangle",
        "a scene with two squares left of two purple crosses",
    ]


def test_descriptions_are_what_shipped_checkpoints_were_trained_and_measured_on() -> None:
    """Texts, specs, scenes and plans of the first 200 prompts of every split, as recorded before there were other tasks."""
    recorded: dict[str, tuple[str, str]] = {
        "train": ("421048a5461017ef", "417e2fa20dd1798f"),
        "id": ("5bf43431617c2936", "2a8ff64a237fffbb"),
        "ood_pair": ("39b80b3f5d90bf32", "2622defcb7c73026"),
        "ood_rel": ("e4fafa39295e335d", "aa3a3f03fdb54ac5"),
        "ood_count": ("3c5cb47a8c84fa0d", "8f0c9770c29ef043"),
        "para": ("274233f3968f3b8c", "938ce32ebb1eef94"),
        "pretrain": ("e14a9f4751cf2abd", "328b99e93aba8a76"),
    }
    for split, (task, digest) in ((split, pair) for split, digests in recorded.items() for pair in zip(DESCRIBED, digests, strict=True)):
        found = hashlib.sha256()
        for index in range(200):
            shown = scenes.example(split, index, task=task)
            prompt = scenes.prompt(split, index, task=task)
            assert prompt == shown.prompt and prompt.image is None
            line = [prompt.id, prompt.task, prompt.text, dict(prompt.spec), prompt.split, shown.scene.cells.tolist(), shown.output.text]
            found.update(json.dumps(line).encode())
            assert shown.output.image is not None
            found.update(shown.output.image.tobytes())
        assert found.hexdigest()[:16] == digest, (split, task)
    words = " ".join(scenes.VOCABULARY[:246])
    assert hashlib.sha256(words.encode()).hexdigest()[:16] == "f189c173e83dafd5", "places of words are ids of shipped tokenizers"


def test_words_are_in_the_vocabulary_and_prompts_are_short(drawn: dict[str, list[Prompt]]) -> None:
    vocabulary = set(scenes.VOCABULARY)
    assert len(vocabulary) == len(scenes.VOCABULARY)
    assert all(word == word.lower() and not any(c.isspace() for c in word) and word for word in vocabulary)
    for prompt in itertools.chain.from_iterable(drawn.values()):
        words = prompt.text.split(" ")
        assert set(words) <= vocabulary and 1 < len(words) <= MAX_WORDS == 28
        for atom in prompt.spec["atoms"]:
            assert {*atom["q"].split(" "), *atom["a"].split(" ")} <= vocabulary
            assert all(0 <= place < len(words) for place in atom["words"]) and all(dep < atom["id"] for dep in atom["dep"])


def test_tags_are_roughly_uniform(drawn: dict[str, list[Prompt]]) -> None:
    for split in ("train", "id", "para", "pretrain"):
        shares = collections.Counter(prompt.spec["tag"] for prompt in drawn[split])
        assert set(shares) == set(TAGS)
        assert all(0.08 < count / COUNT < 0.17 for count in shares.values()), shares


def test_train_and_id_texts_are_disjoint_and_of_one_distribution(drawn: dict[str, list[Prompt]]) -> None:
    train, held = ({prompt.text for prompt in drawn[split]} for split in ("train", "id"))
    assert not train & held
    assert all(is_id_text(text) for text in held) and not any(is_id_text(text) for text in train)
    sizes = [sum(sum(entry["count"] for entry in p.spec["include"]) for p in drawn[split]) / COUNT for split in ("train", "id")]
    assert abs(sizes[0] - sizes[1]) < 0.2


def test_train_and_id_hold_nothing_that_is_held_out(drawn: dict[str, list[Prompt]]) -> None:
    for index, split in itertools.product(range(COUNT), ("train", "id")):
        words = set(drawn[split][index].text.split())
        assert not words & {"below", "five", "six", *PARAPHRASE_WORDS}, drawn[split][index].text
        assert not named_pairs(drawn[split][index].text) & HELD_PAIRS
    for index, split in itertools.product(range(500), ("train", "id")):
        held_kinds = {(SHAPES.index(shape), COLOURS.index(colour)) for shape, colour in HELD_PAIRS}
        assert not {(o.shape, o.colour) for o in scenes.example(split, index).scene.objects()} & held_kinds


def test_held_out_splits_hold_what_they_are_named_after_and_nothing_else(drawn: dict[str, list[Prompt]]) -> None:
    def held(prompt: Prompt) -> set[str]:
        words = set(prompt.text.split())
        return {
            name
            for name, there in {
                "ood_pair": bool(named_pairs(prompt.text) & HELD_PAIRS),
                "ood_rel": bool(words & {"below", "under"}),
                "ood_count": bool(words & {"five", "six"}),
                "para": bool(words & PARAPHRASE_WORDS),
            }.items()
            if there
        }

    for split in ("ood_pair", "ood_rel", "ood_count", "para"):
        assert all(held(prompt) == {split} for prompt in drawn[split])
    share = sum(bool(held(prompt)) for prompt in drawn["pretrain"]) / COUNT
    assert 0.15 < share < 0.21
    assert set.union(*(held(prompt) for prompt in drawn["pretrain"])) == {"ood_pair", "ood_rel", "ood_count", "para"}


def test_held_out_pairs_form_a_latin_square_row() -> None:
    assert len({shape for shape, _ in HELD_PAIRS}) == len({colour for _, colour in HELD_PAIRS}) == len(HELD_PAIRS) == 4


def test_specs_count_groups_and_objects_within_bounds(drawn: dict[str, list[Prompt]]) -> None:
    for split, prompts in drawn.items():
        for prompt in prompts:
            include = prompt.spec["include"]
            assert 1 <= len(include) <= 3 and 1 <= sum(entry["count"] for entry in include) <= 6
            assert sum("position" in entry for entry in include) <= 1
            assert split in ("ood_count", "pretrain") or max(entry["count"] for entry in include) <= 4


def test_the_record_of_a_relation_is_genevals() -> None:
    """The target stands before the subject, and exact counts are include n with exclude n + 1."""
    prompt = next(p for i in range(1000) if (p := scenes.prompt("train", i)).text == "a scene with two squares left of two purple crosses")
    spec = dict(prompt.spec)
    atoms = spec.pop("atoms")
    assert spec == {
        "tag": "position",
        "include": [{"class": "cross", "count": 2, "color": "purple"}, {"class": "square", "count": 2, "position": ["left of", 0]}],
        "exclude": [{"class": "cross", "count": 3}, {"class": "square", "count": 3}],
        "closed": True,
    }
    assert [(atom["q"], atom["a"], atom["skill"], atom["words"], atom["dep"]) for atom in atoms] == [
        ("how many squares are there ?", "two", "count", [3, 4], []),
        ("how many crosses are there ?", "two", "count", [7, 9], []),
        ("are the crosses purple ?", "yes", "color", [8, 9], [1]),
        ("are the squares left of the purple crosses ?", "yes", "position", [5, 6], [0, 1]),
        ("is there any other object ?", "no", "closed_world", [], []),
    ]


@pytest.mark.parametrize("split", scenes.SPLITS)
@pytest.mark.parametrize("task", DESCRIBED)
def test_examples_satisfy_their_own_prompts(split: str, task: Task) -> None:
    for index in range(400):
        shown = scenes.example(split, index, seed=3, task=task)
        assert shown.output.image is not None and (shown.output.text is None) == (task == "t2i")
        score = scenes.check(shown.prompt.spec, scenes.parse(shown.output.image), shown.output.text)
        assert score.strict and score.value == 1.0, (shown.prompt.text, score)
        assert len(shown.scene.objects()) == sum(entry["count"] for entry in shown.prompt.spec["include"])


def test_both_tasks_share_text_and_scene() -> None:
    for index in range(20):
        image, both = (scenes.example("id", index, task=task) for task in DESCRIBED)
        assert image.prompt.text == both.prompt.text and image.scene == both.scene
        assert scenes.parse_plan(both.output.text or "") == both.scene


def test_unknown_splits_tasks_and_indices_are_errors() -> None:
    with pytest.raises(ValueError, match=telling("'test'")):
        scenes.prompt("test", 0)
    with pytest.raises(ValueError, match=telling("'paint'")):
        scenes.prompt("id", 0, task="paint")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=telling("'ood_ops'")):
        scenes.prompt("ood_ops", 0)
    with pytest.raises(ValueError, match=telling("t2i", "'edit'")):
        scenes.prompt("id", 0, form="edit")
    with pytest.raises(ValueError, match="-1"):
        scenes.prompt("id", -1)
