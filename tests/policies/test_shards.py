"""Weights as files: how they are cut into shards and written, and what is said of files that are not whole."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from policies.shards import SHOWO, mapped, shards, write
from tests.wording import telling


def test_a_shard_is_filled_up_to_its_limit_and_what_is_larger_stands_alone() -> None:
    assert shards({"a": 2, "b": 2, "c": 1, "d": 9, "e": 4}, 4) == [["a", "b"], ["c"], ["d"], ["e"]]


@pytest.mark.parametrize("length", range(1, 9))
def test_the_tensors_of_a_written_file_begin_at_a_multiple_of_eight(tmp_path: Path, length: int) -> None:
    weights = {"x" * length: torch.arange(3.0)}
    write(tmp_path, SHOWO, weights, iter(weights.values()))
    (file,) = tmp_path.iterdir()
    assert int.from_bytes(file.read_bytes()[:8], "little") % 8 == 0
    assert torch.equal(load_file(file)["x" * length], torch.arange(3.0))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("pytorch_model.bin", b"PK cut short"),
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n"),
        ("model.safetensors.index.json", b"{}"),
        ("model.safetensors.index.json", b"[" * 100_000),
        ("pytorch_model.bin.index.json", b"\xff\xfe"),
    ],
)
def test_weights_of_a_base_that_are_not_whole_are_named(tmp_path: Path, file: str, content: bytes) -> None:
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=telling(tmp_path / file)):
        mapped(tmp_path)


def test_a_pickle_of_something_else_is_no_weights(tmp_path: Path) -> None:
    torch.save({"state_dict": {"x": torch.ones(2)}}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=telling(tmp_path / "pytorch_model.bin", "copy the policy again")):
        mapped(tmp_path)
