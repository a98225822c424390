"""Files of prompts as people have them: every way of writing the same prompts is read, and all that is wrong is told in one message."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pararl.config import ConfigError
from pararl.data import rows
from pararl.data.prompts import TOLD, read_prompts
from pararl.data.rows import DEPTH

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
JUDGE = "mine:judge"


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "PNG")
    return file.getvalue()


def told(path: Path, content: bytes | str, reward: str = JUDGE) -> str:
    """What is said of a file with that content."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    with pytest.raises(ConfigError) as error:
        read_prompts(str(path), reward)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    return str(error.value).replace(str(path), "FILE")


def test_lines_are_read_as_every_editor_writes_them(tmp_path: Path) -> None:
    written = ['{"prompt": "two red circles"}', '{"prompt": "größer → 大きい", "id": 7}']
    for name in ("a.jsonl", "a.JSONL", "a.ndjson", "a.NdJson", "a.json", "a.JSON"):
        for head, end in (("", "\n"), ("\ufeff", "\n"), ("", "\r\n"), ("\ufeff", "\r\n"), ("\n \t\n", "\n\n")):
            for last in ("", end):
                (tmp_path / name).write_bytes((head + end.join(written) + last).encode())
                found = read_prompts(str(tmp_path / name), JUDGE)
                assert [p.text for p in found] == ["two red circles", "größer → 大きい"], (name, head, end)
                assert found[1].id == "7"


def test_json_may_be_a_list_or_one_record_over_several_lines(tmp_path: Path) -> None:
    place = tmp_path / "a.json"
    place.write_text(json.dumps([{"prompt": "a", "position": ["left of", 0]}, {"prompt": "b", "note": None}], indent=1))
    first, second = read_prompts(str(place), JUDGE)
    assert (first.text, second.text, first.id, second.id) == ("a", "b", "prompt-0", "prompt-1")
    assert first.spec == {"position": ["left of", 0]} and not second.spec
    place.write_text(json.dumps({"prompt": "a"}, indent=1))
    assert [p.text for p in read_prompts(str(place), JUDGE)] == ["a"]
    assert "not JSON: Expecting" in told(place, '[{"prompt": "a"},\n{"prompt" "b"}]')


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_utf_16_is_told_once_with_its_line(tmp_path: Path, encoding: str, name: str) -> None:
    content = ('{"prompt": "a"}\n' * 30).encode(encoding)
    assert told(tmp_path / name, content) == "FILE, line 1: not UTF-8 (UTF-16, it seems); save the file as UTF-8"


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_latin_1_is_told_with_its_lines(tmp_path: Path, name: str) -> None:
    content = b'{"prompt": "a"}\n{"prompt": "gr\xfcn"}\n{"prompt": "b"}\n{"prompt": "wei\xdf"}\n'
    message = told(tmp_path / name, content)
    assert message.startswith("FILE has 2 problems: line 2: not UTF-8") and "; line 4: not UTF-8" in message


LINES: list[tuple[str, str]] = [
    ("{", "not JSON"),
    ('{"prompt": "a"} {"prompt": "b"}', "not JSON"),
    ("[" * 100_000, "lists and objects"),
    ('{"prompt": "a", "x": ' + "[" * (DEPTH + 1) + "]" * (DEPTH + 1) + "}", "lists and objects"),
    ('{"prompt": "a", "x": ' + '{"y":' * 400 + "1" + "}" * 400 + "}", "lists and objects"),
    ('{"prompt": "a", "spec": "' + "[" * 100_000 + '"}', "lists and objects"),
    ('{"prompt": "a", "x": NaN}', "NaN"),
    ('{"prompt": "a", "x": [-Infinity]}', "-Infinity"),
    ('{"prompt": "a", "x": 1e999}', "1e999"),
    ('{"prompt": "a", "x": ' + "1" * 5000 + "}", "not JSON"),
    ('{"prompt": "a", "prompt": "b"}', "key 'prompt' is given twice"),
    ('{"prompt": "a", "x": [{"y": 1, "y": 1}]}', "key 'y' is given twice"),
    ('{"prompt": "a", "spec": "{\\"y\\": 1, \\"y\\": 2}"}', "key 'y' is given twice"),
    ('{"prompt": "a", "spec": "{\\"y\\": NaN}"}', "NaN"),
    ('{"prompt": "a", "y": 1, "spec": {"y": 2}}', "'y' stands in the record and in its 'spec'"),
    ('{"prompt": "a \\ud800"}', "half a character"),
    ('{"prompt": "a", "x": ["\\udfff"]}', "half a character"),
    ('{"prompt": "a", "\\ud83d": 1}', "half a character"),
    ('{"prompt": "a", "id": "\\ud83d"}', "half a character"),
    ('{"prompt": 5}', "a record needs a 'prompt'"),
    ('{"prompt": " \\t"}', "a record needs a 'prompt'"),
    ('{"prompt": []}', "a record needs a 'prompt'"),
    ('{"prompt": {}}', "a record needs a 'prompt'"),
    ("{}", "a record needs a 'prompt'"),
    ('"a"', "must be a JSON object, got str"),
    ("null", "must be a JSON object, got NoneType"),
    ('{"prompt": "a", "id": [1]}', "'id' must be text or a number"),
    ('{"prompt": "a", "id": true}', "'id' must be text or a number"),
    ('{"prompt": "a", "id": " "}', "'id' must be text or a number"),
    ('{"prompt": "a", "split": 1}', "'split' must be text"),
    ('{"prompt": "a", "task": ["t2i"]}', "unknown task"),
    ('{"prompt": "a", "task": {}}', "unknown task"),
    ('{"prompt": "a", "task": "i2t"}', "needs an 'image'"),
    ('{"prompt": "a", "task": "edit"}', "needs an 'image'"),
    ('{"prompt": "a", "spec": "{"}', "Expecting"),
    ('{"prompt": "a", "image": {"bytes": "iVBORw0KGgo=", "path": null}}', "got str"),
    ('{"prompt": "a", "image": "a.png", "images": ["a.png"]}', "takes one picture, got 2"),
    ('{"prompt": "a", "images": ["a.png", "b.png"]}', "takes one picture, got a list of 2"),
    ('{"prompt": [{"role": "system", "content": "x"}, {"role": "user", "content": "a"}]}', "one message of the role user"),
    ('{"prompt": [{"role": "assistant", "content": "a"}]}', "one message of the role user"),
    ('{"prompt": ["a"]}', "one message of the role user"),
    ('{"prompt": [{"role": "user"}]}', "a record needs a 'prompt'"),
    ('{"prompt": [{"role": "user", "content": [{"type": "video"}]}]}', "a part of a message"),
    ('{"prompt": [{"role": "user", "content": [7]}]}', "a part of a message"),
    ('{"prompt": [{"role": "user", "content": [{"type": "image"}]}]}', "a record needs a 'prompt'"),
    ('{"prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a"}]}]}', "a place for a picture"),
    (
        '{"prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "a"}]}]}',
        "one picture, got 2",
    ),
]


@pytest.mark.parametrize(("line", "expected"), LINES, ids=[f"{line[:40]}-{place}" for place, (line, _) in enumerate(LINES)])
def test_what_is_wrong_with_a_line_is_told_with_it(tmp_path: Path, line: str, expected: str) -> None:
    message = told(tmp_path / "own.jsonl", f'{{"prompt": "fine"}}\n\n{line}\n{{"prompt": "fine too"}}\n')
    assert message.startswith("FILE, line 3: ") and expected in message and len(message) < 400


def test_all_problems_of_a_file_are_one_message_the_first_ten_and_their_number(tmp_path: Path) -> None:
    content = "".join(line + "\n" for line, _ in LINES)
    message = told(tmp_path / "own.jsonl", content)
    assert message.startswith(f"FILE has {len(LINES)} problems: line 1: ") and message.endswith(f"; and {len(LINES) - TOLD} more")
    assert all(f"line {number}: " in message for number in range(1, TOLD + 1)) and f"line {TOLD + 1}: " not in message


def test_a_line_that_is_too_long_is_passed_over_and_told(tmp_path: Path) -> None:
    long = json.dumps({"prompt": "a" * rows.LINE})
    message = told(tmp_path / "own.jsonl", f'{long}\n{{"prompt": "fine"}}\n{{\n')
    assert message.startswith("FILE has 2 problems: line 1: a line has at most 16,777,216 bytes; line 3: not JSON")


@pytest.mark.parametrize("more", [0, 1])
def test_a_line_has_as_many_bytes_as_it_may_its_end_included(tmp_path: Path, more: int) -> None:
    start = b'{"prompt": "a"'
    content = start + b" " * (rows.LINE - len(start) - 2 + more) + b"}\n"
    if more:
        assert told(tmp_path / "own.jsonl", content).startswith("FILE, line 1: a line has at most 16,777,216 bytes")
    else:
        (tmp_path / "own.jsonl").write_bytes(content + b'{"prompt": "b"}\n')
        assert [prompt.text for prompt in read_prompts(str(tmp_path / "own.jsonl"), JUDGE)] == ["a", "b"]


def test_a_second_prompt_of_one_id_is_told_with_both_places(tmp_path: Path) -> None:
    message = told(tmp_path / "own.jsonl", '{"prompt": "a", "id": 1}\n{"prompt": "b"}\n{"prompt": "c", "id": "1"}\n')
    assert message.startswith("FILE, line 3: ") and "'1'" in message and "(line 1)" in message


@pytest.mark.parametrize("content", ["", "\n\n", "\ufeff", " \r\n\t\n"])
def test_a_file_of_nothing_holds_no_prompt(tmp_path: Path, content: str) -> None:
    for name in ("own.jsonl", "own.json"):
        assert told(tmp_path / name, content) == "FILE holds no prompt"
    assert "own.json" in told(tmp_path / "own.json", "[]").replace("FILE", "own.json")


def one_user(*content: dict[str, Any] | str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content[0] if isinstance(content[0], str) else list(content)}]


TEXT, PLACE = {"type": "text", "text": "what is it"}, {"type": "image"}
TRL: list[dict[str, Any]] = [
    {"prompt": "what is it", "images": ["a.png"]},
    {"prompt": one_user("what is it"), "images": ["a.png"]},
    {"prompt": one_user("what is it"), "image": "a.png"},
    {"prompt": one_user(PLACE, TEXT), "images": ["a.png"]},
    {"prompt": one_user({"type": "text", "text": "what"}, PLACE, {"type": "text", "text": "is it"}), "images": ["a.png"]},
    {"prompt": one_user({"type": "image", "image": "a.png"}, TEXT)},
]


@pytest.mark.parametrize("record", TRL)
def test_trls_conversations_and_images_are_the_same_prompt(tmp_path: Path, record: dict[str, Any]) -> None:
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "own.jsonl").write_text(json.dumps(record | {"solution": "4"}) + "\n")
    (prompt,) = read_prompts(str(tmp_path / "own.jsonl"), JUDGE)
    assert (prompt.task, prompt.text, prompt.spec) == ("i2t", "what is it", {"solution": "4"})
    assert np.array_equal(prompt.image, PIXELS)  # type: ignore[arg-type]


def test_trls_conversations_of_text_are_read(tmp_path: Path) -> None:
    rows_ = [{"prompt": one_user("a red circle")}, {"prompt": one_user({"type": "text", "text": "a red circle"}), "images": []}]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_))
    assert [(p.task, p.text, p.image) for p in read_prompts(str(tmp_path / "own.jsonl"), JUDGE)] == [("t2i", "a red circle", None)] * 2


def stored(path: str | None, content: bytes | None) -> pa.Array:
    return pa.array([{"bytes": content, "path": path}], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))


def as_table(folder: Path, held: pa.Array) -> None:
    pq.write_table(pa.table({"prompt": ["what is it"], "image": held}), folder / "set.parquet")


def as_feature(folder: Path, name: str, value: Any, feature: Any) -> None:
    found = datasets.Dataset.from_dict(
        {"prompt": ["what is it"], name: [value]}, datasets.Features({"prompt": datasets.Value("string"), name: feature})
    )
    found.save_to_disk(str(folder / "set"))
    found.to_parquet(str(folder / "set.parquet"))


def line(folder: Path, **held: Any) -> None:
    (folder / "set.jsonl").write_text(json.dumps({"prompt": "what is it"} | held))


IMAGE = datasets.Image()
CONTAINERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "a path in lines": ("set.jsonl", lambda folder: line(folder, image="a.png")),
    "a list of a path in lines": ("set.jsonl", lambda folder: line(folder, images=["a.png"])),
    "a stored path in lines": ("set.jsonl", lambda folder: line(folder, image={"bytes": None, "path": "a.png"})),
    "bytes in Parquet": (
        "set.parquet",
        lambda f: pq.write_table(pa.table({"prompt": ["what is it"], "image": [png()]}), f / "set.parquet"),
    ),
    "stored bytes": ("set.parquet", lambda folder: as_table(folder, stored("gone.png", png()))),
    "a stored path": ("set.parquet", lambda folder: as_table(folder, stored("a.png", None))),
    "an image column": ("set", lambda folder: as_feature(folder, "image", Image.fromarray(PIXELS), IMAGE)),
    "an image column in Parquet": ("set.parquet", lambda folder: as_feature(folder, "image", Image.fromarray(PIXELS), IMAGE)),
    "a column of lists of images": ("set", lambda folder: as_feature(folder, "images", [Image.fromarray(PIXELS)], datasets.List(IMAGE))),
    "the same in Parquet": ("set.parquet", lambda folder: as_feature(folder, "images", [Image.fromarray(PIXELS)], datasets.List(IMAGE))),
    "a file in a folder of datasets": ("set", lambda folder: as_feature(folder, "image", str(folder / "a.png"), IMAGE)),
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_picture_has_the_same_pixels_in_every_container(tmp_path: Path, container: str) -> None:
    name, write = CONTAINERS[container]
    (tmp_path / "a.png").write_bytes(png())
    write(tmp_path)
    (prompt,) = read_prompts(str(tmp_path / name), JUDGE)
    assert np.array_equal(prompt.image, PIXELS) and prompt.task == "i2t"  # type: ignore[arg-type]


def test_a_broken_picture_is_told_with_its_row_beside_the_others(tmp_path: Path) -> None:
    held = pa.array([{"bytes": content, "path": None} for content in (png(), png()[:-30], b"", png())])
    pq.write_table(pa.table({"prompt": ["a", "b", "c", "d"], "image": held}), tmp_path / "own.parquet")
    with pytest.raises(
        ConfigError, match=r"own\.parquet has 2 problems: row 1: the picture cannot be decoded: .*; row 2: the picture is no"
    ):
        read_prompts(str(tmp_path / "own.parquet"), JUDGE)


def test_what_is_no_table_or_data_set_is_told(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "own.parquet").write_bytes(b"PAR1 not a table PAR1")
    (tmp_path / "own.csv").write_text('prompt,id\n"a,1\n')
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "state.json").write_text("[]")
    (tmp_path / "half" / "dataset_info.json").write_text("{}")
    (tmp_path / "folder.jsonl").mkdir()
    for name in ("folder", "own.parquet", "own.csv", "half", "folder.jsonl", "gone.ndjson", "notes.txt"):
        with pytest.raises(ConfigError, match=name):
            read_prompts(str(tmp_path / name), JUDGE)


def test_csv_is_read_with_a_mark_in_front_of_its_first_line(tmp_path: Path) -> None:
    (tmp_path / "own.CSV").write_bytes('\ufeffprompt,id,level\r\n"größer, rot",1,2\r\nb,2,\r\n'.encode())
    first, second = read_prompts(str(tmp_path / "own.CSV"), JUDGE)
    assert (first.text, first.id, first.spec, second.spec) == ("größer, rot", "1", {"level": 2.0}, {})
