"""The recipe of the embedded base, in little: it runs, resumes where it stopped, and leaves what ``policies.load`` reads."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import policies
import rewards
from pararl import scenes
from pararl.types import KINDS
from pipelines import pretrain as pretraining
from policies import Policy
from policies.image.continuous import ContinuousVAE
from policies.weights import read_model
from tests.wording import telling

ROOT = Path(__file__).resolve().parents[2]


LITTLE = ["--batch", "6", "--every", "2", "--final", "8", "--threads", "1"]


def pretrain(stage: str, out: Path, *arguments: str) -> None:
    """In this process: half of a little stage in one of its own would be the imports."""
    precision = torch.get_float32_matmul_precision()
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        patch.setattr(sys, "argv", ["pretrain.py", stage, "--out", str(out), *LITTLE, *arguments])
        pretraining.main()
    torch.set_float32_matmul_precision(precision)


def test_a_resumed_training_ends_where_a_straight_one_does(tmp_path: Path) -> None:
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    # The program itself, from another folder than the checkout.
    command = [sys.executable, str(ROOT / "pipelines" / "pretrain.py"), "tokenizer", "--out", straight.name, "--steps", "2", *LITTLE]
    done = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True, timeout=200)
    assert done.returncode == 0 and "\r" not in done.stderr, done.stderr
    assert "tokenizer  step 2/2" in done.stderr
    shutil.copytree(straight, stopped)
    pretrain("policy", straight, "--steps", "6", "--stop", "4")
    pretrain("policy", stopped, "--steps", "6", "--stop", "2")
    pretrain("policy", stopped, "--steps", "6", "--stop", "4")
    with pytest.raises(SystemExit, match=telling("--seed", 0, 1)):
        pretrain("policy", stopped, "--steps", "6", "--lr", "0.002", "--seed", "1")
    one, two = (load_file(out / "model.safetensors") for out in (straight, stopped))
    assert set(one) == set(two) and all(torch.equal(one[name], two[name]) for name in one)
    facts = json.loads((stopped / "training.json").read_text())
    assert facts["policy"]["steps"] == 4 and [row["step"] for row in facts["policy"]["curve"]] == [2, 4]
    assert facts["tokenizer"]["result"]["scenes"] == 8
    pretrain("slips", stopped, "--steps", "2")
    with pytest.raises(SystemExit, match=telling("slips", "--out")):
        pretrain("policy", stopped)
    changed_by_it = load_file(stopped / "model.safetensors")
    assert not torch.equal(changed_by_it["model.transformer.blocks.0.attn_out.weight"], one["model.transformer.blocks.0.attn_out.weight"])
    assert json.loads((stopped / "training.json").read_text()).keys() == {"tokenizer", "policy", "slips"}
    policy = policies.load(stopped)
    assert isinstance(policy, Policy)
    (output,) = policy.sample("a red circle")
    assert output.image is not None and output.image.shape == (32, 32, 3)


def test_the_vae_is_trained_resumed_and_read(tmp_path: Path) -> None:
    out = tmp_path / "vae"
    pretrain("vae", out, "--steps", "4")
    vae = read_model(ContinuousVAE, out / "image_tokenizer")
    with torch.no_grad():
        latents = vae.encode(torch.rand(2, 3, 32, 32) * 2 - 1)
    assert latents.shape == (2, 16, 4, 4) and vae.config.latents_std != [1.0] * 16
    result = json.loads((out / "training.json").read_text())["vae"]["result"]
    assert result["scenes"] == 8 and 0 <= result["identical at noise 0.2"] <= 1 and min(result["posterior deviation"]) > 0
    weights = (out / "image_tokenizer" / "model.safetensors").read_bytes()
    pretrain("vae", out, "--steps", "4")  # nothing is left to do
    assert (out / "image_tokenizer" / "model.safetensors").read_bytes() == weights


def test_the_clip_model_is_trained_and_loaded_as_a_reward(tmp_path: Path) -> None:
    out = tmp_path / "clip"
    pretrain("clip", out, "--steps", "2")
    facts = json.loads((out / "training.json").read_text())["clip"]
    assert facts["steps"] == 2 and facts["result"]["prompts"] == 8 and facts["parameters"] < 1.5e6
    assert {"retrieval right", "colour right", "loss", "step"} <= facts["curve"][0].keys()
    reward = rewards.load(f"clip:{out}")
    shown = scenes.example("id", 0)
    (score,) = rewards.score_outputs(reward, [shown.prompt], [shown.output])
    assert score is not None and 0 <= score.value <= 1


@pytest.mark.parametrize(("name", "stage"), [("scenes-mmada", "slips"), ("scenes-showo", "policy"), ("scenes-showo2", "slips")])
def test_a_shipped_base_does_every_task_as_well_as_its_record_says(name: str, stage: str) -> None:
    facts = json.loads((policies.CHECKPOINTS / name / "training.json").read_text())
    strict = facts[stage]["result"]["id_strict"]
    policy = policies.load(name)
    assert isinstance(policy, Policy)
    kinds = [kind for kind in KINDS if kind.partition("_")[0] in policy.settings.tasks and f"{kind}, guidance 0.0" in strict]
    assert {kind.partition("_")[0] for kind in kinds} == set(policy.settings.tasks)
    for kind in kinds:
        prompts = [scenes.prompt("id", i, 0, *scenes.FORMS[kind]) for i in range(64)]
        rollouts = policy.generate(prompts, list(range(64)), policy.sampling)
        share = np.mean([bool(scenes.score(r.prompt.task, r.prompt.spec, r.output).strict) for r in rollouts])
        expected = strict[f"{kind}, guidance 0.0"]
        assert abs(share - expected) < 3.5 * (expected * (1 - expected) / 64) ** 0.5, kind


def test_the_shipped_base_was_made_by_the_recipe_that_it_records() -> None:
    directory = policies.CHECKPOINTS / "scenes-mmada"
    facts = json.loads((directory / "training.json").read_text())
    assert facts["tokenizer"]["result"]["identical"] >= 0.999 and facts["tokenizer"]["result"]["scenes"] >= 10_000
    strict = facts["slips"]["result"]["id_strict"]
    recorded = {kind: strict[f"{kind}, guidance 0.0"] for kind in KINDS}
    assert min(recorded.values()) >= 0.15 and max(recorded.values()) <= 0.65, "every kind above chance, with room left"
    assert sum(p.stat().st_size for p in directory.rglob("*") if ".training" not in p.parts) < 10e6
    assert {p.suffix for p in directory.rglob("*") if p.is_file() and ".training" not in p.parts} <= {".safetensors", ".json", ".png"}
