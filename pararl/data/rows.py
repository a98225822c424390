"""The records of a source one by one, each with its place: JSON lines, JSON, CSV, Parquet, and what ``datasets`` saves or downloads.

Nothing is decoded but text and JSON: pictures come as they are stored. What is wrong with one record does not hide the others.
"""

import codecs
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pararl.config import ConfigError
from pararl.readers import strict_json

LINE = 2**24
"""Most bytes of a line: 16 MiB."""
WHOLE = 2**30
"""Most bytes of a line of a ``.json`` file, which may hold them all."""
DEPTH = 32
"""Most lists and objects within each other."""
LINES = (".jsonl", ".ndjson")
TABLES = (".json", ".csv", ".parquet")


@dataclass(frozen=True, slots=True)
class Row:
    """One record of a source."""

    where: str
    """``line 3`` of a file of lines, ``row 2`` (the first is 0) of a table."""
    value: Any
    """The record; None where there is a problem."""
    problem: str = ""
    """Why it cannot be read; empty = it can."""

    @property
    def number(self) -> str:
        return self.where.rpartition(" ")[2]


def rows_of(source: str) -> Iterable[Row]:
    """The records of a file, a folder of ``datasets`` or a data set on the hub. Raises ConfigError, or OSError, for one that cannot be
    read; the iterator does too."""
    path = Path(source)
    kind = path.suffix.lower()
    if kind in LINES + TABLES and not path.is_dir():
        if not path.is_file():
            raise ConfigError(f"there is no file {source}")
        return _FILES[kind](path)
    if path.is_dir() or (source.count("/") == 1 and not kind):
        return _data_set(source)
    raise ConfigError(f"{source} is no {', '.join(LINES + TABLES)} file, no folder of a data set, and no owner/name of the hub")


def parse_json(text: str) -> Any:
    """The value of a JSON text. Raises ValueError as ``strict_json`` does, and for too deep a nesting."""
    try:
        return strict_json(text)
    except RecursionError as error:
        raise ValueError(f"more than {DEPTH} lists and objects are within each other") from error


def check_depth(value: Any) -> None:
    """Raise ValueError for a value with more than ``DEPTH`` lists and objects within each other."""
    level = [value]
    for _ in range(DEPTH + 1):
        level = [part for outer in level if isinstance(outer, list | tuple | Mapping) for part in _parts(outer)]
        if not level:
            return
    raise ValueError(f"more than {DEPTH} lists and objects are within each other")


def _parts(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, Mapping) else value


def _lines(path: Path) -> Iterator[Row]:
    """The records of JSON lines; blank lines hold none."""
    for where, text, problem in _texts(path):
        if problem:
            yield Row(where, None, problem)
        elif text.strip():
            try:
                yield Row(where, parse_json(text))
            except ValueError as error:
                yield Row(where, None, f"not JSON: {error}")


def _texts(path: Path, most: int = LINE) -> Iterator[tuple[str, str, str]]:
    """Per line of a file in UTF-8 its place, its text, and what is wrong with it."""
    with path.open("rb") as file:
        number = 0
        while line := _line(file, most):
            number += 1
            where = f"line {number}"
            if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in line:
                yield where, "", "not UTF-8 (UTF-16, it seems); save the file as UTF-8"
                return  # where its lines end is not known either
            if len(line) > most:
                yield where, "", f"a line has at most {most:,} bytes"
                continue
            try:
                # Windows puts a mark in front of the first line, and files that were joined have it in front of others.
                yield where, line.decode("utf-8-sig"), ""
            except UnicodeDecodeError as error:
                yield where, "", f"not UTF-8 ({error.reason} at byte {error.start + 1} of the line); save the file as UTF-8"


def _line(file: BinaryIO, most: int) -> bytes:
    """The next line; of one that is too long the beginning, the rest being passed over."""
    line = rest = file.readline(most + 1)
    while len(rest) > most and not rest.endswith(b"\n"):
        rest = file.readline(most + 1)
    return line


def _json(path: Path) -> Iterable[Row]:
    """A list of records, one record over several lines, or JSON lines."""
    lines = list(_texts(path, WHOLE))
    if told := [Row(where, None, problem) for where, _, problem in lines if problem]:
        return told
    text = "".join(text for _, text, _ in lines)
    try:
        found = parse_json(text)
    except ValueError as error:
        if text.lstrip().startswith("["):
            raise ConfigError(f"{path} is not JSON: {error}") from error
        return _lines(path)
    return [Row(f"row {number}", value) for number, value in enumerate(found if isinstance(found, list) else [found])]


def _csv(path: Path) -> Iterable[Row]:
    """A table whose first line has the names of the columns."""
    if told := [Row(where, None, problem) for where, _, problem in _texts(path) if problem]:
        return told
    return _data_set(str(path))


def _parquet(path: Path) -> Iterator[Row]:
    """The rows of a Parquet file, as they are stored."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            yield from _numbered(batch.to_pylist() for batch in file.iter_batches(64))
    except (pa.ArrowException, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as Parquet: {error}") from error


def _data_set(source: str) -> Iterator[Row]:
    """The rows of what ``datasets`` reads."""
    import datasets

    path = Path(source)
    try:
        if path.is_dir():
            found = datasets.load_from_disk(source)
        elif path.is_file():
            found = datasets.load_dataset(path.suffix[1:].lower(), data_files=source, split="train")
        else:
            name, _, split = source.partition(":")
            found = datasets.load_dataset(name, split=split or "train")
        if isinstance(found, datasets.DatasetDict):
            raise ConfigError(f"{source} holds the splits {', '.join(found)}: name the folder of one of them")
        # As Arrow tables, in which pictures are the bytes that are stored: `datasets` decodes them in its own way.
        yield from _numbered(table.to_pylist() for table in found.with_format("arrow").iter(64))
    except ConfigError:
        raise
    except Exception as error:  # of every library that `datasets` reads or downloads with
        raise ConfigError(f"{source} is no data set that can be read: {type(error).__name__}: {error}") from error


def _numbered(batches: Iterable[list[Any]]) -> Iterator[Row]:
    for number, value in enumerate(value for batch in batches for value in batch):
        yield Row(f"row {number}", value)


_FILES = {".jsonl": _lines, ".ndjson": _lines, ".json": _json, ".csv": _csv, ".parquet": _parquet}
