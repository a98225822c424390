"""Several runs as one study."""

import json
from pathlib import Path

import pytest
import yaml

from pipelines import study
from tests.pipelines.programs import SMOKE, finish, start


def test_a_study_compares_settings_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    small = ["--run.arms", "pararl_grpo", "--run.updates", "1", "--eval.splits", "id", "--eval.prompts", "8"]
    small += ["--prefer.credit", "1", "--curriculum.tasks", "t2i,interleaved_edit"]
    command = ["--config", str(SMOKE), "--seeds", "5", "--out", str(tmp_path), "--vary", "learner.lr=1e-9,1e-3", *small]
    finish(start(*command, script="study.py"))
    table = (tmp_path / "sweep.md").read_text()
    assert "| lr=1e-9 | " in table and "| lr=1e-3 | " in table
    for lr in ("1e-9", "1e-3"):
        run = tmp_path / f"lr={lr}" / "seed-5"
        config = yaml.safe_load((run / "config.yaml").read_text())
        assert config["arm"]["pararl_grpo"]["learner.lr"] == float(lr) and config["run"]["seed"] == 5
        assert f"{json.loads((run / 'summary.json').read_text())['arms']['pararl_grpo']['id']['strict']:.3f}" in table
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("summary.json")}
    output = finish(start(*command, script="study.py"))
    assert output.count("finished before") == 2
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("summary.json")} == before


def test_a_study_tells_mistakes_before_the_first_run(tmp_path: Path) -> None:
    for vary, told in (("learner.lr=1e-4,-1", "-1"), ("learner.lr", "section.key=value"), ("learner.speed=1", "learner.speed")):
        process = start("--out", str(tmp_path / "s"), "--vary", vary, script="study.py")
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 2 and told in output and len(output.strip().splitlines()) == 1
    process = start("--out", str(tmp_path / "s"), "--seeds", "0,0", script="study.py")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2 and "--seeds '0,0'" in output and len(output.strip().splitlines()) == 1
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"seed": 0, "base": 3, "arms": {}}', "[" * 100_000])
def test_a_summary_that_is_none_is_told_before_the_first_run(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "seed-1").mkdir()
    (tmp_path / "seed-1" / "summary.json").write_text(text)
    monkeypatch.setattr(study, "run_seed", lambda *_: pytest.fail("a run was started"))
    monkeypatch.setattr("sys.argv", ["study.py", "--seeds", "0,1", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        study.main()
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1 and str(tmp_path / "seed-1" / "summary.json") in error
