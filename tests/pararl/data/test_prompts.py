"""The user's prompts: the same records from JSON lines and from data sets, and one clear error for what cannot be."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

import policies
from pararl import scenes
from pararl.config import ConfigError
from pararl.data.fits import Texts
from pararl.data.prompts import read_prompts
from pararl.types import KINDS, Prompt
from tests.wording import telling

# The form of GenEval's evaluation_metadata.jsonl: nothing but tag, include, exclude and prompt.
GENEVAL = [
    {
        "tag": "counting",
        "include": [{"class": "circle", "count": 2}],
        "exclude": [{"class": "circle", "count": 3}],
        "prompt": "two circles",
    },
    {
        "tag": "position",
        "include": [{"class": "square", "count": 1}, {"class": "cross", "count": 1, "color": "red", "position": ["left of", 0]}],
        "prompt": "a red cross left of a square",
    },
]


def lines(path: Path, rows: list[object]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def same(a: Prompt, b: Prompt) -> bool:
    pictures = [None if p.image is None else p.image.tolist() for p in (a, b)]
    return (a.id, a.task, a.text, a.split, dict(a.spec)) == (b.id, b.task, b.text, b.split, dict(b.spec)) and pictures[0] == pictures[1]


def test_genevals_own_records_are_read_unchanged(tmp_path: Path) -> None:
    first, second = read_prompts(lines(tmp_path / "evaluation_metadata.jsonl", list(GENEVAL)))
    assert (first.id, first.task, first.split, first.text) == ("prompt-1", "t2i", "user", "two circles")
    assert second.spec == {key: GENEVAL[1][key] for key in ("tag", "include")}
    right = scenes.Scene.of([(3, 0, 1, 0), (1, 2, 1, 3)])
    assert scenes.check(second.spec, right).strict and not scenes.check(second.spec, scenes.Scene.of([(1, 2, 1, 0), (3, 0, 1, 3)])).strict


def test_a_file_from_windows_is_read_and_one_in_another_encoding_is_told_with_its_line(tmp_path: Path) -> None:
    place = tmp_path / "own.jsonl"
    place.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(json.dumps(row).encode() for row in GENEVAL) + b"\r\n")
    assert [p.text for p in read_prompts(str(place))] == ["two circles", "a red cross left of a square"]
    place.write_bytes(json.dumps(GENEVAL[0]).encode("utf-16"))
    with pytest.raises(ValueError, match=telling("own.jsonl", "line 1", "UTF-8")):
        read_prompts(str(place))


def test_a_picture_from_a_phone_is_turned_as_it_says(tmp_path: Path) -> None:
    upright = np.zeros((4, 6, 3), np.uint8)
    upright[0, 0] = 255
    stored = Image.fromarray(np.rot90(upright).copy())
    exif = stored.getexif()
    exif[0x0112] = 6  # orientation: to be turned clockwise
    stored.save(tmp_path / "phone.png", exif=exif)
    (prompt,) = read_prompts(lines(tmp_path / "own.jsonl", [{"prompt": "what is it", "task": "i2t", "image": "phone.png"}]), "own:reward")
    assert prompt.image is not None and np.array_equal(prompt.image, upright)


def test_prompts_of_every_kind_come_back_from_json_lines_and_from_a_data_set(tmp_path: Path) -> None:
    given = [scenes.prompt("train", i, 0, *scenes.FORMS[kind]) for kind in KINDS for i in range(3)]
    scenes.write_jsonl(tmp_path / "own.jsonl", given)
    rows = [{"id": p.id, "task": p.task, "split": p.split, "prompt": p.text, "spec": json.dumps(dict(p.spec)), "note": None} for p in given]
    data = datasets.Dataset.from_list(rows)
    data.save_to_disk(str(tmp_path / "folder"))
    data.to_parquet(str(tmp_path / "own.parquet"))
    for source in ("own.jsonl", "folder", "own.parquet"):
        found = read_prompts(str(tmp_path / source))
        assert len(found) == len(given) and all(same(a, b) for a, b in zip(found, given, strict=True)), source


def test_pictures_come_from_files_and_from_image_columns(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "input.png")
    source = lines(tmp_path / "own.jsonl", [{"prompt": "what is this ?", "task": "i2t", "image": "input.png", "level": 3}])
    (prompt,) = read_prompts(source, reward="mine:judge")
    assert np.array_equal(prompt.image, pixels) and prompt.spec == {"level": 3}  # type: ignore[arg-type]
    column = datasets.Dataset.from_dict({"prompt": ["what is this ?"], "task": ["i2t"], "image": [str(tmp_path / "input.png")]})
    column.cast_column("image", datasets.Image()).save_to_disk(str(tmp_path / "folder"))
    (prompt,) = read_prompts(str(tmp_path / "folder"), reward="mine:judge")
    assert np.array_equal(prompt.image, pixels)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"prompt": ""}, ("'prompt'",)),
        ({"prompt": "x", "task": "t2v"}, ("'t2v'",)),
        ({"prompt": "x", "include": [{"class": "clock", "count": 1}]}, ("include[0]", "'clock'")),
        ({"prompt": "x", "id": "prompt-1", "include": [{"class": "circle", "count": 1}]}, ("t2i", "'prompt-1'")),
        ([1], ("list",)),
        ({"prompt": "x", "spec": 5}, ("'spec'",)),
        ({"prompt": "x", "spec": "[1]"}, ("'spec'",)),
        ({"prompt": "x", "image": 5}, ("'image'",)),
        ({"prompt": "x", "task": "i2t", "image": "gone.png"}, ("gone.png",)),
    ],
)
def test_a_bad_record_is_named_with_its_line(tmp_path: Path, row: object, told: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=telling("own.jsonl", "line 2", *told)):
        read_prompts(lines(tmp_path / "own.jsonl", [GENEVAL[0], row]))


def test_what_is_not_there_or_holds_nothing_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=telling(tmp_path / "gone.jsonl")):
        read_prompts(str(tmp_path / "gone.jsonl"))
    with pytest.raises(ConfigError, match=telling("gone", ".jsonl")):
        read_prompts("gone")
    with pytest.raises(ValueError, match=telling("empty.jsonl")):
        read_prompts(lines(tmp_path / "empty.jsonl", []))
    (tmp_path / "broken.jsonl").write_text("{\n")
    with pytest.raises(ValueError, match=telling("broken.jsonl", "line 1")):
        read_prompts(str(tmp_path / "broken.jsonl"))


def test_specs_of_other_worlds_are_left_to_other_rewards(tmp_path: Path) -> None:
    clock = {"tag": "counting", "include": [{"class": "clock", "count": 2}], "prompt": "a photo of two clocks"}
    (prompt,) = read_prompts(lines(tmp_path / "own.jsonl", [clock]), reward="mine:judge")
    assert prompt.spec["include"] == clock["include"]
    with pytest.raises(ValueError, match="prompt prompt-1: the vocabulary of scenes-mmada has no 'photo', 'clocks'"):
        Texts(policies.CHECKPOINTS / "scenes-mmada").check(prompt)


def test_values_that_are_not_json_are_refused_while_reading(tmp_path: Path) -> None:
    import datetime

    data = datasets.Dataset.from_list([{"prompt": "x", "made": datetime.datetime(2026, 1, 1)}])
    data.to_parquet(str(tmp_path / "own.parquet"))
    with pytest.raises(ValueError, match=telling("row 0")):
        read_prompts(str(tmp_path / "own.parquet"), reward="mine:judge")
