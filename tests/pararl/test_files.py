"""Files are whole or not there."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pararl.files import append_line, atomic_files, atomic_folder, atomic_path, claimed, keep_lines, latest, read_lines, write_json
from tests.wording import telling

ROOT = Path(__file__).resolve().parents[2]


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})
    with pytest.raises(ValueError, match="nan"):
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


def put(folder: Path, text: str) -> None:
    """Write a folder with one file that says ``text``, within another."""
    with atomic_folder(folder) as part:
        (part / "inner").mkdir()
        (part / "inner" / "file").write_text(text)


def held(folder: Path) -> str:
    return (latest(folder) / "inner" / "file").read_text()


def dies_at(call: int, die: Callable[[], None]) -> Callable[[Path, Path], None]:
    """``os.replace``, but for the ``call``-th call and all that follow."""
    real, calls = os.replace, [0]

    def replace(source: Path, target: Path) -> None:
        calls[0] += 1
        if calls[0] >= call:
            die()
        real(source, target)

    return replace


def test_a_folder_takes_the_place_of_the_old_one_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "a"
    assert latest(folder) == folder and not latest(folder).exists()
    put(folder, "old")
    (folder / "more").write_text("of the old one")
    put(folder, "new")
    assert held(folder) == "new" and [path.name for path in folder.iterdir()] == ["inner"]
    assert list(folder.parent.iterdir()) == [folder]


def test_a_full_disk_leaves_the_old_folder_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "a", "old")
    with pytest.raises(OSError, match="No space left"), atomic_folder(tmp_path / "a") as part:
        (part / "file").write_text("half")
        raise OSError("No space left on device")

    def full(descriptor: int) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)  # the kernel may find out that late
        with pytest.raises(OSError, match="No space left"):
            put(tmp_path / "a", "new")
    assert held(tmp_path / "a") == "old" and [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("calls", [(1, 1), (1, 2), (2, 1)])  # after a failure at the second one there is no folder to move away
def test_a_rename_that_fails_leaves_the_old_folder_to_its_readers(
    calls: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    put(tmp_path / "a", "old")
    for call in calls:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(os, "replace", dies_at(call, interrupt))
            put(tmp_path / "a", "new")
        assert held(tmp_path / "a") == "old"
    put(tmp_path / "a", "newer")
    assert held(tmp_path / "a") == "newer" and [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(("call", "left"), [(1, "old"), (2, "old"), (3, "new")])
def test_a_writer_killed_at_any_rename_leaves_one_folder_and_the_next_one_clears_up(call: int, left: str, tmp_path: Path) -> None:
    """Killed for good, in a process of its own: nothing of it runs any more. The third one dies before it can remove the old folder."""
    code = f"""
import os, shutil, sys
from pathlib import Path
from tests.pararl.test_files import dies_at, put
put(Path(sys.argv[1]), "old")
shutil.rmtree = lambda *_, **__: None
os.replace = dies_at({call}, lambda: os._exit(9))
put(Path(sys.argv[1]), "new")
"""
    folder = tmp_path / "a"
    killed = subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert killed.returncode == (9 if call < 3 else 0), killed.stderr
    assert held(folder) == left and len(list(tmp_path.iterdir())) == 2
    put(folder, "newer")
    assert held(folder) == "newer" and list(tmp_path.iterdir()) == [folder]


def test_what_a_killed_writer_left_goes_and_what_a_living_one_writes_stays(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    living, other = f".a.{os.getppid()}.tmp", f".a.b.{dead.pid}.tmp"
    for name in (f".a.{dead.pid}.tmp", f".a.{os.getpid()}.tmp", living, other):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    for name in (f".a.{dead.pid}.tmp.txt", f".a.{os.getppid()}.tmp.txt"):
        (tmp_path / name).touch()
    put(tmp_path / "a", "new")
    (tmp_path / "a").rename(tmp_path / "moved")
    with atomic_path(tmp_path / "a.txt") as part:
        part.touch()
    assert {path.name for path in tmp_path.iterdir()} == {"moved", "a.txt", living, other, f".a.{os.getppid()}.tmp.txt"}


def test_what_the_process_of_another_user_writes_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system tells that it runs by refusing to signal it."""
    theirs = tmp_path / f".a.{os.getppid()}.tmp"
    theirs.mkdir()

    def refused(process: int, signal: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refused)
    put(tmp_path / "a", "new")
    assert theirs.is_dir()


def test_the_working_folder_and_a_link_are_replaced_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "a", "old")
    (tmp_path / "link").symlink_to("a")
    put(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and held(tmp_path / "a") == held(tmp_path / "link") == "new"
    monkeypatch.chdir(tmp_path / "a")
    put(Path("."), "newer")
    assert held(tmp_path / "a") == "newer"


def test_files_take_their_places_one_by_one_and_leave_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, moved, real = tmp_path / "made" / "a", list[str](), os.replace

    def noted(source: Path, target: Path) -> None:
        moved.append(str(target.relative_to(folder)))
        real(source, target)

    monkeypatch.setattr(os, "replace", noted)
    for text in ("old", "new"):
        with atomic_files(folder, last="facts") as part:
            (part / "inner").mkdir()
            for name in ("facts", "weights", "inner/more"):
                (part / name).write_text(text)
        (folder / "other").touch()
        assert {moved.pop(0), moved.pop(0)} == {"weights", "inner/more"} and moved.pop() == "facts"
    with pytest.raises(OSError, match="No space left"), atomic_files(folder, last="facts") as part:
        (part / "weights").write_text("half")
        raise OSError("No space left on device")
    assert {path.name for path in folder.iterdir()} == {"facts", "weights", "inner", "other"}
    assert {(folder / name).read_text() for name in ("facts", "weights", "inner/more")} == {"new"}


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


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_json_has_not_are_never_appended(tmp_path: Path, value: float) -> None:
    append_line(tmp_path / "rows", {"a": 1})
    with pytest.raises(ValueError):
        append_line(tmp_path / "rows", {"a": value})
    assert read_lines(tmp_path / "rows") == [{"a": 1}]


def test_a_number_that_no_process_can_have_is_that_of_a_dead_one(tmp_path: Path) -> None:
    (tmp_path / f".a.{10**30}.tmp").mkdir()
    put(tmp_path / "a", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"i": 0}\n{"i": \n{"i": 2}\n')
    with pytest.raises(ValueError, match=telling("m.jsonl", "line 2")):
        read_lines(path)


def test_a_folder_is_claimed_by_one_process_until_it_ends(tmp_path: Path) -> None:
    claim = """
import pathlib, sys
from pararl.files import claimed
with claimed(pathlib.Path(sys.argv[1])):
    print("claimed", flush=True)
    input()
"""
    other = subprocess.Popen(
        [sys.executable, "-c", claim, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None and other.stdout.readline() == "claimed\n"
    with pytest.raises(BlockingIOError, match=telling(tmp_path)), claimed(tmp_path):
        pass
    other.kill()
    other.communicate()
    for _ in range(2):  # and let go of by the block
        with claimed(tmp_path):
            assert not list(tmp_path.iterdir())
