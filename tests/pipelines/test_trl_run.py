"""The whole program where TRL takes the steps: killed, resumed, and what TRL makes of the stored pairs when nothing stops it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import policies
from pararl import adapter
from pararl.cli import parse as cli
from pararl.config import for_arm
from pararl.files import read_lines
from pararl.learner.handle import make_learner
from pararl.learner.prefer import prefer
from pararl.loop.source import static_batch
from pararl.loop.static import StaticRollouts
from policies.cpu import computing
from tests.pipelines.programs import SMOKE, finish, kill_in, start

REWARD = """
def brevity(prompts, completions, **columns):
    return [1 - len(c.text.split()) / 24 for c in completions]
"""
"""Something that a random policy's answers differ in."""
UPDATES = 3
SMALL = [
    "--config", str(SMOKE), "--run.arms", "offline_dpo", "--curriculum.tasks", "i2t", "--run.checkpoint_every", "1", "--learner.lr", "1e-2",
    "--eval.prompts", "8", "--eval.splits", "id", "--eval.every", "0", "--learner.threads", "1", "--reward.name", "mine:brevity",
]  # fmt: skip


def test_trl_trains_the_offline_arm_by_one_option_and_goes_on_after_a_kill(
    speaking_showo_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(REWARD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    folder = tmp_path / "run"
    where = ["--policy.name", str(speaking_showo_dir), "--run.dir", str(tmp_path), "--run.name", folder.name]
    process = start(*SMALL, *where, "--learner.trainer", "trl", start_new_session=True)
    kill_in("offline_dpo", process, folder)
    finish(start("--resume", str(folder)))

    (result,) = json.loads((folder / "summary.json").read_text())["arms"].values()
    assert result["updates"] == UPDATES and result["reward_calls"] > 0 and result["kl"] > 0
    rows = [row for row in read_lines(folder / "metrics.jsonl") if "perf/update" in row]
    assert [row["update"] for row in rows] == [1, 2, 3]
    assert all(row["loss/trl_entropy"] > 0 for row in rows), "TRL's own metrics are among them"

    # The same from the pairs that the run has stored, with nothing to stop it.
    config = for_arm(cli.parse(["--resume", str(folder)]).config, "offline_dpo")
    kept = StaticRollouts.load(folder / "rollouts" / "offline_dpo")
    rollouts, judgements = kept.rollouts, kept.judgements
    losses = []
    with computing(config.learner.threads):
        learner = make_learner(policies.load(speaking_showo_dir), config, "offline_dpo")
        for update in range(1, UPDATES + 1):
            index = static_batch(config, rollouts, kept.ends, update)
            batch, scores = [rollouts[i] for i in index], [judgements[i] for i in index]
            feedback = prefer(batch, scores, learner.arm, config.prefer, config.reward.step_mix, config.rollout.group)
            losses.append(learner.update(batch, feedback)["loss/total"])
    assert [row["loss/total"] for row in rows] == losses and losses[-1] < losses[0]
    saved = load_file(folder / result["adapter"] / "adapter_model.safetensors")
    straight = adapter.tensors(learner.peft)
    assert saved.keys() == straight.keys() and all(torch.equal(saved[name], straight[name]) for name in saved)
