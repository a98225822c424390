"""Whatever is read that is not what it should be is one line that names the file and what to do: no other error comes out of a reader."""

import ast
import io
import json
import pickle
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import save_file

from pararl.readers import (
    COPY,
    FileError,
    parse_yaml,
    read_arrays,
    read_json,
    read_tensors,
    read_text,
    read_yaml,
    record_of,
    tensor_kinds,
    told,
    weight_files,
)

ROOT = Path(__file__).resolve().parents[2]
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"
DEEP = "[" * 100_000
VALUES: dict[str, np.ndarray] = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, np.int64)}


def refused(read: Callable[[], object], path: Path, *words: str, remedy: str = COPY) -> None:
    """Reading ends with one line that names file, fault and remedy."""
    with pytest.raises(FileError) as caught:
        read()
    line = str(caught.value)
    assert str(path) in line and "\n" not in line and remedy in line, line
    assert [word for word in words if word not in line] == [], line


def written(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def pickled(value: object, old: bool = False) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=not old)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("", "empty"),
        (" \n", "empty"),
        (POINTER, "git lfs pull"),
        ("{", "not JSON"),
        ("[]", "a list"),
        ("3", "a number"),
        ("null", "null"),
        ("{}", "lacks x"),
        ('{"x": 1, "x": 2}', "'x' is given twice"),
        ('{"x": {"y": 1, "y": 2}}', "'y' is given twice"),
        ('{"x": NaN}', "NaN"),
        ('{"x": -Infinity}', "Infinity"),
        ('{"x": 1e999}', "1e999"),
        ('{"x": ' + "9" * 5000 + "}", "not JSON"),
        ('{"x": ' + DEEP, "nested too deeply"),
        ('{"x": "\xe4"}'.encode("latin-1"), "not UTF-8"),
        ('{"x": 1}'.encode("utf-16"), "not UTF-8"),
        (b"\x80\x04K\x03.", "not UTF-8"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_json_that_is_none_or_another_thing_is_one_line(tmp_path: Path, content: bytes | str, word: str) -> None:
    path = written(tmp_path / "facts.json", content)
    remedy = "git lfs pull" if content == POINTER else "make it anew"
    refused(lambda: read_json(path, "make it anew", keys=("x",)), path, word, remedy=remedy)


@pytest.mark.parametrize("read", [read_text, read_json, read_yaml, tensor_kinds, read_arrays, read_tensors])
def test_what_is_no_file_is_told_by_every_reader(tmp_path: Path, read: Callable[[Path], object]) -> None:
    refused(lambda: read(tmp_path / "gone"), tmp_path / "gone", "missing")
    refused(lambda: read(tmp_path), tmp_path, "a folder where a file")
    refused(lambda: read(Path("/dev/null")), Path("/dev/null"), "no plain file")
    pointer = written(tmp_path / "pointer", POINTER)
    refused(lambda: read(pointer), pointer, "git-lfs pointer", remedy="git lfs pull")


def test_a_file_that_may_not_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "facts.json", "{}")

    def denied(self: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)  # root, which runs the tests, may read everything
    refused(lambda: read_json(path), path, "Permission denied", remedy="permissions")


def test_text_of_windows_is_read_without_its_mark(tmp_path: Path) -> None:
    assert read_json(written(tmp_path / "a.json", b'\xef\xbb\xbf{"x": "\xc3\xa4"}')) == {"x": "ä"}


@pytest.mark.parametrize(
    "content",
    [
        "a: [",
        "a: 1\na: 2",
        "a: 2026-13-45",
        "a: !!bool maybe",
        "a: !!timestamp x",
        "a: !!int x",
        "a: !!float x",
        "a: " + "9" * 5000,
        "a: !!python/object:os.system {}",
        "? [1]\n: 2",
        "a: *nobody",
        "a: \x00",
        "a: " + DEEP,
        "- " * 20_000,
    ],
    ids=lambda value: repr(value)[:30],
)
def test_yaml_that_cannot_be_read_is_one_kind_of_error_and_one_line(tmp_path: Path, content: str) -> None:
    with pytest.raises(yaml.YAMLError):
        parse_yaml(content)
    path = written(tmp_path / "job.yaml", content)
    refused(lambda: read_yaml(path, "set --config"), path, "YAML", remedy="set --config")


def test_yaml_gives_plain_values(tmp_path: Path) -> None:
    assert read_yaml(written(tmp_path / "a.yaml", "a: {b: [1, 2.5, x]}\nc: null")) == {"a": {"b": [1, 2.5, "x"]}, "c": None}
    assert read_yaml(written(tmp_path / "b.yaml", "")) is None


def test_a_safetensors_file_is_read_to_the_last_bit_whatever_the_length_of_its_header(tmp_path: Path) -> None:
    starts = set()
    for length in range(0, 256, 8):  # headers are padded to 8 bytes: some lengths begin as a pickle does
        path = tmp_path / "a.safetensors"
        save_file(VALUES, path, metadata={"filling": "x" * length})
        starts.add(path.read_bytes()[:1])
        assert tensor_kinds(path) == {"a": ("F32", (2, 3)), "b": ("I64", (2,))}
        arrays, tensors = read_arrays(path), read_tensors(path)
        assert all(np.array_equal(arrays[name], x) and np.array_equal(tensors[name].numpy(), x) for name, x in VALUES.items())
    assert b"\x80" in starts


def test_a_safetensors_file_cut_short_anywhere_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(VALUES, path)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        refused(lambda: tensor_kinds(path), path, "empty" if size == 0 else f"not whole: it ends after {size} bytes")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (pickled({"a": torch.ones(2)}), ("a pickle of torch", "save it with safetensors")),
        (pickled({"a": torch.ones(2)}, old=True), ("a pickle of torch",)),
        ("<!DOCTYPE html><html>sign in</html>", ("a web page",)),
        (b"\x08\x00\x00\x00\x00\x00\x00\x00{'a': 1}" + b"0" * 9, ("not safetensors",)),
        ("just some words that are no weights at all", ("not ",)),
        (json.dumps({"a": 1}), ("not ",)),
    ],
    ids=["pickle", "old pickle", "web page", "header", "text", "JSON"],
)
def test_what_is_no_safetensors_is_told_as_what_it_is(tmp_path: Path, content: bytes | str, words: tuple[str, ...]) -> None:
    path = written(tmp_path / "a.safetensors", content)
    for read in (tensor_kinds, read_arrays, read_tensors):
        refused(lambda read=read: read(path), path, *words, remedy="(")  # type: ignore[misc]


def test_bytes_that_are_changed_anywhere_are_read_or_told(tmp_path: Path) -> None:
    path, draw = tmp_path / "a.safetensors", random.Random(0)
    save_file(VALUES, path)
    whole, refusals = path.read_bytes(), 0
    for _ in range(300):
        changed = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            changed[draw.randrange(len(whole) - 40)] = draw.randrange(256)  # the header, most of it
        path.write_bytes(changed)
        try:
            read_arrays(path)
        except FileError:
            refusals += 1
    assert refusals > 200


def test_weights_in_parts_must_all_be_there(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    for name in ("one", "two"):
        save_file({name: np.ones(2, np.float32)}, tmp_path / f"{name}.safetensors")
    index.write_text(json.dumps({"weight_map": {"one": "one.safetensors", "two": "two.safetensors"}}))
    assert [file.name for file in weight_files(tmp_path)] == ["one.safetensors", "two.safetensors"]
    (tmp_path / "two.safetensors").unlink()
    refused(lambda: weight_files(tmp_path), tmp_path / "two.safetensors", "missing")
    for wrong in ("{}", '{"weight_map": {}}', '{"weight_map": []}', '{"weight_map": {"a": 3}}', '{"weight_map": {"a": "../secret"}}'):
        index.write_text(wrong)
        refused(lambda: weight_files(tmp_path), index, "weight_map")


def test_no_weights_and_weights_that_may_run_code_are_told(tmp_path: Path) -> None:
    refused(lambda: weight_files(tmp_path), tmp_path, "holds no weights: none of model.safetensors")
    written(tmp_path / "pytorch_model.bin", pickled({}))
    refused(lambda: weight_files(tmp_path), tmp_path, "pytorch_model.bin is a pickle")
    assert weight_files(tmp_path, ("model.safetensors", "pytorch_model.bin")) == [tmp_path / "pytorch_model.bin"]
    for content in ("", POINTER, "words"):
        written(tmp_path / "pytorch_model.bin", content)
        refused(lambda: weight_files(tmp_path, ("pytorch_model.bin",)), tmp_path / "pytorch_model.bin", remedy="(")


@pytest.mark.parametrize("values", [{}, [], 3, None, {"x": "y"}, "text"])
def test_a_record_of_another_form_names_its_file(tmp_path: Path, values: object) -> None:
    refused(
        lambda: record_of(lambda v: v["x"] + 1, values, tmp_path / "r.json", "make it anew"), tmp_path / "r.json", remedy="make it anew"
    )
    assert record_of(lambda v: v["x"] + 1, {"x": 1}, tmp_path, "") == 2


def test_the_error_survives_the_way_from_another_process(tmp_path: Path) -> None:
    error = FileError(tmp_path, "is broken", "mend it", 3)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is FileError and str(again) == str(error) == f"{tmp_path}, line 3 is broken (mend it)"


def test_a_value_in_a_message_is_short() -> None:
    deep: list[object] = []
    for _ in range(50_000):
        deep = [deep]
    assert max(len(told(value)) for value in (deep, "x" * 10**6, list(range(10**5)), {i: "y" * 1000 for i in range(1000)})) < 1000
    assert told("a short one") == "'a short one'"


ELSEWHERE = {
    "policies/image/chameleon_files.py": "reads some tensors out of files whose headers the readers have seen",
    "rewards/check.py": "reads what its own process has just written",
}
"""Files that read JSON by themselves, and why."""
READING = {("json", "load"), ("json", "loads"), ("yaml", "load"), ("yaml", "safe_load"), ("torch", "load")}
NAMES = {"load_file", "safe_open", "load_model"}


def readings(file: Path) -> set[str]:
    """What a file calls, or hands on, that reads what may be broken."""
    nodes = list(ast.walk(ast.parse(file.read_text())))
    dotted = {(n.value.id, n.attr) for n in nodes if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)}
    return {".".join(name) for name in dotted & READING} | {n.id for n in nodes if isinstance(n, ast.Name)} & NAMES


def test_whatever_is_read_goes_through_the_readers() -> None:
    found = {
        str(file.relative_to(ROOT)): calls
        for room in ("pararl", "policies", "rewards", "pipelines")
        for file in (ROOT / room).rglob("*.py")
        if (calls := readings(file))
    }
    assert found.pop("pararl/readers.py") == {"json.loads", "yaml.load", "safe_open", "load_file"}
    assert found.pop("policies/weights.py") == {"torch.load"}
    assert found.keys() <= ELSEWHERE.keys(), found
