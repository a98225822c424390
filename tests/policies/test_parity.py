"""``python -m policies.parity``: every recorded case holds, and a case that does not is told."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from policies.parity import FAMILIES, compare
from policies.parity.case import Comparison

CASES = ("mmada", "mmada_parallel_m", "mmada_parallel_a", "magvitv2", "magvitv2_full", "schedules")


def run(*folders: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "policies.parity", *map(str, folders)], capture_output=True, text=True)


def changed(case: Path, to: Path, file: str, name: str, change: Tensor | float) -> Path:
    """A copy of a case with something added to one tensor."""
    shutil.copytree(case, to)
    tensors = load_file(to / file)
    tensors[name] = tensors[name] + change
    save_file(tensors, to / file, metadata={"format": "pt"})
    return to


def test_every_recorded_case_holds(golden: Path) -> None:
    done = run(*[golden / name for name in CASES])
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [Path(folder).name for folder in found] == list(CASES)
    for folder, case in found.items():
        assert case["ok"] and all(entry["difference"] <= entry["tolerance"] for entry in case["tensors"].values()), folder
    outputs = {name: set(found[str(golden / name)]["tensors"]) | set(found[str(golden / name)]["left_out"]) for name in CASES}
    inputs = {
        "input_ids",
        "attention_mask",
        "prompt_ids",
        "uncond",
        "train_nopad.labels",
        "pixels",
        "drawn",
        "masking",
        "_masks",
        "p_mask",
        "answer_lengths",
    }
    for name in CASES[:-1]:
        recorded = set(load_file(golden / name / "cases.safetensors"))
        left = {key for key in recorded - outputs[name] if not any(word in key for word in inputs)}
        assert left <= {
            "c.codes",
            "train_pad.labels",
            "a.uncon_text",
            "a.uncon_image",
            "b.uncon_text",
            "b.uncon_image",
            "a.main_forward_index",
            "b.main_forward_index",
        }, name


@pytest.mark.parametrize("name", ["mmada", "mmada_parallel_m", "mmada_parallel_a", "magvitv2"])
def test_other_weights_are_beyond_the_tolerance(golden: Path, tmp_path: Path, name: str) -> None:
    weight = "decoder.conv_in.bias" if name == "magvitv2" else "model.transformer.ln_f.weight"
    with torch.no_grad():
        found = compare(changed(golden / name, tmp_path / name, "model.safetensors", weight, 0.02))
    beyond = [key for key, entry in found.tensors.items() if entry["difference"] > entry["tolerance"]]
    assert not found.ok and beyond


def test_a_difference_ends_in_status_1_and_is_named(golden: Path, tmp_path: Path) -> None:
    case = changed(golden / "magvitv2", tmp_path / "case", "cases.safetensors", "c.decoded", 0.5)
    done = run(golden / "schedules", case)
    assert done.returncode == 1
    entry = json.loads(done.stdout)[str(case)]
    assert not entry["ok"] and 0.49 < entry["tensors"]["c.decoded"]["difference"] < 0.51


def test_what_is_no_case_is_one_clear_error(golden: Path, tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.returncode == 2 and "holds no recorded case" in done.stderr and "Traceback" not in done.stderr
    shutil.copytree(golden / "mmada", tmp_path / "case")
    (tmp_path / "case" / "README.md").unlink()
    done = run(tmp_path / "case")
    assert done.returncode == 2 and "README.md" in done.stderr and "Traceback" not in done.stderr


def test_nothing_compared_is_not_right_and_neither_is_nan() -> None:
    found = Comparison()
    assert not found.ok
    found.close("nan", torch.tensor([float("nan")]), torch.zeros(1), 1.0)
    found.equal("shape", [1, 2], [1])
    assert not found.ok and found.tensors["nan"]["difference"] == found.tensors["shape"]["difference"] == float("inf")


def test_every_family_has_its_case() -> None:
    assert set(FAMILIES) == {name.removesuffix("_full") for name in CASES}
