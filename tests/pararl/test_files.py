"""Files are whole or not there."""

from pathlib import Path

import pytest

from pararl.files import append_line, atomic_path, keep_lines, read_lines, write_json


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(path, {"x": float("nan")})
    with pytest.raises(OSError, match="disk"), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise OSError("disk")
    assert path.read_text() == '{\n  "x": 1\n}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_atomic_path_makes_the_folder_and_keeps_the_suffix(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "samples" / "a.png") as temporary:
        assert (temporary.parent, temporary.suffix) == (tmp_path / "samples", ".png")
        temporary.write_text("x")
        assert not (tmp_path / "samples" / "a.png").exists()
    assert [file.name for file in (tmp_path / "samples").iterdir()] == ["a.png"]


def test_lines_round_trip_to_the_last_bit_and_an_unfinished_one_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    assert read_lines(path) == []
    for i in range(3):
        append_line(path, {"i": i, "third": i / 3})
    with path.open("a") as file:
        file.write('{"i": 3')
    assert read_lines(path) == [{"i": i, "third": i / 3} for i in range(3)]
    assert keep_lines(path, lambda row: row["i"] != 1) == 1
    assert path.read_text() == '{"i": 0, "third": 0.0}\n{"i": 2, "third": 0.6666666666666666}\n'


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"i": 0}\n{"i": \n{"i": 2}\n')
    with pytest.raises(ValueError, match=r"m\.jsonl, line 2 is not JSON"):
        read_lines(path)
