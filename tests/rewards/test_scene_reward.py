"""The exact reward reads pixels and plans only, and applies to the tasks of the scene world."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rewards
from pararl import scenes
from pararl.types import Output, Rollout, Task
from tests.wording import telling

ROOT = Path(__file__).parents[2]


def columns(shown: list[scenes.Example]) -> dict[str, Any]:
    return {"task": [example.prompt.task for example in shown], "spec": [example.prompt.spec for example in shown]}


def draw(count: int, task: Task, split: str = "id", form: scenes.Form = "text") -> list[scenes.Example]:
    return [scenes.example(split, index, task=task, form=form) for index in range(count)]


def test_it_ranks_its_own_examples() -> None:
    reward = rewards.load("scenes")
    assert rewards.self_test(reward) == len(reward.examples()) >= 4
    assert {prompt.task for prompt, _, _ in reward.examples()} == set(scenes.TASKS)


FORMS: list[tuple[Task, scenes.Form]] = [*((task, "text") for task in scenes.TASKS), ("interleaved", "edit")]


@pytest.mark.parametrize(("task", "form"), FORMS)
def test_true_outputs_score_one_and_outputs_of_other_prompts_less(task: Task, form: scenes.Form) -> None:
    shown = draw(60, task, form=form)
    outputs = [example.output for example in shown]
    reward = rewards.SceneReward()
    texts = [example.prompt.text for example in shown]
    assert reward(texts, outputs, **columns(shown)) == [1.0] * 60
    turned = reward(texts, outputs[1:] + outputs[:1], **columns(shown))
    assert float(np.mean([value for value in turned if value is not None])) < 0.5


def test_the_score_is_that_of_the_pixels() -> None:
    """One object is painted over; only that changes the score, and the prompt's own scene is never consulted."""
    shown = draw(40, "t2i")
    images = [example.output.image.copy() for example in shown if example.output.image is not None]
    for example, image in zip(shown, images, strict=True):
        gone = example.scene.objects()[0]
        image[gone.row * 8 : gone.row * 8 + 8, gone.column * 8 : gone.column * 8 + 8] = 208
    scores = rewards.SceneReward().score([""] * 40, [Output(image=image) for image in images], **columns(shown))
    for example, score in zip(shown, scores, strict=True):
        assert score is not None and score.strict is False and score.value < 1
        gone = example.scene.objects()[0]
        assert score.credit is not None and score.credit[gone.row, gone.column] == 0


def test_the_plan_of_a_t2i_output_is_ignored_and_that_of_an_interleaved_one_is_not() -> None:
    reward = rewards.SceneReward()
    for task, expected in (("t2i", True), ("interleaved", False)):
        shown = draw(20, task)  # type: ignore[arg-type]
        outputs = [Output("nonsense", example.output.image) for example in shown]
        assert [score and score.strict for score in reward.score([""] * 20, outputs, **columns(shown))] == [expected] * 20


def test_guesses_and_finals_are_judged_alike() -> None:
    (shown,) = draw(1, "interleaved")
    blank = Output("", scenes.render(scenes.Scene.empty()))
    rollout = Rollout(shown.prompt, 0, 0, 0, 4, (0, 2), (), shown.output, (blank, shown.output))
    (judged,) = rewards.score_rollouts(rewards.SceneReward(), [rollout])
    assert [score and (score.value, score.strict) for score in (judged.final, *judged.steps)] == [(1.0, True), (0.0, False), (1.0, True)]


def test_all_tasks_mix_in_one_batch_and_score_as_they_do_alone() -> None:
    shown = [example for index in range(4) for task, form in FORMS for example in draw(index + 1, task, "pretrain", form)[-1:]]
    outputs = [Output(b.output.text or "", a.output.image) for a, b in zip(shown, shown[6:] + shown[:6], strict=True)]
    scores = rewards.SceneReward().score([""] * len(shown), outputs, **columns(shown))
    for example, output, score in zip(shown, outputs, scores, strict=True):
        alone = scenes.score(example.prompt.task, example.prompt.spec, output)
        assert score is not None and (score.value, score.strict, score.atoms) == (alone.value, alone.strict, alone.atoms)
        assert (score.credit is None) == (example.output.image is None)
    assert rewards.SceneReward()([], [], task=[], spec=[]) == []


def test_outputs_that_cannot_be_scored_are_errors() -> None:
    (shown,) = draw(1, "interleaved")
    reward = rewards.SceneReward()
    for output, tokens in (
        (Output(text="."), ("image", "interleaved")),
        (Output(".", np.zeros((16, 16, 3), np.uint8)), ("[16, 16, 3]", "interleaved")),
        (Output(".", np.zeros((32, 32, 3), np.float32)), ("float32",)),
        (Output(None, shown.output.image), ("text", "interleaved")),
    ):
        with pytest.raises(ValueError, match=telling(*tokens)):
            reward([""], [output], **columns([shown]))
    with pytest.raises(ValueError, match=telling("scenes", "spec")):
        reward([""], [shown.output], task=["t2i"])
    with pytest.raises(ValueError, match=telling("t2t", "'paint'")):
        reward([""], [shown.output], task=["paint"], spec=[{}])
    with pytest.raises(ValueError, match=telling("text", "i2t")):
        reward([""], [Output()], **columns(draw(1, "i2t")))
    with pytest.raises(ValueError, match=telling("source")):
        reward([""], [Output("two")], task=["i2t"], spec=[{}])
    with pytest.raises(ValueError, match=telling(1, 2)):
        reward([""], [shown.output], task=["t2i"] * 2, spec=[{}] * 2)


def test_rewards_import_neither_policies_nor_torch() -> None:
    code = "import sys, rewards; sys.exit(bool({'torch', 'ray', 'policies'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
