"""Whatever ends a program is one line and an exit code."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pararl.config import ConfigError
from pararl.errors import in_words, told


def raising(error: BaseException) -> Callable[[], None]:
    def main() -> None:
        raise error

    return told(main)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ConfigError("run.seed must be 0"), 2, ("run.seed must be 0",)),
        (RuntimeError("learner failed in update"), 1, ("learner failed in update",)),
        (ValueError("two\nlines"), 1, ("two lines",)),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/runs/a/metrics.jsonl"), 1, ("/runs/a/metrics.jsonl", "No space left", "free")),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/runs/a"), 1, ("/runs/a", "Permission denied")),
        (KeyboardInterrupt(), 130, ("stopped",)),
        (SystemExit(7), 7, ()),
    ],
)
def test_an_error_is_one_line_and_its_code(
    error: BaseException, code: int, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        raising(error)()
    line = capsys.readouterr().err
    assert exit.value.code == code and line.count("\n") == bool(words) and all(word in line for word in words)
    assert "Traceback" not in line and (not words or line.startswith("pararl: error: "))


@pytest.mark.parametrize("error", [TypeError("cannot add"), RecursionError("maximum depth"), AssertionError(), KeyError("value")])
def test_an_error_that_nobody_foresaw_says_its_kind_and_where_its_traceback_is(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(SystemExit) as exit:
        raising(error)()
    line = capsys.readouterr().err
    (log,) = tmp_path.iterdir()
    assert exit.value.code == 1 and line.count("\n") == 1 and type(error).__name__ in line and str(log) in line
    assert "Traceback" in log.read_text() and type(error).__name__ in log.read_text()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(SystemExit):
        raising(error)()
    assert type(error).__name__ in capsys.readouterr().err, "a full disk takes the traceback, not the line"


def test_a_program_returns_as_it_did() -> None:
    seen: list[int] = []
    told(lambda: seen.append(1))()
    assert seen == [1]


def test_an_error_of_the_disk_names_the_file_and_what_to_do() -> None:
    assert in_words(OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), "x")).startswith("x: ")
    assert in_words(OSError(errno.EFBIG, os.strerror(errno.EFBIG), "a", None, "b")).startswith("a to b: ")
    assert "free" in in_words(OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))) and "free" not in in_words(OSError("odd"))
    assert "free" in in_words(Exception("Error while serializing: I/O error: No space left on device (os error 28)"))


def test_a_reader_that_has_gone_is_no_error() -> None:
    program = "import sys; from pararl.errors import told; told(lambda: [print(i) for i in range(10**6)])()"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "0\n"
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait(20) == 141


def test_a_reader_that_has_gone_before_a_short_answer_is_no_error() -> None:
    program = "import sys; from pararl.errors import told; told(lambda: [sys.stdin.read(), print(1)])()"
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}  # which writes at once
    process = subprocess.Popen([sys.executable, "-c", program], env=environment, text=True, **pipes)
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    process.stdout.close()
    process.stdin.close()  # only now it writes
    assert process.stderr.read() == "" and process.wait(20) == 141
