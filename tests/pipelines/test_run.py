"""The whole program, as users start it: real Ray, real W&B offline files, real PEFT, in subprocesses."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from peft import PeftModel
from PIL import Image

import policies
from pararl.evaluation.summary import Summary, table
from pararl.files import read_lines
from tests.pipelines.programs import ONE_TASK, SMALL, SMOKE, finish, kill_in, start, wait_for


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished smoke run, started from another folder than the checkout."""
    folder = tmp_path_factory.mktemp("outputs")
    modules = tmp_path_factory.mktemp("modules") / "driver"
    output = finish(start(*SMALL, "--run.dir", str(folder), "--run.name", "smoke", cwd=folder, modules=modules))
    loaded = set(modules.read_text().split())
    assert {"ray", "wandb", "matplotlib"} <= loaded and "torch" not in loaded, "the driver loads no torch"
    assert "ID strict" in output and "offline_dpo" in output
    (shown,) = re.findall(r"^offline_dpo  update 1/3 .* ([\d.]+) s/update", output, re.MULTILINE)
    rows = [r for r in read_lines(folder / "smoke" / "metrics.jsonl") if r["arm"] == "offline_dpo" and r["update"] == 1]
    (first,) = [r for r in rows if "perf/update" in r]
    sampled = first["perf/rollout"] + first["perf/reward"]
    assert sampled > 0.5 and abs(float(shown) - (first["perf/update"] - sampled)) < 0.06, "sampling is no part of an update's time"
    return folder / "smoke"


def test_a_run_leaves_everything_it_promises(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert set(summary) == {"seed", "base", "arms", "start"} and set(summary["arms"]) == {"pararl", "offline_dpo"}
    for arm, result in summary["arms"].items():
        assert set(result) == {"id", "ood", "updates", "reward_calls", "seconds", "kl", "adapter", "kinds", "best"}
        assert {p.name for p in (run / result["adapter"]).iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}, arm
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["run"]["arms"] == ["pararl", "offline_dpo"] and config["learner"]["lr"] > 0
    for picture in ("curves.png", "kinds.png", "samples/id-000.png"):
        assert np.asarray(Image.open(run / picture)).std() > 5, f"{picture} is blank"
    files = {"config.yaml", "curves.png", "kinds.png", "metrics.jsonl", "summary.json"}
    assert {p.name for p in run.iterdir()} == files | {"adapters", "checkpoints", "results", "rollouts", "samples", "wandb"}
    assert [p.name for p in run.parent.iterdir()] == [run.name], "nothing is written elsewhere"
    assert not list(run.rglob("*.pkl")) and not list(run.rglob("*.pt")) and not list(run.rglob("*.bin"))


def test_every_kind_of_prompt_is_trained_measured_and_shown(run: Path) -> None:
    kinds = {"t2i", "i2t", "interleaved_edit"}
    summary = json.loads((run / "summary.json").read_text())
    for result in (summary["base"], *summary["arms"].values()):
        assert {kind: set(splits) for kind, splits in result["kinds"].items()} == {kind: {"id", "ood_pair"} for kind in kinds}
        assert result["id"]["n"] == sum(splits["id"]["n"] for splits in result["kinds"].values()) == 24
    rows = [r for r in read_lines(run / "metrics.jsonl") if "perf/update" in r]
    assert all(f"reward/{kind}_mean" in row for row in rows for kind in kinds)
    late = [row for row in rows if row["update"] > 1]
    assert all({"kl/text", "kl/image"} <= row.keys() for row in late if row["arm"] == "pararl")


def test_every_arm_makes_equally_many_updates_and_reward_calls(run: Path) -> None:
    arms = json.loads((run / "summary.json").read_text())["arms"].values()
    assert len({(a["updates"], a["reward_calls"]) for a in arms}) == 1
    assert min(a["reward_calls"] for a in arms) > 0


def test_metrics_hold_every_update_with_where_its_time_went(run: Path) -> None:
    rows = read_lines(run / "metrics.jsonl")
    for arm in ("pararl", "offline_dpo"):
        updates = [r for r in rows if r["arm"] == arm and "perf/update" in r]
        assert [r["update"] for r in updates] == [1, 2, 3]
        for row in updates:
            # Waiting is what is left over.
            assert row["perf/learn"] > 0 and row["perf/wait"] >= 0
            assert (row["perf/rollout"] > 0) == (arm == "pararl" or row["update"] == 1)
            assert ("perf/publish" in row) == (arm == "pararl" or row["update"] == 3 or row["update"] == 2)
            assert row["loss/total"] > 0 and row["learner/grad_norm"] > 0
    assert all(r["sync/canary"] > 0 for r in rows if r["arm"] == "pararl" and r["update"] > 0 and "sync/canary" in r)


def wandb_inspect(folder: Path, *flags: str) -> str:
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", *flags, "--json", str(folder)]
    return subprocess.run(command, text=True, capture_output=True, check=True, timeout=60).stdout


def test_wandb_shows_the_reward_curve_of_metrics_jsonl(run: Path) -> None:
    folders = sorted((run / "wandb").glob("offline-run-*"))
    assert len(folders) == 2
    shown = []
    for folder in folders:
        records = [json.loads(line) for line in wandb_inspect(folder).splitlines() if line.startswith("{")]
        shown.append(sorted(v for v in (_history_value(r, "reward/mean") for r in records) if v is not None))
    kept = [
        sorted(r["reward/mean"] for r in read_lines(run / "metrics.jsonl") if r["arm"] == a and "reward/mean" in r)
        for a in ("pararl", "offline_dpo")
    ]
    assert sorted(shown) == sorted(kept) and all(len(curve) == 3 for curve in kept)


def _history_value(record: dict[str, Any], name: str) -> float | None:
    """The value of a metric in one record of the inspector, wherever its format nests it."""
    if record.get("type") != "history":
        return None
    text = json.dumps(record)
    if f'"{name}"' not in text:
        return None
    stack: list[object] = [record]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            if name in item:
                return float(item[name])
            if item.get("key") == name or item.get("nested_key") == [name]:
                return float(item.get("value", item.get("value_json")))  # type: ignore[arg-type]
            stack += item.values()
        elif isinstance(item, list):
            stack += item
    return None


def test_an_aligned_adapter_loads_with_peft_and_changes_the_samples(run: Path) -> None:
    shapes, colours = ("circles", "crosses", "squares", "triangles"), ("red", "green", "blue", "orange")
    texts = [f"two {colour} {shape}" for colour in colours for shape in shapes]
    policy = policies.load("scenes-mmada")
    base = policy.sample(texts, seed=3)
    PeftModel.from_pretrained(policy.model, str(run / "adapters" / "pararl"))
    aligned = policy.sample(texts, seed=3)
    assert all(o.image is not None and o.image.shape == (32, 32, 3) for o in aligned)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        assert not torch.equal(policy.model(ids), policies.load("scenes-mmada").model(ids))
    changed = [(a.image != b.image).any() for a, b in zip(base, aligned, strict=True)]  # type: ignore[union-attr]
    assert any(changed), "three updates at lr 1e-2 change some sample of sixteen"


def test_evaluate_gives_the_figures_of_the_summary(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "evaluation"
    output = finish(start("--run", str(run), "--out", str(out), "--diversity", "2", "--samples", "2", script="evaluate.py"))
    assert output.count("t2i, id ") == output.count("interleaved_edit, ood_pair ") == 5
    found = json.loads((out / "evaluation.json").read_text())
    summary = Summary.from_json(json.loads((run / "summary.json").read_text()))
    for name, expected in (("base", summary.base), ("pararl", summary.arms["pararl"]), ("offline_dpo", summary.arms["offline_dpo"])):
        report = found["results"][name]["t2i"]["id"]
        assert report["strict"]["mean"] == expected.kinds["t2i"]["id"].strict, name
        assert report["soft"]["mean"] == pytest.approx(expected.kinds["t2i"]["id"].soft), name
        assert {kind: set(splits) for kind, splits in found["results"][name].items()} == {k: set(s) for k, s in expected.kinds.items()}
        assert report["axes"]["image_alignment"]["mean"] == pytest.approx(report["soft"]["mean"])
        assert ("kl" in report) == (name != "base")
        assert np.asarray(Image.open(out / f"worst-{name}.png")).std() > 5
    gain = found["gains"]["pararl"]["t2i"]["id"]["soft"]
    aligned, base = (result.kinds["t2i"]["id"].soft for result in (summary.arms["pararl"], summary.base))
    assert gain["mean"] == pytest.approx(aligned - base) and gain["low"] <= gain["mean"] <= gain["high"]


def test_a_run_folder_is_never_overwritten(run: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    process = start("--config", str(SMOKE), "--run.dir", str(run.parent), "--run.name", run.name)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2 and "exists already" in output
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before


def without_clock(summary: dict[str, Any]) -> dict[str, Any]:
    return {**summary, "arms": {arm: {k: v for k, v in result.items() if k != "seconds"} for arm, result in summary["arms"].items()}}


def test_killed_and_resumed_gives_the_same_summary(run: Path, tmp_path: Path) -> None:
    """Killed in its second arm, the first finished; ``tests/pararl/loop/test_going_on.py`` kills in many places."""
    folder = tmp_path / "killed"
    process = start(*SMALL, "--run.dir", str(tmp_path), "--run.name", folder.name, start_new_session=True)
    kill_in("offline_dpo", process, folder)
    finish(start("--resume", str(folder)))
    resumed, straight = (json.loads((place / "summary.json").read_text()) for place in (folder, run))
    assert without_clock(resumed) == without_clock(straight)
    for arm in ("pararl", "offline_dpo"):
        rows = [r for r in read_lines(folder / "metrics.jsonl") if r["arm"] == arm and "perf/update" in r]
        assert [r["update"] for r in rows] == [1, 2, 3], arm


def test_a_run_has_one_process_and_sigterm_ends_it_as_ctrl_c_does(tmp_path: Path) -> None:
    folder = tmp_path / "stopped"
    process = start(
        *SMALL, *ONE_TASK, "--run.updates", "500", "--run.arms", "pararl", "--run.dir", str(tmp_path), "--run.name", folder.name
    )
    wait_for("pararl", process, folder)
    second, _ = start("--resume", str(folder)).communicate(timeout=60)
    assert second == f"pararl: error: another process is at work in {folder}: wait for it, or stop it\n"
    process.terminate()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert output.splitlines()[-1] == f"pararl: error: stopped; go on with --resume {folder}"
    assert "SIGTERM" not in output and "Traceback" not in output


def test_a_finished_run_says_its_table_again_without_ray(run: Path, tmp_path: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    output = finish(start("--resume", str(run), modules=tmp_path / "modules"))
    summary = Summary.from_json(json.loads((run / "summary.json").read_text()))
    assert table(summary) in output and f"in {run}: summary.json, curves.png, kinds.png" in output
    assert not {"ray", "wandb", "matplotlib", "torch"} & set((tmp_path / "modules").read_text().split())
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before


def test_a_study_refuses_runs_of_other_settings_in_its_place(run: Path, tmp_path: Path) -> None:
    (tmp_path / "seed-0").mkdir()
    for name in ("config.yaml", "summary.json"):
        (tmp_path / "seed-0" / name).write_bytes((run / name).read_bytes())
    process = start("--config", str(SMOKE), "--seeds", "0", "--out", str(tmp_path), "--learner.beta", "7", script="study.py")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2 and "choose another --out" in output and not (tmp_path / "results.md").exists()
