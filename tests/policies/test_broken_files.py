"""A policy whose files are cut short, stand-ins or another's is one line that names the file; where headers tell, nothing loads."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import policies
from pararl.policy_files import check_files
from pararl.readers import FileError

ROOT = Path(__file__).resolve().parents[2]
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"
Break = Callable[[Path], object]


def halved(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def pickled(file: Path) -> None:
    torch.save({"a": torch.ones(2)}, file)


def a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


WEIGHTS: dict[str, Break] = {
    "gone": Path.unlink,
    "empty": lambda file: file.write_bytes(b""),
    "half": halved,
    "pointer": lambda file: file.write_bytes(POINTER),
    "pickle": pickled,
    "folder": a_folder,
    "text": lambda file: file.write_text("no weights"),
}
RECORDS: dict[str, Break] = {
    "gone": Path.unlink,
    "empty": lambda file: file.write_bytes(b""),
    "half": halved,
    "pointer": lambda file: file.write_bytes(POINTER),
    "list": lambda file: file.write_text("[]"),
    "deep": lambda file: file.write_text("[" * 100_000),
    "twice": lambda file: file.write_text('{"a": 1, "a": 2}'),
    "latin": lambda file: file.write_bytes(b'{"a": "\xe4"}'),
    "folder": a_folder,
}
FILES = {
    "model.safetensors": WEIGHTS,
    "image_tokenizer/model.safetensors": WEIGHTS,
    "policy.json": {name: broken for name, broken in RECORDS.items() if name not in ("gone", "folder")},  # without it: no policy of ours
    "config.json": RECORDS,
    "image_tokenizer/config.json": RECORDS,
    "tokenizer.json": RECORDS,
}


@pytest.fixture
def copy(tiny_policy_dir: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_policy_dir, tmp_path / "mine")


@pytest.mark.parametrize(("name", "how"), [(name, how) for name, ways in FILES.items() for how in ways])
def test_a_broken_file_is_named_before_anything_loads_and_when_it_does(copy: Path, name: str, how: str) -> None:
    check_files("mine", copy)
    FILES[name][how](copy / name)
    for read in (lambda: check_files("mine", copy), lambda: policies.load(copy)):
        with pytest.raises((FileError, FileNotFoundError)) as caught:
            read()
        line = str(caught.value)
        assert str((copy / name).parent) in line and "\n" not in line
        assert name.rpartition("/")[2] in line or how == "gone", line


def test_files_are_checked_without_torch(copy: Path) -> None:
    code = "import sys, pathlib; from pararl.policy_files import check_files; check_files('x', pathlib.Path(sys.argv[1]))"
    code += "; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, str(copy)], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_weights_of_a_release_in_a_folder_are_seen_before_anything_loads(tmp_path: Path) -> None:
    folder = tmp_path / "show-o"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    for name in ("pytorch_model.safetensors", "pytorch_model.bin"):
        (folder / name).write_bytes(POINTER)
        with pytest.raises(FileError, match=rf"{name} is a git-lfs pointer .*git lfs pull"):
            check_files(str(folder), folder)
        (folder / name).unlink()
    with pytest.raises(FileError, match="holds no weights"):
        check_files(str(folder), folder)
    check_files("showlab/show-o", tmp_path / "on-the-hub")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["model.safetensors", "image_tokenizer/model.safetensors"])
def test_a_base_with_a_number_that_is_none_is_told_with_file_and_tensor(copy: Path, name: str, number: float) -> None:
    weights = load_file(copy / name)
    tensor = sorted(key for key, x in weights.items() if x.is_floating_point())[-1]
    weights[tensor].view(-1)[-1] = number
    save_file(weights, copy / name, metadata={"format": "pt"})
    with pytest.raises(FileError, match=rf"{name} has numbers that are not finite .* tensor {tensor} "):
        policies.load(copy)


def test_a_base_in_several_files_names_the_one_with_the_number_that_is_none(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    names = sorted(weights)
    halves = {"a.safetensors": names[: len(names) // 2], "b.safetensors": names[len(names) // 2 :]}
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": {n: file for file, part in halves.items() for n in part}})
    )
    for broken in (False, True):
        if broken:
            weights[names[-1]].view(-1)[0] = torch.nan
        for file, part in halves.items():
            save_file({name: weights[name] for name in part}, copy / file, metadata={"format": "pt"})
        check_files("mine", copy)
        if not broken:
            assert policies.load(copy).canary().isfinite().all()
            continue
        with pytest.raises(FileError, match=rf"b\.safetensors has numbers .* tensor {names[-1]} "):
            policies.load(copy)


def test_values_of_another_kind_anywhere_in_the_records_are_one_line(copy: Path) -> None:
    """Each value of each record in turn, replaced by what it cannot be."""
    tried, wrong = 0, object()
    for name in ("policy.json", "config.json", "image_tokenizer/config.json"):
        whole = json.loads((copy / name).read_text())
        section = whole["settings"] if name == "policy.json" else whole
        for key, value in section.items():
            if key in ("architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "id2label", "label2id"):
                continue
            for wrong in ({"no": "such"}, -1, "word", None, [[]]):
                if type(wrong) is type(value):
                    continue
                section[key] = wrong
                (copy / name).write_text(json.dumps(whole))
                try:
                    policies.load(copy)
                except ValueError as error:
                    assert str(copy) in str(error) and "\n" not in str(error)[:-1], f"{name} {key} {wrong!r}: {error}"
                    tried += 1
            section[key] = value
        (copy / name).write_text(json.dumps(whole))
    assert tried > 60
