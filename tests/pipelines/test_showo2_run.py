"""A whole run of the embedded Show-o2 as its configuration has it, beside HermesFlow; its adapters load with PEFT."""

import json
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel

import policies
from pararl.files import read_lines
from tests.pipelines.programs import SMALL, finish, start

ARMS = ["--run.arms", "pararl_grpo,hermesflow", "--run.updates", "2", "--eval.splits", "id", "--learner.lr", "2e-3"]
SHIPPED = ["--arm.pararl_grpo.learner.likelihood", "elbo", "--arm.pararl_grpo.learner.kl", "0.01"]
TASKS = ["--policy.name", "scenes-showo2", "--curriculum.tasks", "i2t,t2i,interleaved"]


def test_every_form_of_alignment_learns_from_texts_and_flows_and_leaves_an_adapter(tmp_path: Path) -> None:
    finish(start(*SMALL, *TASKS, *ARMS, *SHIPPED, "--run.dir", str(tmp_path), "--run.name", "flow"))
    run = tmp_path / "flow"
    rows = [row for row in read_lines(run / "metrics.jsonl") if "reward/mean" in row]
    by_arm = {arm: [row for row in rows if row["arm"] == arm] for arm in ("pararl_grpo", "hermesflow")}
    assert all(len(found) == 2 for found in by_arm.values())
    penalties = [row["loss/kl_penalty_image"] for row in by_arm["pararl_grpo"]]
    assert penalties[0] == 0 < penalties[1], "the first update starts from the base"
    assert by_arm["pararl_grpo"][1].keys() >= {"kl/text", "kl/image"}
    taught = [row for row in by_arm["hermesflow"] if row["learner/pairs"] > 0]
    assert taught and all(np.isfinite(row["loss/total"]) and row["learner/pairs"] % 2 == 0 for row in taught)
    summary = json.loads((run / "summary.json").read_text())
    for arm in by_arm:
        policy = policies.load("scenes-showo2")
        before = policy.canary()
        PeftModel.from_pretrained(policy.model, str(run / "adapters" / arm))
        assert torch.isfinite(policy.canary()).all() and not torch.equal(policy.canary(), before)
        assert 0 <= summary["arms"][arm]["kinds"]["interleaved"]["id"]["strict"] <= 1
