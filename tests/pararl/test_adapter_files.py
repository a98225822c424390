"""An adapter that is not whole or of another policy is told with its file and tensors, by headers alone and when it is loaded."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor

import policies
from pararl import adapter
from pararl.adapter_files import CONFIG, TENSORS, AdapterFiles, check
from pararl.readers import FileError
from pipelines import evaluate

Change = Callable[[dict[str, Tensor]], object]


@pytest.fixture
def saved(tiny_policy_dir: Path, tmp_path: Path) -> Path:
    """A trained adapter of the tiny policy."""
    model = adapter.attach(policies.load(tiny_policy_dir), rank=4, alpha=8)
    generator = torch.Generator().manual_seed(1)
    adapter.load_tensors(model, {name: torch.randn(x.shape, generator=generator) for name, x in adapter.tensors(model).items()})
    adapter.save(model, tmp_path / "mine", str(tiny_policy_dir))
    return tmp_path / "mine"


def changed(directory: Path, change: Change) -> None:
    values = load_file(directory / TENSORS)
    change(values)
    save_file(values, directory / TENSORS)


def configured(directory: Path, **values: Any) -> None:
    raw = json.loads((directory / CONFIG).read_text())
    (directory / CONFIG).write_text(json.dumps({name: value for name, value in {**raw, **values}.items() if value is not ...}))


def first(values: dict[str, Tensor], side: str) -> str:
    return min(name for name in values if f"lora_{side}" in name)


def test_a_whole_adapter_is_loaded_as_peft_loads_it_and_frozen(saved: Path, tiny_policy_dir: Path) -> None:
    found = check(saved, tiny_policy_dir)
    assert (found.rank, found.alpha, len(found.kinds)) == (4, 8, 28)
    own, theirs = policies.load(tiny_policy_dir), policies.load(tiny_policy_dir)
    state = torch.get_rng_state()
    model = adapter.load(own, saved)
    assert torch.equal(torch.get_rng_state(), state)
    PeftModel.from_pretrained(theirs.model, str(saved))
    theirs.model.eval()
    assert torch.equal(own.canary(), theirs.canary()) and not torch.equal(own.canary(), policies.load(tiny_policy_dir).canary())
    assert not any(p.requires_grad for p in model.parameters()) and not model.training
    with pytest.raises(ValueError, match="already has an adapter"):
        adapter.load(own, saved)


SHAPES: dict[str, tuple[Change, tuple[str, ...]]] = {
    "20 gone": (lambda v: [v.pop(name) for name in sorted(v)[:20]], ("20 missing", "...")),
    "one gone": (lambda v: v.pop(first(v, "B")), ("1 missing", "lora_B.weight")),
    "a layer gone": (lambda v: [v.pop(name) for name in sorted(v) if "blocks.0.q_proj" in name], ("2 missing", "blocks.0.q_proj")),
    "all gone": (lambda v: [v.pop(name) for name in sorted(v)[1:]], ("27 missing",)),
    "one more": (lambda v: v.update({"base_model.model.stray.lora_A.weight": torch.ones(4, 2)}), ("1 left over", "stray")),
    "renamed": (lambda v: v.update({f"x.{first(v, 'A')}": v.pop(first(v, "A"))}), ("1 missing", "1 left over")),
    "another rank": (lambda v: v.update({first(v, "A"): v[first(v, "A")][:2].clone()}), ("1 of another shape", "[2, 32], not [4, 32]")),
    "another width": (lambda v: v.update({first(v, "B"): v[first(v, "B")][:-1].clone()}), ("1 of another shape",)),
}


@pytest.mark.parametrize("how", SHAPES)
def test_tensors_that_do_not_fit_are_told_by_the_header_and_by_the_model(saved: Path, tiny_policy_dir: Path, how: str) -> None:
    change, words = SHAPES[how]
    changed(saved, change)
    policy = policies.load(tiny_policy_dir)
    before = policy.canary()
    for read in (lambda: check(saved, tiny_policy_dir), lambda: adapter.load(policy, saved)):
        with pytest.raises(FileError) as caught:
            read()
        line = str(caught.value)
        assert str(saved / TENSORS) in line and "\n" not in line
        assert [word for word in words if word not in line] == [], line
    assert torch.equal(policy.canary(), before) and not adapter.tuner_layers(policy.model), "the policy is as it was"


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_is_none_is_told_with_its_tensor(saved: Path, tiny_policy_dir: Path, number: float) -> None:
    changed(saved, lambda v: v[first(v, "B")].view(-1)[3:4].fill_(number))
    check(saved, tiny_policy_dir)
    policy = policies.load(tiny_policy_dir)
    with pytest.raises(FileError, match=rf"{TENSORS} has numbers that are not finite in 1 of its tensors \(base_model\S+lora_B.weight"):
        adapter.load(policy, saved)
    assert not adapter.tuner_layers(policy.model)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"peft_type": "IA3"}, "'IA3'"),
        ({"peft_type": ...}, "lacks peft_type"),
        ({"r": 0}, "r 0"),
        ({"r": "4"}, "r '4'"),
        ({"r": True}, "r True"),
        ({"lora_alpha": None}, "lora_alpha None"),
        ({"target_modules": None}, "no target_modules"),
        ({"target_modules": "(["}, "no regular expression"),
        ({"target_modules": [3]}, "no target_modules"),
        ({"r": 8}, "28 of another shape"),
        ({"target_modules": "nothing"}, "28 left over"),
        ({"target_modules": ["q_proj"]}, "24 left over"),
    ],
)
def test_a_configuration_that_does_not_fit_is_told(saved: Path, tiny_policy_dir: Path, values: dict[str, Any], word: str) -> None:
    configured(saved, **values)
    for read in (lambda: check(saved, tiny_policy_dir), lambda: adapter.load(policies.load(tiny_policy_dir), saved)):
        with pytest.raises(FileError) as caught:
            read()
        assert str(saved) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(FileError, match=rf".*{word.replace('(', '.')}"):
        check(saved, tiny_policy_dir)


def test_a_target_is_a_whole_name_or_a_whole_end_of_one_as_for_peft(saved: Path) -> None:
    configured(saved, target_modules=["q_proj"])
    base = {f"{name}.weight": (32, 32) for name in ("q_proj", "a.q_proj", "a.sq_proj", "a.q_proj.b")}
    missing = AdapterFiles.read(saved).problems(base)["missing"]
    assert missing == [f"base_model.model.{layer}.lora_{side}.weight" for layer in ("a.q_proj", "q_proj") for side in "AB"]


@pytest.mark.parametrize("name", [CONFIG, TENSORS])
@pytest.mark.parametrize("content", [None, b"", b"{}", b"[]", b"version https://git-lfs.github.com/spec/v1\n", b"{" + b"[" * 100_000])
def test_files_that_are_none_are_told(saved: Path, name: str, content: bytes | None) -> None:
    (saved / name).unlink()
    if content is not None:
        (saved / name).write_bytes(content)
    with pytest.raises(FileError) as caught:
        AdapterFiles.read(saved)
    assert name in str(caught.value) and str(saved) in str(caught.value)


def test_an_adapter_of_another_policy_is_told_and_one_of_peft_alone_is_read(
    saved: Path, tiny_policy_dir: Path, tiny_showo_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(FileError, match="does not fit the policy in .*28 left over"):
        check(saved, tiny_showo_dir)
    with pytest.raises(FileError, match="no folder of an adapter"):
        check(tmp_path / "gone", tiny_policy_dir)
    assert len(check(saved, tmp_path / "on-the-hub").kinds) == 28, "a policy that is not there yet is compared when it is loaded"
    configured(saved, target_modules=["q_proj"], lora_alpha=16)
    changed(saved, lambda v: [v.pop(name) for name in list(v) if ".q_proj." not in name])
    assert len(check(saved, tiny_policy_dir).kinds) == len(adapter.tensors(adapter.load(policies.load(tiny_policy_dir), saved))) == 4


def test_evaluate_tells_of_an_adapter_before_it_loads_a_policy(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changed(saved, lambda v: [v.pop(name) for name in sorted(v)[:20]])
    monkeypatch.setattr(policies, "load", lambda *_: pytest.fail("a policy was loaded"))
    policy = json.loads((saved / CONFIG).read_text())["base_model_name_or_path"]
    out = tmp_path / "out"
    monkeypatch.setattr("sys.argv", ["evaluate.py", "--policy", policy, "--adapter", str(saved), "--out", str(out)])
    with pytest.raises(SystemExit) as stopped:
        evaluate.main()
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1 and str(saved / TENSORS) in error and "20 missing" in error
    assert not out.exists()
