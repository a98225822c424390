"""The whole program on a user's own prompts and reward, and on a machine without what it was told to use."""

import json
import os
from pathlib import Path

import datasets
import pytest

from pararl.evaluation.summary import Summary
from tests.pipelines.programs import ONE_TASK, SMALL, finish, start

REWARD = """
import numpy as np

def brightness(prompts, completions, **columns):
    return [None if i % 5 == 4 else float(np.mean(c.image)) for i, c in enumerate(completions)]

calls = 0

def breaks(prompts, completions, **columns):
    global calls
    calls += 1
    if calls > 3:
        raise OSError("the judge is not reachable")
    return brightness(prompts, completions)
"""


def test_prompts_and_a_reward_of_the_users_own_drive_a_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(REWARD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    own = tmp_path / "own.jsonl"
    rows = [{"prompt": f"{number} red {shape}", "level": 1} for number in ("two", "three") for shape in ("circles", "squares", "crosses")]
    own.write_text("".join(json.dumps(row) + "\n" for row in rows))
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "own.parquet"))
    prompts = ["--curriculum.file", str(own), "--eval.file", str(tmp_path / "own.parquet"), "--eval.splits", "id", *ONE_TASK]
    options = ["--run.dir", str(tmp_path), "--run.name", "own", "--run.updates", "1", "--reward.name"]
    finish(start(*SMALL, *prompts, *options, "mine:brightness", modules=tmp_path / "modules"))
    loaded = set((tmp_path / "modules").read_text().split())
    assert {"pyarrow", "ray"} <= loaded and not {"mine", "torch"} & loaded, "the driver loads no torch, nor does Parquet or a reward for it"
    summary = Summary.from_json(json.loads((tmp_path / "own" / "summary.json").read_text()))
    assert summary.base.id.strict is None and summary.base.id.soft > 1
    assert set(summary.arms) == {"pararl", "offline_dpo"} and all(a.reward_calls > 0 for a in summary.arms.values())
    monkeypatch.delenv("PYTHONPATH")
    finish(start("--run", "own", "--diversity", "0", script="evaluate.py", cwd=tmp_path))  # where the reward lies, as workers find it
    report = json.loads((tmp_path / "own" / "evaluation" / "evaluation.json").read_text())["results"]["pararl"]["t2i"]["id"]
    assert "strict" not in report and report["soft"]["mean"] == pytest.approx(summary.arms["pararl"].id.soft)


def test_a_reward_that_fails_ends_the_run_with_one_line_and_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(REWARD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    process = start(*SMALL, *ONE_TASK, "--run.dir", str(tmp_path), "--run.name", "broken", "--reward.name", "mine:breaks")
    output, _ = process.communicate(timeout=200)
    last = output.strip().splitlines()[-1]
    assert process.returncode == 1 and "Traceback" not in output
    assert last.startswith("pararl: error: ") and "the judge is not reachable" in last and f"--resume {tmp_path / 'broken'}" in last
    assert "Traceback" in (tmp_path / "broken" / "errors.log").read_text()
    assert not (tmp_path / "broken" / "summary.json").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--rollout.workers", "64", "--rollout.gpus", "1"), "--learner.gpus"),
        (("--rollout.gpus", "64"), "rollout.gpus"),
        (("--track.mode", "online"), "wandb login"),
        (("--reward.name", "nobody:reward"), "'nobody'"),
        (("--reward.name", "mine:gone"), "'gone'"),
        (("--eval.reward", "mine_too:reward"), "mine_too.py, line 1"),
        (("--run.dir", "/proc/nobody"), "run.dir: /proc "),
    ],
)
def test_what_is_lacking_is_told_in_one_line_before_ray_starts_or_a_folder_is_made(
    options: tuple[str, ...], told: str, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(REWARD)
    (tmp_path / "mine_too.py").write_text("import nothing_of_that_name\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "RAY_ADDRESS"))}
    environment |= {"HOME": str(tmp_path), "PYTHONPATH": str(tmp_path), "RAY_TMPDIR": str(tmp_path / "ray")}
    process = start(*SMALL, "--rollout.workers", "2", "--run.dir", str(tmp_path / "runs"), *options, env=environment)
    output, _ = process.communicate(timeout=60)
    (line,) = output.splitlines()
    assert process.returncode == 2 and line.startswith("pararl: error: ") and told in line and "Traceback" not in output
    assert not (tmp_path / "runs").exists() and not (tmp_path / "ray").exists()
