"""Several evaluations as one table."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import report as program

ROOT = Path(__file__).resolve().parents[2]


def report(*arguments: str) -> tuple[int, str]:
    command = [sys.executable, str(ROOT / "pipelines" / "report.py"), *arguments]
    done = subprocess.run(command, text=True, capture_output=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr


def evaluation(folder: Path, base: float, arm: float) -> str:
    def of(value: float) -> dict[str, object]:
        alignment = {"mean": value / 2, "low": 0.0, "high": 1.0, "n": 4}
        return {"interleaved": {"id": {"strict": {"mean": value}, "axes": {"output_alignment": alignment}}}, "t2i": {"id": {"n": 3}}}

    folder.mkdir()
    (folder / "evaluation.json").write_text(json.dumps({"results": {"base": of(base), "pararl": of(arm)}}))
    return str(folder)


def test_means_and_gains_are_taken_over_seeds(tmp_path: Path) -> None:
    folders = [evaluation(tmp_path / "a", 0.25, 0.5), evaluation(tmp_path / "b", 0.25, 0.75)]
    code, output = report(*folders, "--figures", "strict,axes.output_alignment", "--out", str(tmp_path / "t.md"))
    rows = {line.split(" | ")[0]: line for line in output.splitlines()}
    # Two values 0.5 and 0.75: half-width t(0.975, 1) x 0.1768 / sqrt 2 = 12.706 x 0.125 = 1.588.
    assert code == 0 and "0.625 ± 1.588 (gain 0.375 ± 1.588)" in rows["| strict, interleaved, id"]
    assert "0.312 ± 0.794 (gain 0.188 ± 0.794)" in rows["| axes.output_alignment, interleaved, id"]
    assert not any("t2i" in row for row in rows), "nothing to say of it"
    assert (tmp_path / "t.md").read_text() in output


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    given = evaluation(tmp_path / "a", 0.25, 0.5)
    other = tmp_path / "other"
    other.mkdir()
    (other / "evaluation.json").write_text((tmp_path / "a" / "evaluation.json").read_text().replace('"id"', '"para"'))
    for arguments, told in (
        ((str(tmp_path),), "evaluation.json"),
        ((given, "--out", str(tmp_path)), "--out"),
        ((given, str(other)), "systems, kinds of prompts or splits"),
        ((given, "--kinds", "t2v"), "t2v"),
        ((given, "--figures", "strct"), "strct"),
        ((given, given), "same evaluation"),
        ((given, f"{given}/../a"), "same evaluation"),
        ((given, evaluation(tmp_path / "copy", 0.25, 0.5)), "same evaluation"),
    ):
        code, output = report(*arguments)
        assert code == 2 and told in output and len(output.strip().splitlines()) == 1


def test_an_unknown_metric_is_told_with_those_there_are(tmp_path: Path) -> None:
    given = evaluation(tmp_path / "a", 0.25, 0.5)
    code, output = report(given, "--metrics", "strict,strct")
    assert code == 2 and output.rstrip().endswith("no report has strct; there are strict, axes.output_alignment, n")
    assert report(given, "--metrics", "strct", "--kinds", "t2i")[1].rstrip().endswith("there are n")
    for known in ("strict", "axes.output_alignment", "n"):
        assert report(given, "--metrics", known)[0] == 0, "what is listed can be asked for"


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"results": {}}', '{"results": {"base": 3}}', '{"results": {"base": {"t2i": {"id": 1}}}}']
)
def test_an_evaluation_that_is_none_is_one_line(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "evaluation.json").write_text(text)
    monkeypatch.setattr("sys.argv", ["report.py", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        program.main()
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1
    assert str(tmp_path / "evaluation.json") in error and "pipelines/evaluate.py" in error
