"""The user's files of prompts are held against the policy and against each other before anything starts."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pararl import policy_files
from pararl.cli import parse as cli
from pararl.config import ConfigError
from pararl.data.curriculum import Curriculum
from pararl.evaluation.evaluation import split_prompts

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def shipped(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working folder beside the shipped policies."""
    monkeypatch.setattr(policy_files, "EMBEDDED", ROOT / "policies" / "checkpoints")


def write(name: str, rows: list[dict[str, Any]]) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def questions(name: str, count: int, side: int) -> str:
    Image.fromarray(np.full((side, side, 3), 90, np.uint8)).save(f"{side}.png")
    return write(name, [{"prompt": "how many circles are there ?", "id": i, "images": [f"{side}.png"]} for i in range(count)])


TRAIN = ["--reward.name", "mine:judge", "--rollout.prompts", "2"]


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        cli.parse(argv)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    ("policy", "side", "settings"),
    [
        ("scenes-mmada", 32, []),
        ("showlab/show-o", 256, ["--rollout.steps", "16"]),
        ("Gen-Verse/MMaDA-8B-Base", 512, ["--rollout.steps", "16"]),
    ],
)
def test_pictures_of_another_size_are_refused_or_fitted_for_embedded_and_released_policies(
    policy: str, side: int, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--policy.name", policy, "--curriculum.file", questions("own.jsonl", 3, 48), "--curriculum.tasks", "i2t", *TRAIN, *settings]
    told = refused(argv, capsys)
    assert (
        "curriculum.file: own.jsonl has 3 problems: line 1: " in told and f"[{side}, {side}]" in told and "--curriculum.image_fit" in told
    )
    measured = ["--eval.file", "own.jsonl", "--eval.splits", "id"]
    for how in ("crop", "pad"):
        config = cli.parse([*argv, *measured, "--curriculum.image_fit", how]).config
        for prompt in (*Curriculum(config).next(), *split_prompts("id", "i2t", 2, config)):
            assert prompt.image is not None and prompt.image.shape == (side, side, 3)


def test_prompts_that_are_trained_on_and_measured_are_told_in_a_line_and_the_run_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["one red circle", "two red circles", "one blue square", "two blue squares"]
    train = write("train.jsonl", [{"prompt": text} for text in words])
    test = write("test.jsonl", [{"prompt": text, "id": f"t{i}"} for i, text in enumerate(["three red circles", *words[1:3]])])
    argv = ["--curriculum.file", train, "--eval.file", test, "--eval.splits", "id", *TRAIN]
    assert cli.parse(argv).config.eval.file == test
    (line,) = capsys.readouterr().err.splitlines()
    assert "2 of the 3 prompts" in line and "eval.file" in line and "curriculum.file" in line and "t1" in line
    cli.parse([*argv[:3], write("other.jsonl", [{"prompt": "three red circles"}]), *argv[4:]])
    assert not capsys.readouterr().err


def test_words_and_lines_that_cannot_be_read_are_one_message_with_their_lines(capsys: pytest.CaptureFixture[str]) -> None:
    file = write("own.jsonl", [{"prompt": "one red circle"}, {"prompt": "a photo"}, {"text": "none"}, {"prompt": "red " * 40}])
    told = refused(["--curriculum.file", file, *TRAIN], capsys)
    assert "own.jsonl has 3 problems: line 2: " in told and "'photo'" in told and "line 3: " in told and "line 4: " in told


def test_specs_are_held_against_the_scene_reward_where_it_trains_or_measures(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = [{"prompt": "one red circle", "include": [{"class": "circle", "count": 17}], "level": 1}] * 2
    file = write("own.jsonl", [row | {"id": i} for i, row in enumerate(wrong)])
    argv = ["--curriculum.file", file, "--rollout.prompts", "2"]
    assert "unknown key 'level'" in refused(argv, capsys)
    assert "17 objects" in refused([*argv, "--reward.name", "mine:judge", "--eval.reward", "scenes"], capsys)
    assert cli.parse([*argv, "--reward.name", "mine:judge"])


def test_a_curriculum_of_a_file_that_has_changed_since_is_told(tmp_path: Path) -> None:
    config = cli.parse(["--curriculum.file", write("own.jsonl", [{"prompt": "one circle"}, {"prompt": "one square"}]), *TRAIN]).config
    Path("own.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"no file own\.jsonl"):
        Curriculum(config)


def test_pictures_of_the_scene_world_are_not_for_a_policy_of_another_size(capsys: pytest.CaptureFixture[str]) -> None:
    released = ["--policy.name", "Gen-Verse/MMaDA-8B-Base", "--rollout.steps", "16"]
    told = refused([*released, "--curriculum.tasks", "i2t,t2i"], capsys)
    assert all(part in told for part in ("curriculum.file: ", "eval.file: ", "reward.name: ", "[32, 32]", "[512, 512]"))
    assert cli.parse([*released, "--curriculum.tasks", "t2t"]), "which has no picture"
    assert cli.parse([*released, "--curriculum.tasks", "t2i", "--reward.name", "mine:judge"]), "which draws its own"
    assert cli.parse(["--curriculum.tasks", "i2t,t2i"])


@pytest.mark.parametrize(("part", "content"), [("tokenizer.json", "{}"), ("policy.json", None), ("image_tokenizer/config.json", "[]")])
def test_a_policy_whose_files_are_broken_is_told_before_prompts_are_held_against_it(
    part: str, content: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(policy_files.EMBEDDED / "scenes-mmada", "mine", ignore=shutil.ignore_patterns("*.png"))
    if content is None:
        policy = json.loads(Path("mine", part).read_text())
        del policy["settings"]["dialogue"]
        content = json.dumps(policy)
    Path("mine", part).write_text(content)
    file = write("own.jsonl", [{"prompt": "one circle"}, {"prompt": "one square"}])
    assert f"policy.name: mine/{part}" in refused(["--policy.name", "mine", "--curriculum.file", file, *TRAIN], capsys)
