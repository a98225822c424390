"""The whole program, as users start it: real Ray, real W&B offline files, real PEFT, in subprocesses."""

import json
import os
import re
import signal
import subprocess
import sys
import time
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
from pararl.files import claimed, read_lines
from pipelines import export
from tests.pipelines.programs import ONE_TASK, ROOT, SMALL, SMOKE, finish, start, wait_until


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
        held = {"README.md", "adapter_config.json", "adapter_model.safetensors"}
        assert {p.name for p in (run / result["adapter"]).iterdir()} == held, arm
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["run"]["arms"] == ["pararl", "offline_dpo"] and config["learner"]["lr"] > 0
    for picture in ("curves.png", "kinds.png", "samples/id-000.png", "samples/id-008.png"):
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


def test_an_adapter_is_taken_home_with_a_card_that_has_the_metrics_of_the_summary(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["export.py", str(run / "adapters" / "offline_dpo"), "--out", str(tmp_path / "home")])
    export.main()
    policy = policies.load("scenes-mmada")
    PeftModel.from_pretrained(policy.model, str(run / "adapters" / "offline_dpo"))
    assert torch.allclose(policies.load(tmp_path / "home").canary(), policy.canary(), rtol=0, atol=1e-4)
    assert (tmp_path / "home" / "curves.png").read_bytes() == (run / "curves.png").read_bytes()
    summary = Summary.from_json(json.loads((run / "summary.json").read_text()))
    base, arm = summary.base, summary.arms["offline_dpo"]
    for card in (run / "adapters" / "offline_dpo" / "README.md", tmp_path / "home" / "README.md"):
        text = card.read_text()
        assert f"| {arm.id.n} | {base.id.strict:.3f} | {base.id.soft:.3f} | {arm.id.strict:.3f} | {arm.id.soft:.3f} |" in text
        assert f"{arm.updates} updates, {arm.reward_calls:,} reward calls" in text and "arm: offline_dpo" in text
        assert str(run.parent) not in text and str(ROOT) not in text and str(tmp_path) not in text
        recipe = yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0])
        assert recipe["learner"]["lr"] == 1e-2 and recipe["run"]["arms"] == ["offline_dpo"]


def test_evaluate_gives_the_metrics_of_the_summary(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "evaluation"
    output = finish(start("--run", str(run), "--out", str(out), "--diversity", "2", "--samples", "2", script="evaluate.py"))
    assert "gm, soft: " in output and "gm, soft: " in (out / "table.txt").read_text()
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
    assert process.returncode == 2 and f"--resume {run}" in output
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == before


def without_clock(summary: dict[str, Any]) -> dict[str, Any]:
    return {**summary, "arms": {arm: {k: v for k, v in result.items() if k != "seconds"} for arm, result in summary["arms"].items()}}


def test_killed_at_random_moments_and_resumed_is_undisturbed_bit_for_bit(run: Path, tmp_path: Path) -> None:
    """By SIGKILL and SIGTERM; ``test_clip_run`` kills in a chosen place, ``test_going_on`` in many."""
    folder, rng = tmp_path / "killed", np.random.default_rng()
    for number in (signal.SIGKILL, signal.SIGTERM):
        begun = (folder / "config.yaml").exists()
        again = ["--resume", str(folder)] if begun else [*SMALL, "--run.dir", str(tmp_path), "--run.name", folder.name]
        process = start(*again, start_new_session=True)
        wait_until(lambda: (folder / "config.yaml").exists() and at_work(folder), process)
        moment = float(rng.uniform(0, 6))
        time.sleep(moment)
        if number == signal.SIGKILL:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        output, _ = process.communicate(timeout=60)
        assert process.returncode in (0, -signal.SIGKILL, 128 + signal.SIGTERM), f"{number.name} after {moment} s: {output}"
        assert "Traceback" not in output
    finish(start("--resume", str(folder)))
    resumed, straight = (json.loads((place / "summary.json").read_text()) for place in (folder, run))
    assert without_clock(resumed) == without_clock(straight)
    undisturbed, found = ([without_times(row) for row in read_lines(place / "metrics.jsonl")] for place in (run, folder))
    assert found == undisturbed
    for arm in ("pararl", "offline_dpo"):
        weights = [(place / "adapters" / arm / "adapter_model.safetensors").read_bytes() for place in (folder, run)]
        assert weights[0] == weights[1], arm


def at_work(folder: Path) -> bool:
    """Whether a process holds a run, which it does from where it has found nothing wrong."""
    try:
        with claimed(folder):
            return False
    except BlockingIOError:
        return True


def without_times(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not name.startswith("perf/")}


def test_a_run_has_one_process_and_sigterm_ends_it_behind_its_update(tmp_path: Path) -> None:
    """Nothing that was done is lost, though no checkpoint was due."""
    folder = tmp_path / "stopped"
    process = start(
        *SMALL,
        *(*ONE_TASK, "--run.updates", "500", "--run.checkpoint_every", "500", "--run.arms", "pararl"),
        *("--run.dir", str(tmp_path), "--run.name", folder.name),
    )
    wait_until(lambda: any(row["update"] > 1 for row in read_lines(folder / "metrics.jsonl")), process)
    second, _ = start("--resume", str(folder)).communicate(timeout=60)
    assert second == f"pararl: error: another process is at work in {folder}: wait for it, or stop it\n"
    process.terminate()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert output.splitlines()[-1] == f"pararl: error: stopped; go on with --resume {folder}"
    assert "SIGTERM" not in output and "Traceback" not in output and not (folder / "errors.log").exists()
    done = read_lines(folder / "metrics.jsonl")[-1]["update"]
    assert json.loads((folder / "checkpoints" / "pararl" / "state.json").read_text())["counters"]["update"] == done


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
    assert process.returncode == 2 and all(token in output for token in ("seed-0", "--out"))
    assert not (tmp_path / "results.md").exists()
