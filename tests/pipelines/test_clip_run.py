"""A whole run on the CLIP reward of the embedded model, measured by the exact one; resumed, it keeps its scale."""

import json
import shutil
from pathlib import Path

from pararl.files import read_lines
from tests.pipelines.programs import ONE_TASK, SMALL, finish, start

REWARDS = ["--reward.name", "scenes-clip", "--reward.calibration", "16", "--eval.reward", "scenes", "--run.arms", "pararl"]


def test_a_run_on_clip_rewards_shows_the_exact_score_beside_and_resumes_to_the_same_metrics(tmp_path: Path) -> None:
    finish(start(*SMALL, *ONE_TASK, *REWARDS, "--run.dir", str(tmp_path), "--run.name", "clip"))
    run = tmp_path / "clip"
    scale = json.loads((run / "calibration.json").read_text())
    assert scale["count"] == 16 and 0 < scale["mean"] < 1 and scale["deviation"] > 0
    first = [row for row in read_lines(run / "metrics.jsonl") if "reward/mean" in row]
    assert [row["update"] for row in first] == [1, 2, 3]
    for row in first:
        assert 0 <= row["reward/mean"] <= 1 and 0 <= row["reward/measured_strict"] <= row["reward/measured"] <= 1
        assert abs(row["reward/raw"] - scale["mean"]) < 5 * scale["deviation"] and "reward/strict" not in row
    summary = json.loads((run / "summary.json").read_text())
    assert summary["base"]["id"]["strict"] is not None and summary["arms"]["pararl"]["id"]["strict"] is not None

    # As if it had been killed before its first checkpoint.
    (run / "summary.json").unlink()
    for place in ("results", "checkpoints"):
        shutil.rmtree(run / place / "pararl")
    (run / "results" / "pararl.json").unlink()
    finish(start("--resume", str(run)))
    assert json.loads((run / "calibration.json").read_text()) == scale
    again = [row for row in read_lines(run / "metrics.jsonl") if "reward/mean" in row]
    assert [row["reward/mean"] for row in again] == [row["reward/mean"] for row in first]
    assert json.loads((run / "summary.json").read_text())["arms"]["pararl"]["id"] == summary["arms"]["pararl"]["id"]
