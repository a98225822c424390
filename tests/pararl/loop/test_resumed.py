"""A run that is gone on with: whether anything is left to do, and names of today for the arms of an older run."""

import json
from pathlib import Path
from typing import Any

import pytest

from pararl.config import ConfigError
from pararl.evaluation.summary import ArmResult, BaseResult, SplitResult, Summary
from pararl.files import append_line, read_lines, write_json
from pararl.loop import checkpoint
from pararl.loop.resumed import LAST, closing, finished, rename_arms
from tests.wording import telling

SPLIT = SplitResult(0.5, 0.25, 16)


def arm(name: str) -> ArmResult:
    return ArmResult(SPLIT, None, 3, 96, 1.5, 0.01, f"adapters/{name}")


def older(summary: Summary) -> dict[str, Any]:
    """As an older version wrote it."""
    written = summary.to_json()
    return {**written, "arms": {{"online_dpo": "output"}.get(name, name): result for name, result in written["arms"].items()}}


def test_a_run_is_finished_where_its_summary_has_every_arm(tmp_path: Path) -> None:
    assert finished(tmp_path, ("pararl",), 3) is None
    summary = Summary(0, BaseResult(SPLIT, None), {"pararl": arm("pararl"), "online_dpo": arm("output")})
    write_json(tmp_path / "summary.json", older(summary))
    assert finished(tmp_path, ("pararl", "online_dpo"), 3) is None, "killed while it drew its pictures"
    (tmp_path / LAST).touch()
    assert finished(tmp_path, ("pararl", "online_dpo"), 3) == summary
    assert finished(tmp_path, ("pararl", "offline_dpo"), 3) is None
    assert finished(tmp_path, ("pararl", "online_dpo"), 4) is None, "it is to have more updates now"
    told = closing(tmp_path, summary)
    assert "online_dpo" in told and "summary.json, curves.png, samples/" in told


@pytest.mark.parametrize("text", ["{", "[]", '{"seed": 0}', '{"seed": 0, "base": 3, "arms": {}}'])
def test_a_summary_that_is_none_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "summary.json").write_text(text)
    (tmp_path / LAST).touch()
    with pytest.raises(ConfigError, match=telling(tmp_path / "summary.json", "--resume")):
        finished(tmp_path, ("pararl",), 3)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """What an older version leaves that was killed, its arm output with a result, and a checkpoint aside."""
    for place in ("results/output", "checkpoints/output", "checkpoints/.output.old", "checkpoints/pararl"):
        checkpoint.save(tmp_path / place, {}, {"place": place})
    (tmp_path / "adapters" / "output").mkdir(parents=True)
    for name, value in (("output", 0.1), ("pararl", 1e-7), ("output", 0.30000000000000004)):
        append_line(tmp_path / "metrics.jsonl", {"arm": name, "update": 1, "samples": 4, "reward/mean": value})
    write_json(tmp_path / "wandb" / "ids.json", {"pararl": "11", "output": "22"})
    summary = Summary(0, BaseResult(SPLIT, None), {"online_dpo": arm("output")}).to_json()
    write_json(tmp_path / "results" / "output.json", summary["arms"]["online_dpo"])
    return tmp_path


def test_what_an_older_run_kept_is_found_by_the_names_of_today(old: Path) -> None:
    for _ in range(2):  # whatever a kill left undone is done by the next attempt
        rename_arms(old)
        assert not [path for path in old.rglob("*") if "output" in path.name]
        for place in ("results", "checkpoints"):
            found = checkpoint.load(old / place / "online_dpo")
            assert found is not None and found[1] == {"place": f"{place}/output"}
        assert checkpoint.load(old / "checkpoints" / "pararl") is not None
        rows = [(row["arm"], row["reward/mean"]) for row in read_lines(old / "metrics.jsonl")]
        assert rows == [("online_dpo", 0.1), ("pararl", 1e-7), ("online_dpo", 0.30000000000000004)]
        assert json.loads((old / "wandb" / "ids.json").read_text()) == {"pararl": "11", "online_dpo": "22"}
        result = ArmResult.from_json(json.loads((old / "results" / "online_dpo.json").read_text()))
        assert result == arm("online_dpo") and (old / result.adapter).is_dir()


def test_a_run_of_today_is_left_as_it_is(tmp_path: Path) -> None:
    append_line(tmp_path / "metrics.jsonl", {"arm": "online_dpo", "update": 0, "samples": 0})
    before = (tmp_path / "metrics.jsonl").stat().st_mtime_ns
    rename_arms(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"] and (tmp_path / "metrics.jsonl").stat().st_mtime_ns == before
