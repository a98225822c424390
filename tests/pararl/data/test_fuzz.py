"""Whatever is given as prompts or as a picture is read, or told in one line: no other error comes out.

15,000 inputs in all, the same in every run: docs/prompts_and_rewards.md says so. Each example holds ``BATCH`` of them.
"""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pararl.config import ConfigError
from pararl.data.own import Own
from pararl.images import FORMATS, fitted, read_image
from pararl.scenes.edits import OPERATIONS
from pararl.scenes.spec import ENTRY_KEYS, KEYS
from pararl.scenes.world import COLOURS, RELATIONS, SHAPES
from pararl.types import TASKS

BATCH = 25
Case = Callable[[Callable[..., None]], Callable[..., None]]


def inputs(count: int) -> Case:
    """How many examples are tried; the same ones every time, because a test that fails now and then is no test."""
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
    return settings(max_examples=count // BATCH, deadline=None, derandomize=True, database=None, suppress_health_check=checks)


def batch(of: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(of, min_size=BATCH, max_size=BATCH)


def file_of(form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), (90, 0, 0)).save(file, form, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("fuzz")
    (found / "a.png").write_bytes(file_of())
    (found / "b.png").write_bytes(file_of()[:60])
    return found


def read(place: Path) -> None:
    """What a run does with a file, for every reward and every way with pictures."""
    for own in (
        Own(str(place), "scenes", False, (32, 32), "refuse"),
        Own(str(place), "scenes", True, None, "refuse"),
        Own(str(place), "mine:judge", True, (5, 9), "crop"),
    ):
        try:
            prompts = own.prompts()
        except ConfigError as error:
            told = str(error)
            assert str(place) in told and "\n" not in told and len(told) < 5000
            told.encode()
        else:
            json.dumps([(p.id, p.task, p.text, dict(p.spec), p.split) for p in prompts], allow_nan=False).encode()
            assert all(p.image is None or p.image.dtype == np.uint8 and p.image.ndim == 3 for p in prompts)


WORDS = st.sampled_from(["a.png", "b.png", "a red circle", "", "\ud800", "\0", "user", "NaN", "{}", '{"tag": 1}', "é\u2028", *TASKS])
PLAIN = st.one_of(st.none(), st.booleans(), st.integers(-3, 20), st.floats(), WORDS, st.text(max_size=4))
NAMES = st.sampled_from(
    ["bytes", "path", "role", "content", "type", "text", "image", "operation", "subject", "x", "\ud800", *ENTRY_KEYS, *KEYS]
)
VALUES = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=6)
PART = st.one_of(st.fixed_dictionaries({"type": st.sampled_from(["text", "image"])}, optional={"text": WORDS, "image": VALUES}), VALUES)
MESSAGE = st.one_of(st.fixed_dictionaries({"role": st.just("user"), "content": st.one_of(st.lists(PART, max_size=3), WORDS)}), VALUES)
POSITION = st.tuples(st.sampled_from(RELATIONS), st.integers(0, 2)).map(list)
CHOSEN = {"count": st.integers(1, 5), "color": st.sampled_from(COLOURS), "position": POSITION}
ENTRIES = st.lists(st.fixed_dictionaries({"class": st.sampled_from(SHAPES)}, optional=CHOSEN), max_size=4)
SCENE = st.lists(st.sampled_from([-1, -1, -1, 0, 7, 23]), min_size=16, max_size=16)
OBJECT = st.fixed_dictionaries({"class": st.sampled_from(SHAPES)}, optional={"color": st.sampled_from(COLOURS)})
EDIT = st.fixed_dictionaries(
    {"operation": st.sampled_from(OPERATIONS), "subject": OBJECT}, optional={"other": OBJECT, "any": st.just(True)}
)
SAID = {"prompt": st.just("a red circle")}
RIGHT = st.one_of(
    st.fixed_dictionaries(SAID | {"include": ENTRIES}, optional={"exclude": ENTRIES, "closed": st.booleans(), "tag": WORDS}),
    st.fixed_dictionaries(SAID | {"task": st.just("i2t"), "source": SCENE}, optional={"answer": WORDS}),
    st.fixed_dictionaries(SAID | {"task": st.sampled_from(TASKS), "source": SCENE, "edit": st.lists(EDIT, max_size=2)}),
    st.fixed_dictionaries(SAID | {"task": st.just("t2t"), "text": WORDS}),
    st.fixed_dictionaries({"prompt": st.lists(MESSAGE, min_size=1, max_size=2)}, optional={"images": st.lists(WORDS, max_size=2)}),
)
"""Records that are nearly right, so that what stands behind the first checks is reached."""
ODD = st.tuples(st.sampled_from([*KEYS, "prompt", "id", "task", "split", "image", "images", "spec", "other"]), st.one_of(WORDS, VALUES))
RECORD = st.one_of(*[st.builds(lambda right, odd: right | dict(odd), RIGHT, st.lists(ODD, max_size=2))] * 9, VALUES)


def lines_of(records: list[Any]) -> bytes:
    return "\n".join(map(json.dumps, records)).encode()


@inputs(6_000)
@given(batch(RECORD))
def test_records_are_read_or_told(folder: Path, records: list[Any]) -> None:
    (folder / "own.jsonl").write_bytes(lines_of(records))
    read(folder / "own.jsonl")


@inputs(3_000)
@given(batch(st.tuples(RECORD, st.integers(0, 2**16), st.binary(max_size=6))), st.sampled_from(["own.jsonl", "own.json", "own.NDJSON"]))
def test_damaged_lines_are_read_or_told(folder: Path, damaged: list[tuple[Any, int, bytes]], name: str) -> None:
    lines = []
    for record, place, content in damaged:
        line = lines_of([record])
        place %= len(line) + 1
        lines.append(line[:place] + content + line[place + len(content) // 2 :])
    (folder / name).write_bytes(b"\n".join(lines))
    read(folder / name)


@inputs(1_000)
@given(
    batch(st.one_of(st.none(), st.binary(max_size=20), st.just(file_of()), st.just(file_of("GIF")))), st.sampled_from(["image", "images"])
)
def test_columns_of_pictures_are_read_or_told(folder: Path, contents: list[bytes | None], name: str) -> None:
    held = [{"bytes": content, "path": "b.png" if k % 2 else None} for k, content in enumerate(contents)]
    column = pa.array([[h] for h in held] if name == "images" else held)
    pq.write_table(pa.table({"prompt": ["a"] * BATCH, name: column}), folder / "own.parquet")
    read(folder / "own.parquet")


MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16", "I;16B")
DAMAGE = st.tuples(st.sampled_from(["cut", "change", "insert"]), st.integers(0, 2**16), st.binary(min_size=1, max_size=5))


@inputs(3_500)
@given(st.sampled_from(MODES), st.sampled_from(FORMATS), st.integers(1, 9), st.integers(1, 9), st.integers(0, 8), batch(DAMAGE))
def test_damaged_pictures_are_read_or_told(mode: str, form: str, width: int, height: int, turn: int, damages: list[Any]) -> None:
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = turn
    picture = Image.new(mode, (width, height))
    try:
        picture.save(file, form, exif=exif)
    except (OSError, ValueError):  # the format does not hold pictures of the mode
        file = io.BytesIO()
        Image.new("RGB", (width, height)).save(file, form)
    whole = file.getvalue()
    for way, place, content in [("cut", len(whole), b""), *damages[1:]]:
        place = place % len(whole) if place != len(whole) else place
        rest = {"cut": b"", "change": content + whole[place + len(content) :], "insert": content + whole[place:]}[way]
        shown(whole[:place] + rest)


def shown(value: Any) -> None:
    try:
        pixels = read_image(value)
    except ValueError:
        return
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.size
    assert fitted(pixels, (7, 5), "crop").shape == fitted(pixels, (7, 5), "pad").shape == (7, 5, 3)


DTYPES = ("bool", "uint8", "int8", "uint16", "int32", "int64", "float16", "float32", "float64", "complex64")
SHAPE = st.lists(st.integers(0, 5), max_size=4)


@inputs(1_500)
@given(batch(st.one_of(VALUES, st.tuples(st.sampled_from(DTYPES), SHAPE, st.floats(width=32)))))
def test_arrays_and_whatever_else_are_pictures_or_told(values: list[Any]) -> None:
    for value in values:
        if not isinstance(value, tuple):
            shown(value)
            continue
        kind, shape, number = value
        with np.errstate(all="ignore"):
            numbers = np.full(shape, number)
            numbers.ravel()[:1] = 1
            shown(numbers.astype(kind))
