"""What no run can start from is told from the files alone, with the file that is wrong."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from pararl.adapter_files import CONFIG, TENSORS, start_of
from pararl.config import ConfigError
from tests.wording import telling


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["x"]}))
    sides = {"A": np.zeros((2, 8), np.float32), "B": np.zeros((6, 2), np.float32)}
    save_file({f"base_model.model.x.lora_{side}.weight": x for side, x in sides.items()}, tmp_path / TENSORS)
    return tmp_path


def setting(**values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / CONFIG
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return change


def cut(folder: Path) -> None:
    (folder / TENSORS).write_bytes((folder / TENSORS).read_bytes()[:-1])


def pointer(folder: Path) -> None:
    (folder / TENSORS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def test_rank_and_alpha_are_those_of_the_files(folder: Path) -> None:
    assert start_of(folder) == (2, 4)


@pytest.mark.parametrize(
    ("change", "file"),
    [
        (setting(peft_type="LOHA"), CONFIG),
        (setting(r=None), CONFIG),
        (setting(lora_alpha=0.5), CONFIG),
        (setting(use_dora=True), CONFIG),
        (setting(r=4), TENSORS),
        (lambda folder: (folder / CONFIG).write_text("{"), CONFIG),
        (lambda folder: (folder / CONFIG).write_text("[]"), CONFIG),
        (lambda folder: (folder / CONFIG).unlink(), CONFIG),
        (lambda folder: (folder / TENSORS).unlink(), TENSORS),
        (lambda folder: (folder / TENSORS).write_bytes(b"x"), TENSORS),
        (cut, TENSORS),
        (pointer, TENSORS),
    ],
)
def test_what_is_no_start_names_its_file(folder: Path, change: Callable[[Path], object], file: str) -> None:
    change(folder)
    with pytest.raises(ConfigError, match=telling(folder, file)):
        start_of(folder)
