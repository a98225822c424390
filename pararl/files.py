"""Files and folders that are either whole or not there: atomic writes, JSON, and the one-object-per-line log of metrics.

A path has one writer at a time. A writer that is killed leaves the old contents, and what else it leaves the next writer clears away.
"""

import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pararl.readers import FileError, parse_json, read_text


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keep a folder from other processes of this machine that claim it; its files stay as they are, and a process that dies lets go.

    Raises BlockingIOError where another one has it, and OSError where it is not there.
    """
    # The folder itself is locked, so that a killed process leaves no lock file behind.
    opened = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(f"another process is at work in {folder}: wait for it, or stop it") from error
        except OSError:  # a file system without locks, where the user keeps count
            pass
        yield
    finally:
        os.close(opened)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it when the block ends, and is removed when the block raises.

    It keeps the suffix of `path`, because image libraries choose the format by it. The parent folder is made. After the block the file is
    on disk. Raises what the block raises, and OSError where the disk does.
    """
    temporary = _beside(path, path.stem, path.suffix)
    try:
        yield temporary
        # The contents before the name: after a power cut a renamed file could otherwise be empty.
        _to_disk(temporary)
        os.replace(temporary, path)
        _to_disk(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder` that takes its place when the block ends, and is removed when the block raises.

    The parent folder is made. After the block all its files are on disk. A folder cannot replace another in one step: whoever reads one
    that may have lost its writer finds it by ``latest``. Raises what the block raises, and OSError where the disk does.
    """
    folder = folder.resolve()  # a link stays one, and "." has a name
    temporary, old = _beside(folder, folder.name), _old(folder)
    temporary.mkdir()
    try:
        yield temporary
        _all_to_disk(temporary)
        if folder.exists():
            # Only while the folder itself is there: without it a killed writer's `old` is the last that anyone has.
            shutil.rmtree(old, ignore_errors=True)
            os.replace(folder, old)
        os.replace(temporary, folder)
        _to_disk(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def latest(folder: Path) -> Path:
    """Where to read what ``atomic_folder`` last wrote as ``folder``: there, or beside it if the writer was killed between its two renames.

    The path exists if any was ever written.
    """
    folder = folder.resolve()
    return folder if folder.exists() or not _old(folder).exists() else _old(folder)


@contextmanager
def atomic_files(folder: Path, last: str) -> Iterator[Path]:
    """A new folder whose files take the places of those of the same names in `folder` when the block ends; what else lies there stays.

    For a folder that holds other things as well. It is made where it is missing. Every file is whole at any moment; all of them together
    are not. The one called `last` comes last, so a new folder that has it has all. A block that raises leaves the old ones. Raises what the
    block raises, and OSError where the disk does.
    """
    temporary = _beside(folder / "files", "files")
    temporary.mkdir()
    try:
        yield temporary
        _all_to_disk(temporary)
        for file in sorted((path for path in temporary.rglob("*") if path.is_file()), key=lambda path: path.name == last):
            place = folder / file.relative_to(temporary)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, place)
        _to_disk(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _beside(path: Path, stem: str, suffix: str = "") -> Path:
    """A free name in the folder of ``path``, which is made; what killed writers of ``path`` left under such names is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    form = re.compile(rf"\.{re.escape(stem)}\.(\d+)\.tmp{re.escape(suffix)}")
    for entry in path.parent.iterdir():
        # The number of the writer's process is in the name, so that a writer at work is told from one that was killed.
        if (found := form.fullmatch(entry.name)) and not _another_runs(int(found[1])):
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)
    return path.with_name(f".{stem}.{os.getpid()}.tmp{suffix}")


def _another_runs(process: int) -> bool:
    """Whether a process of this number, not this one, runs on this machine."""
    try:
        os.kill(process, 0)
    # OverflowError: any digits may stand in a name.
    except (ProcessLookupError, OverflowError):
        return False
    # It runs, under another user.
    except PermissionError:
        return True
    # A path has one writer at a time, so a file with our number is left by a process that had it before us.
    return process != os.getpid()


def _all_to_disk(folder: Path) -> None:
    for place, _, names in os.walk(folder):
        # "" is the folder itself: without it the names of its files may be lost.
        for name in (*names, ""):
            _to_disk(Path(place, name))


def _to_disk(path: Path) -> None:
    """Wait until the contents of a file, or the names in a folder, would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # some network file systems refuse it for folders
            raise
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all. Raises ValueError on NaN and infinities, which JSON does not have."""
    text = json.dumps(value, indent=2, allow_nan=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def append_line(path: Path, row: Mapping[str, Any]) -> None:
    """Append `row` as one line of JSON, on disk when this returns. Raises ValueError on NaN and infinities."""
    line = json.dumps(row, allow_nan=False)
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


METRIC_ROW: Mapping[str, type] = {"arm": str, "update": int}
"""What every row of ``metrics.jsonl`` has."""


def read_lines(path: Path, kinds: Mapping[str, type] | None = None) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file, in order; none when it does not exist. ``kinds``: keys that every row has, and the type of each.

    A last line without its newline is what a killed writer leaves: it is passed over. Raises FileError on any other broken line, and for a
    file that is no text.
    """
    if not path.exists():
        return []
    *lines, _unfinished = read_text(path, "repair or delete it").split("\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        row = parse_json(line, path, "repair or delete that line", number)
        if not isinstance(row, dict):
            raise FileError(path, "is no JSON object", "repair or delete that line", number)
        if wrong := [key for key, kind in (kinds or {}).items() if type(row.get(key)) is not kind]:
            raise FileError(path, f"has no right {', '.join(wrong)}", "repair or delete that line", number)
        rows.append(row)
    return rows


def keep_lines(path: Path, keep: Callable[[dict[str, Any]], bool], kinds: Mapping[str, type] | None = None) -> int:
    """Rewrite a JSON-lines file with only the rows that `keep` accepts, atomically; an unfinished last line goes too.

    Returns how many rows were dropped. A file that does not exist is left so. Raises FileError as ``read_lines`` does.
    """
    if not path.exists():
        return 0
    rows = read_lines(path, kinds)
    kept = [row for row in rows if keep(row)]
    with atomic_path(path) as temporary:
        temporary.write_text("".join(json.dumps(row, allow_nan=False) + "\n" for row in kept), encoding="utf-8")
    return len(rows) - len(kept)
