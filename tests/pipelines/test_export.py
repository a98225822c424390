"""Taking an adapter home: one command gives a folder that is whole, or one line and no folder."""

import json
import resource
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel

import policies
from pararl import adapter
from pararl.card import DRAWN, TOLD, Told
from pipelines import export
from tests.pararl.local_hub import TOKEN, local_hub

Export = Callable[..., str]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of one run, as far as an export reads it, and of a policy of the user's own that was aligned in another."""
    folder = tmp_path_factory.mktemp("outputs")
    shutil.copytree(policies.CHECKPOINTS / "scenes-mmada", folder / "my-model")
    for run, base in (("run", "scenes-mmada"), ("own", str(folder / "my-model"))):
        policy = policies.load(base)
        peft = adapter.attach(policy, 4, 8)
        with torch.no_grad():
            for tensor in adapter.tensors(peft).values():
                tensor.copy_(0.05 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1)))
        told = Told("pararl", f"{TOLD}\n| a | .5 |\n", "0123abc")
        adapter.save(peft, folder / run / "adapters" / "pararl", base, told)
    (folder / "run" / "curves.png").write_bytes(b"a picture")
    return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Export:
    """The program with these arguments, in this process; what it prints. ``code``: with which it is to exit."""

    def call(*arguments: object, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["export.py", *map(str, arguments)])
        if code:
            with pytest.raises(SystemExit) as ended:
                export.main()
            assert ended.value.code == code
            told = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
            assert len(told) == 1
            return told[0]
        export.main()
        shown = capsys.readouterr()
        return shown.out + shown.err

    return call


def test_the_merged_policy_is_the_base_with_its_adapter(runs: Path, run: Export, tmp_path: Path) -> None:
    folder, out = runs / "run" / "adapters" / "pararl", tmp_path / "aligned"
    shown = run(folder, "--out", out)
    assert f"in {out}: README.md, config.json, curves.png, image_tokenizer, model.safetensors, policy.json" in shown
    base = policies.load("scenes-mmada")
    before = base.canary()
    PeftModel.from_pretrained(base.model, folder)
    assert (policies.load(out).canary() - base.canary()).abs().max() < 1e-4 < 1e-2 * (base.canary() - before).abs().max()
    assert [path.name for path in tmp_path.iterdir()] == ["aligned"], "nothing temporary is left"


@pytest.mark.parametrize("alone", [(), ("--adapter",)])
def test_the_card_has_what_the_run_told_and_its_curves(runs: Path, run: Export, tmp_path: Path, alone: tuple[str, ...]) -> None:
    run(runs / "run" / "adapters" / "pararl", "--out", tmp_path / "out", *alone)
    text = (tmp_path / "out" / "README.md").read_text()
    matter = yaml.safe_load(text.split("---\n")[1])
    assert matter["base_model"] == "scenes-mmada" and matter["pararl"] == {"version": "0.1.0", "arm": "pararl", "commit": "0123abc"}
    assert "| a | .5 |" in text and "](curves.png)" in text.partition(DRAWN)[2] and str(runs) not in text and str(tmp_path) not in text
    assert (tmp_path / "out" / "curves.png").read_bytes() == b"a picture"
    assert (matter["library_name"] == "peft") == bool(alone)


def test_an_adapter_alone_is_the_runs_for_peft_and_can_be_exported_again(runs: Path, run: Export, tmp_path: Path) -> None:
    folder = runs / "run" / "adapters" / "pararl"
    run(folder, "--out", tmp_path / "once", "--adapter")
    run(tmp_path / "once", "--out", tmp_path / "twice", "--adapter")
    found, fresh = [], policies.load("scenes-mmada")
    for place in (folder, tmp_path / "once", tmp_path / "twice"):
        policy = policies.load("scenes-mmada")
        PeftModel.from_pretrained(policy.model, place)
        found.append(policy.canary())
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2]) and not torch.equal(found[0], fresh.canary())
    once, twice = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir() if path.name != "README.md"} for name in ("once", "twice")
    )
    assert once == twice and once.keys() == {"adapter_config.json", "adapter_model.safetensors", "curves.png"}
    assert (tmp_path / "twice" / "README.md").read_text() == (tmp_path / "once" / "README.md").read_text().replace('"once"', '"twice"')


@pytest.mark.parametrize(
    ("name", "base", "revision"),
    [("Gen-Verse/MMaDA-8B-MixCoT@0a1b", "Gen-Verse/MMaDA-8B-MixCoT", "0a1b"), ("tyfeld/MMaDA-Parallel-M", "tyfeld/MMaDA-Parallel-M", None)],
)
def test_an_adapter_alone_names_its_release_as_peft_does(
    runs: Path, run: Export, tmp_path: Path, name: str, base: str, revision: str | None
) -> None:
    shutil.copytree(runs / "run" / "adapters" / "pararl", tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": name}))
    run(tmp_path / "adapter", "--out", tmp_path / "out", "--adapter")
    found = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (found["base_model_name_or_path"], found["revision"]) == (base, revision)
    assert {key: value for key, value in found.items() if "base" not in key and key != "revision"} == {
        key: value for key, value in config.items() if "base" not in key and key != "revision"
    }


def test_a_base_that_has_moved_is_named_and_another_one_is_refused(runs: Path, run: Export, tmp_path: Path) -> None:
    shutil.copytree(runs / "my-model", tmp_path / "moved")
    shutil.copytree(runs / "own" / "adapters" / "pararl", tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "/no/longer/there"}))
    told = run(tmp_path / "adapter", "--out", tmp_path / "out", code=1)
    assert "no policy '/no/longer/there'" in told and "set --base" in told
    assert "does not fit scenes-showo" in run(tmp_path / "adapter", "--out", tmp_path / "out", "--base", "scenes-showo", code=2)
    run(tmp_path / "adapter", "--out", tmp_path / "out", "--base", tmp_path / "moved")
    assert policies.load(tmp_path / "out").family == "mmada"


def test_mistakes_are_one_line_and_leave_nothing(runs: Path, run: Export, tmp_path: Path) -> None:
    folder, out = runs / "run" / "adapters" / "pararl", tmp_path / "out"
    assert f"(name {folder})" in run(runs / "run", "--out", out, code=2)
    assert "outputs/RUN/adapters/ARM" in run(tmp_path / "no", "--out", out, code=2)
    assert "--push owner/name" in run(folder, "--out", out, "--private", code=2)
    assert "owner/name" in run(folder, "--out", out, "--push", "mine", code=2)
    assert not list(tmp_path.iterdir())
    out.mkdir()
    assert "exists already and is never overwritten (set --out)" in run(folder, "--out", out, code=2)
    assert not list(out.iterdir())


def test_a_write_that_fails_is_one_line_and_leaves_no_folder(runs: Path, run: Export, tmp_path: Path) -> None:
    """Of a process that may write no file larger than a megabyte, which to it is what a full disk is."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
    try:
        told = run(runs / "run" / "adapters" / "pararl", "--out", tmp_path / "out", code=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert told.startswith("pararl: error: ") and "File too large" in told and str(tmp_path) in told and not list(tmp_path.iterdir())


def test_an_export_is_put_on_the_hub_and_told_what_to_do_where_it_is_not(
    runs: Path, run: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = runs / "run" / "adapters" / "pararl"
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with local_hub() as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        assert f"on the Hub: {hub.address}/me/mine" in run(folder, "--out", tmp_path / "a", "--adapter", "--push", "me/mine")
        assert {name: (tmp_path / "a" / name).read_bytes() for name in hub.files["me/mine"]} == hub.files["me/mine"]
        assert {"adapter_config.json", "adapter_model.safetensors", "README.md", "curves.png"} == hub.files["me/mine"].keys()
        assert '"me/mine"' in (tmp_path / "a" / "README.md").read_text()
        run(folder, "--out", tmp_path / "b", "--push", "me/merged", "--private")
        assert "image_tokenizer/config.json" in hub.files["me/merged"] and hub.visibility["me/merged"] == "private"

        own = run(runs / "own" / "adapters" / "pararl", "--out", tmp_path / "c", "--adapter", "--push", "me/other", code=2)
        assert "folder of this machine" in own and "me/other" not in hub.files
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
        assert "(401)" in run(folder, "--out", tmp_path / "c", "--push", "me/mine", code=2) and not (tmp_path / "c").exists()
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        hub.broken = True
        told = run(folder, "--out", tmp_path / "c", "--push", "me/mine", code=1)
        assert f"{tmp_path / 'c'} is whole: go on with hf upload me/mine {tmp_path / 'c'}" in told and TOKEN not in told
        assert policies.load(tmp_path / "c").family == "mmada"
