"""A function of the user's is called as TRL calls it, in the form that it asks for, and everything that it returns is checked."""

import json
import math
import re
import sys
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trl.rewards import think_format_reward

import rewards
from pararl.cli.input_checks import reward_problems
from pararl.config import Config, changed
from pararl.rollout.reward_worker import RewardError, RewardWorker
from pararl.types import Output, Prompt, Rollout
from rewards.base import score_outputs
from rewards.check import Looked, imported, look
from rewards.signature import form_of

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = [
    Prompt("p0", "i2t", "how many", {"answer": "3", "level": 1}),
    Prompt("p1", "t2t", "one plus one", {"answer": "2"}, split="id"),
    Prompt("p2", "t2i", "a circle", {"tag": "x"}),
]
OUTPUTS = [Output(text="it is 3"), Output(text=""), Output(image=np.full((2, 2, 3), 200, np.uint8))]


def scores_of(function: Callable[..., Any]) -> list[float | None]:
    found = score_outputs(rewards.FunctionReward(function), PROMPTS, OUTPUTS)
    return [None if score is None else score.value for score in found]


def test_every_key_of_the_records_is_a_keyword_of_its_own() -> None:
    seen: dict[str, Any] = {}

    def spy(prompts: Any, completions: Any, answer: Any, level: Any = "unset", **columns: Any) -> list[float]:
        seen.update(columns, answer=answer, level=level, prompts=prompts)
        return [0.0] * len(completions)

    scores_of(spy)
    assert seen["answer"] == ["3", "2", None] and seen["level"] == [1, None, None] and seen["tag"] == [None, None, "x"]
    assert seen["id"] == ["p0", "p1", "p2"] and seen["task"] == ["i2t", "t2t", "t2i"] and seen["split"] == ["train", "id", "train"]
    assert seen["spec"] == [prompt.spec for prompt in PROMPTS] and seen["image"] == [None] * 3
    assert seen["prompts"] == [prompt.text for prompt in PROMPTS]


def test_a_batch_without_a_column_that_a_function_names_gives_none_for_it() -> None:
    def strict(completions: Any, answer: Any, **columns: Any) -> list[float]:
        assert answer == [None]
        return [1.0]

    assert [s and s.value for s in score_outputs(rewards.FunctionReward(strict), PROMPTS[2:], OUTPUTS[2:])] == [1.0]


def test_no_column_takes_the_place_of_what_is_passed_anyway() -> None:
    taken = Prompt("p0", "i2t", "how many", {name: "stray" for name in ("self", "prompts", "completions", "completion", "prompt")})

    def spy(prompts: Any, completions: Any, **columns: Any) -> list[float]:
        assert prompts == ["how many"] and completions == OUTPUTS[:1] and set(columns) == {"id", "task", "spec", "split", "image"}
        return [1.0]

    assert score_outputs(rewards.FunctionReward(spy), [taken], OUTPUTS[:1])


def test_texts_are_asked_for_by_annotation_and_outputs_without_one_are_not_asked_about() -> None:
    def lengths(prompts: Any, completions: list[str], answer: list[str], **columns: Any) -> list[float]:
        assert completions == ["it is 3", ""] and prompts == ["how many", "one plus one"] and answer == ["3", "2"]
        return [float(len(text)) for text in completions]

    assert scores_of(lengths) == [7.0, 0.0, None]

    def never(completions: list[str], **columns: Any) -> list[float]:
        raise AssertionError("nothing to ask")

    assert score_outputs(rewards.FunctionReward(never), PROMPTS[2:], OUTPUTS[2:]) == [None]


def test_messages_are_those_of_trl_whose_own_rewards_run_as_they_are() -> None:
    def spy(prompts: Any, completions: list[list[dict[str, str]]], **columns: Any) -> list[float]:
        assert prompts[1] == [{"role": "user", "content": "one plus one"}]
        return [float(len(message["content"])) for (message,) in completions if message["role"] == "assistant"]

    assert scores_of(spy) == [7.0, 0.0, None]
    reward = rewards.FunctionReward(think_format_reward)
    good = Output(text="<think>\nthree circles\n</think>\n3")
    assert [s and s.value for s in score_outputs(reward, PROMPTS[:2], [good, OUTPUTS[0]])] == [1.0, 0.0]


def annotated(hint: Any) -> Callable[..., Any]:
    def f(completions: Any, **columns: Any) -> list[float]:
        return []

    f.__annotations__ = {} if hint is ... else {"completions": hint}
    return f


@pytest.mark.parametrize(
    ("hint", "form"),
    [
        (..., "outputs"),
        (Any, "outputs"),
        (list, "outputs"),
        (list[Output], "outputs"),
        (Sequence[Output], "outputs"),
        ("list[Output]", "outputs"),
        ("Sequence[nowhere.Output]", "outputs"),
        (list[str], "text"),
        (Sequence[str], "text"),
        ("list[str]", "text"),
        (list[list[dict[str, str]]], "messages"),
        (list[list[dict]], "messages"),
        ("list[list[dict[str, str]]]", "messages"),
        (list[int], None),
        (list[np.ndarray], None),
        ("list[PIL.Image]", None),
    ],
)
def test_the_form_is_read_from_the_annotation(hint: Any, form: str | None) -> None:
    if form is not None:
        assert form_of(annotated(hint), "mine") == form
        return
    with pytest.raises(ValueError, match=r"reward mine: completions are annotated .*list\[str\]"):
        form_of(annotated(hint), "mine")


def test_the_annotation_of_a_callable_object_counts_too() -> None:
    class Judge:
        def __call__(self, completions: list[str], **columns: Any) -> list[float]:
            return [float(len(text)) for text in completions]

    assert scores_of(Judge()) == [7.0, 0.0, None]


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (math.nan, r"returned nan for completion 1 \(prompt p1\)"),
        (math.inf, r"returned inf for completion 1 \(prompt p1\)"),
        (1e308, r"returned 1e\+308 for completion 1 \(prompt p1\)"),
        (10**400, "returned a number that no float can hold"),
        ("0.5", "returned a str"),
        (np.ones(1), "returned a ndarray"),
        (torch.ones(2), "returned a Tensor"),
        (1j, "returned a complex"),
        ([1.0], "returned a list"),
    ],
    ids=lambda value: str(value)[:12],
)
def test_a_value_that_is_no_finite_number_is_told_with_reward_and_prompt(value: Any, told: str) -> None:
    def mine(completions: Any, **columns: Any) -> list[Any]:
        return [0.5, value, None]

    with pytest.raises((ValueError, TypeError), match=rf"reward mine {told}"):
        scores_of(mine)


@pytest.mark.parametrize("values", [None, {0: 1, 1: 2, 2: 3}, {1.0, 2.0, 3.0}, b"abc", "abc", 3.0, [1.0] * 2, [1.0] * 4, []])
def test_what_is_no_list_of_one_value_each_is_told(values: Any) -> None:
    def mine(**arguments: Any) -> Any:
        return values

    with pytest.raises((ValueError, TypeError), match="reward mine returned"):
        scores_of(mine)


def test_any_kind_of_number_counts() -> None:
    for values in ([True, Decimal("0.5"), None], (1, np.float32(0.5), None), iter([torch.tensor(1.0), np.array(0.5), None])):
        assert scores_of(lambda values=values, **_: values) == [1.0, 0.5, None]


def test_the_place_counts_among_all_where_only_texts_are_asked_about() -> None:
    def mine(completions: list[str], **columns: Any) -> list[float]:
        return [math.nan]

    with pytest.raises(ValueError, match=r"\(prompt p1\)"):
        score_outputs(rewards.FunctionReward(mine), [PROMPTS[2], PROMPTS[1]], [OUTPUTS[2], OUTPUTS[1]])


def test_a_reward_that_calls_exit_is_an_error_of_its_worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "leaves.py").write_text("import sys\ndef f(completions, **columns):\n    sys.exit('no key')\n")
    rollout = Rollout(PROMPTS[0], 0, 0, 0, 1, (), (), OUTPUTS[0], ())
    with pytest.raises(RewardError, match=r"reward leaves.py:f failed .*called exit \(no key\)"):
        RewardWorker("leaves.py:f").score([rollout])


def test_a_file_is_found_from_where_one_works_and_by_workers_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for folder, value in (("a", 0.25), ("b", 0.75)):  # of one name, and neither on the path
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "json.py").write_text(
            f"import beside_{folder}\n\ndef f(completions, **columns):\n    return [beside_{folder}.x]"
        )
        (tmp_path / folder / f"beside_{folder}.py").write_text(f"x = {value}")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    for name, value in (("a/json.py:f", 0.25), ("b/json.py:f", 0.75), (str(tmp_path / "a" / "json.py:f"), 0.25)):
        assert rewards.load(name)(["x"], OUTPUTS[:1]) == [value]
        assert rewards.names.absolute(name) == f"{tmp_path / Path(name)}"
    assert json.loads("1") == 1 and rewards.own("a/json.py:f") is rewards.own("a/json.py:f")
    (tmp_path / "rewards.py").write_text("def mine(completions, **columns):\n    return [1.0]")
    with pytest.raises(ValueError, match="for the file of yours write rewards.py:mine"):
        rewards.load("rewards:mine")
    assert rewards.load("rewards.py:mine")(["x"], OUTPUTS[:1]) == [1.0]


def test_a_file_of_the_users_takes_the_place_of_no_module_of_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("json", "rewards", "subprocess"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('of the user')")
    (tmp_path / "mine.py").write_text("def f(completions, colour, **columns):\n    return [1.0]")
    assert look("mine:f") == Looked(wanted=("colour",))


def blocks(document: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)


def test_the_rewards_of_the_readme_give_what_they_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (text,) = [block for block in blocks("README.md") if "def red(" in block]
    Path("my_reward.py").write_text(text)
    image = np.zeros((4, 4, 3), np.uint8)
    image[:2, :2, 0] = 255  # a quarter is red
    assert rewards.load("my_reward.py:red")(["x"] * 2, [Output(image=image), Output(text="x")]) == [0.25, None]
    told_of = [Output(text="a b c d"), Output(text=""), Output(image=image)]
    assert rewards.load("my_reward.py:brief")(["x"] * 3, told_of) == [0.25, 0.0, None]
    told = [reward_problems(changed(Config(), {"reward.name": "my_reward.py:red"}))]
    told += [reward_problems(changed(Config(), {"reward.name": "my_reward.py:brief", "curriculum.tasks": ("i2t",)}))]
    assert [list(problems) for problems in told] == [[], []]


def test_the_rewards_of_the_documents_give_what_they_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (text,) = [block for block in blocks("docs/prompts_and_rewards.md") if "def contrast(" in block]
    Path("rewards_of_mine.py").write_text(text)
    image = np.zeros((2, 2, 3), np.uint8)
    image[0] = 128
    assert rewards.load("rewards_of_mine.py:contrast")(["x"] * 2, [Output(image=image), Output(text="x")]) == [0.5, None]
    prompts = [Prompt(str(i), "t2t", "two plus three", {"answer": answer}) for i, answer in enumerate(("five", "six", None))]
    found = score_outputs(rewards.load("rewards_of_mine.py:last_word"), prompts, [Output(text="it is five")] * 3)
    assert [score and score.value for score in found] == [1.0, 0.0, None] and imported("rewards_of_mine.py:last_word").wanted == ("answer",)
    line = re.search(r"`(\{\"task\": \"t2t\".*?\})`", (ROOT / "docs" / "prompts_and_rewards.md").read_text())
    assert line
    Path("sums.jsonl").write_text(f"{line[1]}\n")
    files = {"curriculum.file": "sums.jsonl", "eval.file": "sums.jsonl", "curriculum.tasks": ("t2t",)}
    assert not list(reward_problems(changed(Config(), {"reward.name": "rewards_of_mine.py:last_word", **files})))
