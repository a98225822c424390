"""An empty working folder for the tests of settings, and the line that a bad command line is refused with."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pararl import policy_files
from pararl.cli import parse as cli

Complaint = Callable[[list[str]], str]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with one embedded policy, so that no test depends on the checkout's."""
    (tmp_path / "checkpoints" / "scenes-mmada").mkdir(parents=True)
    settings = {"family": "mmada", "settings": {"text_tokens": 24, "text_block": 12}}
    (tmp_path / "checkpoints" / "scenes-mmada" / "policy.json").write_text(json.dumps(settings))
    monkeypatch.setattr(policy_files, "EMBEDDED", tmp_path / "checkpoints")
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


def written(text: str, name: str = "job.yaml") -> str:
    Path(name).write_text(text, encoding="utf-8")
    return name


@pytest.fixture
def complaint(capsys: pytest.CaptureFixture[str], elsewhere: Path) -> Complaint:
    """The one line that a command line is refused with; nothing may be written to the working folder."""

    def refuse(argv: list[str]) -> str:
        before = sorted(Path().rglob("*"))
        with pytest.raises(SystemExit) as stopped:
            cli.parse(argv)
        captured = capsys.readouterr()
        assert stopped.value.code == 2
        assert captured.out == ""
        assert captured.err.startswith("pararl: error: ") and captured.err.count("\n") == 1 and captured.err.endswith("\n")
        assert sorted(Path().rglob("*")) == before
        return captured.err

    return refuse
