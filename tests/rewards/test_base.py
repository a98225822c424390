"""The reward protocol: one value per completion, None stays None, and a failure is never a number."""

import asyncio
import math
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rewards
from pararl.types import Output, Prompt, Rollout, Score
from rewards.base import check_scores
from tests.wording import telling

PROMPTS = ["a circle", "a square", "a cross"]
OUTPUTS = [Output(text="x"), Output(text="xx"), Output(text="xxx")]


def length(prompts: Sequence[str], completions: Sequence[Output], **columns: Any) -> list[float | None]:
    return [len(output.text or "") / 10 for output in completions]


async def length_async(prompts: Sequence[str], completions: Sequence[Output], **columns: Any) -> list[float | None]:
    await asyncio.sleep(0)
    return length(prompts, completions)


def returning(value: Any) -> Callable[..., Any]:
    def constant(**_: Any) -> Any:
        return value

    return constant


@pytest.mark.parametrize("function", [length, length_async])
def test_sync_and_async_functions_give_their_values(function: Callable[..., Any]) -> None:
    reward = rewards.FunctionReward(function)
    assert reward(PROMPTS, OUTPUTS) == [0.1, 0.2, 0.3]
    scores = reward.score(PROMPTS, OUTPUTS, split=["id"] * 3)
    assert [score.value for score in scores if score] == [0.1, 0.2, 0.3]
    assert all(score is not None and score.strict is None and score.atoms == () for score in scores)
    assert reward.name == function.__name__


def test_an_async_function_works_inside_a_running_loop() -> None:
    """An async actor calls rewards from its own event loop."""

    async def actor() -> list[float | None]:
        return rewards.FunctionReward(length_async)(PROMPTS, OUTPUTS)

    assert asyncio.run(actor()) == [0.1, 0.2, 0.3]


def test_functions_get_trls_arguments_by_keyword_with_columns_repeated() -> None:
    seen: dict[str, Any] = {}

    def spy(**arguments: Any) -> list[float]:
        seen.update(arguments)
        return [0.0] * len(arguments["completions"])

    rollouts = [rollout("p0", ("a", "b")), rollout("p1", ())]
    rewards.score_rollouts(rewards.FunctionReward(spy), rollouts)
    assert seen["prompts"] == ["text of p0"] * 3 + ["text of p1"]
    assert [output.text for output in seen["completions"]] == ["final p0", "a", "b", "final p1"]
    assert seen["id"] == ["p0", "p0", "p0", "p1"] and seen["task"] == ["t2i"] * 4 and seen["split"] == ["train"] * 4
    assert seen["spec"] == [{"of": "p0"}] * 3 + [{"of": "p1"}] and seen["image"] == [None] * 4


@pytest.mark.parametrize("values", [[], [0.5], [0.5] * 2, [0.5] * 4])
def test_a_wrong_number_of_values_is_an_error_that_names_function_and_counts(values: list[float]) -> None:
    with pytest.raises(ValueError, match=telling("constant", len(values), 3)):
        rewards.FunctionReward(returning(values))(PROMPTS, OUTPUTS)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, np.float32("nan")])
def test_a_value_that_is_not_finite_is_an_error_and_never_zero(bad: float) -> None:
    with pytest.raises(ValueError, match=telling("constant", float(bad), 1)):
        rewards.FunctionReward(returning([0.0, bad, None]))(PROMPTS, OUTPUTS)


def test_none_stays_none() -> None:
    assert rewards.FunctionReward(returning([None, 0.0, None]))(PROMPTS, OUTPUTS) == [None, 0.0, None]
    assert rewards.FunctionReward(returning([None] * 3)).score(PROMPTS, OUTPUTS) == [None] * 3


@pytest.mark.parametrize("values", [None, 0.5, "abc", ["0.1", "0.2", "0.3"], [[0.1], [0.2], [0.3]]])
def test_anything_but_numbers_and_none_is_an_error(values: object) -> None:
    with pytest.raises(TypeError, match=telling("constant")):
        rewards.FunctionReward(returning(values))(PROMPTS, OUTPUTS)


def test_numpy_numbers_become_floats() -> None:
    values = rewards.FunctionReward(returning(np.array([0.25, 1.0, -3.0], np.float32)))(PROMPTS, OUTPUTS)
    assert values == [0.25, 1.0, -3.0] and all(type(value) is float for value in values)


def test_an_error_inside_a_function_passes_through() -> None:
    def broken(**_: Any) -> list[float]:
        raise ConnectionError("judge is down")

    with pytest.raises(ConnectionError, match="judge is down"):
        rewards.FunctionReward(broken)(PROMPTS, OUTPUTS)


def rollout(name: str, guesses: tuple[str, ...]) -> Rollout:
    prompt = Prompt(name, "t2i", f"text of {name}", {"of": name})
    steps = tuple(range(len(guesses)))
    return Rollout(prompt, 0, 0, 0, len(guesses), steps, (), Output(f"final {name}"), tuple(Output(guess) for guess in guesses))


def test_judgements_keep_finals_and_guesses_apart() -> None:
    table = {"final a": 1.0, "final b": None, "final c": 0.25, "g1": 0.5, "g2": None, "g3": 0.75}

    def look_up(completions: Sequence[Output], **_: Any) -> list[float | None]:
        return [table[output.text or ""] for output in completions]

    reward = rewards.FunctionReward(look_up)
    judged = rewards.score_rollouts(reward, [rollout("a", ("g1", "g2")), rollout("b", ()), rollout("c", ("g3",))])
    assert [j.final and j.final.value for j in judged] == [1.0, None, 0.25]
    assert [[s and s.value for s in j.steps] for j in judged] == [[0.5, None], [], [0.75]]
    assert rewards.score_rollouts(reward, []) == []


class Ranked(rewards.Reward):
    """Looks its scores up by the text of the output."""

    name = "ranked"

    def __init__(self, good: Score | None, bad: Score | None) -> None:
        self.table = {"good": good, "bad": bad}

    def score(self, prompts: Sequence[str], completions: Sequence[Output], **columns: Sequence[Any]) -> list[Score | None]:
        return [self.table[output.text or ""] for output in completions]

    def examples(self) -> list[tuple[Prompt, Output, Output]]:
        return [(Prompt("known", "t2i", "a circle"), Output("good"), Output("bad"))]


def test_self_test_passes_a_reward_that_ranks_right() -> None:
    assert rewards.self_test(Ranked(Score(0.6), Score(0.5))) == 1
    assert rewards.self_test(Ranked(Score(1.0, True), Score(0.9, False))) == 1
    assert rewards.self_test(rewards.FunctionReward(length)) == 0


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        (Score(0.5), Score(0.5)),
        (Score(0.4), Score(0.5)),
        (Score(0.9, False), Score(0.5, False)),
        (Score(1.0, True), Score(0.5, True)),
        (None, Score(0.0)),
        (Score(1.0), None),
    ],
)
def test_self_test_refuses_a_reward_that_ranks_wrong_or_does_not_apply(good: Score | None, bad: Score | None) -> None:
    with pytest.raises(RuntimeError, match=telling("ranked", "known")):
        rewards.self_test(Ranked(good, bad))


def test_self_test_passes_a_failure_on() -> None:
    with pytest.raises(ValueError, match=telling("ranked", math.nan)):
        rewards.self_test(Ranked(Score(math.nan), Score(0.0)))


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = "users_own_rewards"
    (tmp_path / f"{name}.py").write_text(
        "import rewards\n"
        "def half(prompts, completions, **columns):\n    return [0.5] * len(completions)\n"
        "class Mine(rewards.Reward):\n    name = 'mine'\n    def score(self, prompts, completions, **columns):\n        return [None]\n"
        "ready = Mine()\nnumber = 3\n"
    )
    (tmp_path / "users_broken.py").write_text("import a_package_nobody_has\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def test_load_finds_scenes_and_the_users_own(module: str) -> None:
    assert isinstance(rewards.load("scenes"), rewards.SceneReward)
    half = rewards.load(f"{module}:half")
    assert half(PROMPTS, OUTPUTS) == [0.5] * 3 and half.name == f"{module}:half"
    assert pickle.loads(pickle.dumps(half))(PROMPTS, OUTPUTS) == [0.5] * 3
    for attribute in ("Mine", "ready"):
        assert rewards.load(f"{module}:{attribute}").name == "mine"


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("scene", ("'scene'", "module:function")),
        ("", ("''", "module:function")),
        (":half", ("':half'", "module:function")),
        ("module_nobody_has:half", ("'module_nobody_has'",)),
        ("module_nobody_has.py:half", ("module_nobody_has.py",)),
        ("users_own_rewards.part:half", ("'users_own_rewards.part'",)),
        ("users_own_rewards:third", ("'users_own_rewards'", "'third'")),
        ("users_own_rewards:number", ("'users_own_rewards:number'", "int")),
    ],
)
def test_load_says_what_is_missing(module: str, name: str, tokens: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=telling(*tokens)):
        rewards.load(name)


def test_an_import_error_inside_the_users_module_is_not_hidden(module: str) -> None:
    with pytest.raises(ModuleNotFoundError, match="a_package_nobody_has"):
        rewards.load("users_broken:half")


def test_credit_that_is_no_finite_array_is_refused_with_its_place() -> None:
    good, grid = Score(0.5, words=np.zeros(3, np.float32)), np.zeros((2, 2), np.float32)
    assert check_scores("mine", [good, Score(0.5, credit=grid), None], 3)
    for bad in (Score(0.5, credit=grid + np.nan), Score(0.5, words=grid), Score(0.5, words=[0.0, 1.0])):  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=telling("mine", 1, "credit" if bad.words is None else "words")):
            check_scores("mine", [good, bad], 2)
