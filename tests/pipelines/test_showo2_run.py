"""Whole runs of the embedded Show-o2: every arm's likelihood, text and image in one output, an adapter that loads with PEFT."""

import json
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel

import policies
from pararl.files import read_lines
from tests.pipelines.programs import SMALL, finish, start

ARMS = ["--run.arms", "pararl_grpo,output,hermesflow", "--arm.output.learner.likelihood", "elbo", "--learner.lr", "2e-3"]
TASKS = ["--policy.name", "scenes-showo2", "--curriculum.tasks", "i2t,t2i,interleaved"]


def test_every_form_of_alignment_learns_from_texts_and_flows_and_leaves_an_adapter(tmp_path: Path) -> None:
    finish(start(*SMALL, *TASKS, *ARMS, "--run.dir", str(tmp_path), "--run.name", "flow"))
    run = tmp_path / "flow"
    rows = [row for row in read_lines(run / "metrics.jsonl") if "reward/mean" in row]
    by_arm = {arm: [row for row in rows if row["arm"] == arm] for arm in ("pararl_grpo", "output", "hermesflow")}
    assert all(len(found) == 3 for found in by_arm.values())
    on_policy = by_arm["pararl_grpo"][0]
    assert on_policy["sync/logprob_gap"] < 1e-3 and abs(on_policy["preference/ratio_image"] - 1) < 1e-3
    assert all(np.isfinite(row["preference/loss"]) for found in by_arm.values() for row in found if row["preference/pairs"] > 0)
    summary = json.loads((run / "summary.json").read_text())
    for arm in by_arm:
        policy = policies.load("scenes-showo2")
        before = policy.canary()
        PeftModel.from_pretrained(policy.model, str(run / "adapters" / arm))
        assert torch.isfinite(policy.canary()).all() and not torch.equal(policy.canary(), before)
        assert 0 <= summary["arms"][arm]["kinds"]["interleaved"]["id"]["strict"] <= 1
