"""A backbone in bfloat16: what stays float32, that sampler and learner are still one model, and that checkpointing changes no gradient."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import policies
from pararl import adapter
from pararl.arms import ARM_SPECS
from pararl.config import Config, changed
from pararl.learner.learner import Learner
from pararl.rollout.workers import Request, RolloutWorker, WorkerSettings, load_policy
from pararl.sync import pack
from policies import Sampling
from tests.pararl.learner.learning import ALL_TASKS, CONFIG, adapter_of, make, prompt, sample, teach
from tests.pararl.plan.live_bytes import LiveBytes
from tests.wording import telling

EPSILON = 2**-8
"""Relative rounding of bfloat16."""
SETTINGS = WorkerSettings("", rank=4, alpha=8, dtype="bfloat16")


def low(directory: Path) -> Learner:
    """A learner whose backbone is bfloat16."""
    policy = load_policy(replace(SETTINGS, policy=str(directory)))
    return Learner(policy, adapter.attach(policy, rank=4, alpha=8, seed=1), CONFIG, ARM_SPECS["pararl"])


def test_only_the_backbone_is_bfloat16(tiny_policy_dir: Path) -> None:
    learner = low(tiny_policy_dir)
    rollouts = sample(learner, ALL_TASKS)
    learner.update(rollouts, teach(rollouts, learner.arm))
    kinds = {name: p.dtype for name, p in learner.policy.model.named_parameters()}
    assert {dtype for name, dtype in kinds.items() if "lora_" in name} == {torch.float32}
    assert {dtype for name, dtype in kinds.items() if "lora_" not in name} == {torch.bfloat16}
    moments = [x for state in learner.optimizer.state_dict()["state"].values() for n, x in state.items() if n.startswith("exp_avg")]
    assert len(moments) == 2 * len(learner.parameters) and {x.dtype for x in moments} == {torch.float32}
    images: torch.nn.Module = learner.policy.layout.images.module
    assert {p.dtype for p in images.parameters()} == {torch.float32}
    assert {s.logprob.dtype for r in rollouts for s in r.segments} == {np.dtype(np.float32)}


def test_sampler_and_learner_agree_within_the_rounding_of_bfloat16(tiny_policy_dir: Path) -> None:
    learner, worker = low(tiny_policy_dir), RolloutWorker(replace(SETTINGS, policy=str(tiny_policy_dir)))
    asked = [Request(prompt(i, "interleaved", False), k, 10 * i + k) for i in range(2) for k in range(4)]
    sampling, sent, gaps = Sampling(steps=4, recorded=4, guidance=1.0), None, []
    for version in range(3):
        rollouts = worker.generate(asked, sampling, sent, version)
        gaps.append(learner.update(rollouts, teach(rollouts, learner.arm))["sync/logprob_gap"])
        sent = pack(adapter.tensors(learner.peft), version + 1)
        receipt = worker.load(sent)
        assert receipt.checksum == sent.checksum and receipt.canary > 0, "an update shows through the rounding"
    largest = learner.policy.canary().abs().max().item()
    assert max(gaps) <= 4 * EPSILON * max(largest, 1.0)


def test_bfloat16_is_the_same_model_but_for_rounding(tiny_policy_dir: Path) -> None:
    wide, narrow = policies.load(tiny_policy_dir).canary(), low(tiny_policy_dir).policy.canary()
    gap, scale = (wide - narrow).abs().max().item(), wide.square().mean().sqrt().item()
    assert 0 < gap < 16 * EPSILON * scale


def test_adapter_off_is_the_base_bit_for_bit_in_bfloat16(tiny_policy_dir: Path) -> None:
    learner = low(tiny_policy_dir)
    base = load_policy(replace(SETTINGS, policy=str(tiny_policy_dir))).canary()
    rollouts = sample(learner)
    learner.update(rollouts, teach(rollouts, learner.arm))
    assert not torch.equal(learner.policy.canary(), base)
    with adapter.base(learner.peft):
        assert torch.equal(learner.policy.canary(), base)


@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16"])
def test_a_cpu_computes_in_float32_unless_told_otherwise(tiny_policy_dir: Path, tmp_path: Path, dtype: str) -> None:
    held = policies.load(tiny_policy_dir).to("cpu", torch.bfloat16)
    held.save(tmp_path / "held")
    config = changed(Config(), {"policy.name": str(tmp_path / "held"), "policy.dtype": dtype})
    for settings in (WorkerSettings.of(config), WorkerSettings.of(config, config.learner)):
        found = next(load_policy(settings).model.parameters()).dtype
        assert found == (torch.bfloat16 if dtype == "bfloat16" else torch.float32)


def test_gradient_checkpointing_gives_the_same_update_in_less_memory(tiny_policy_dir: Path) -> None:
    after = []
    for on in (False, True):
        learner = make(tiny_policy_dir, config=replace(CONFIG, gradient_checkpointing=on, micro=64))
        rollouts = sample(learner, ALL_TASKS)
        with LiveBytes() as live:
            live.ignore(learner.policy.model.parameters())
            learner.update(rollouts, teach(rollouts, learner.arm))
        after.append((adapter_of(learner), live.peak))
    (plain, all_kept), (again, inputs_kept) = after
    assert torch.equal(plain, again)
    assert inputs_kept < 0.8 * all_kept, "of two blocks one is there at a time"


def test_a_backbone_that_cannot_checkpoint_says_so(tiny_policy_dir: Path) -> None:
    policy = policies.load(tiny_policy_dir)
    del policy.model.gradient_checkpointing
    policy.checkpoint_gradients(False)
    del policy.model.gradient_checkpointing
    with pytest.raises(ValueError, match=telling("learner.gradient_checkpointing", "false")):
        policy.checkpoint_gradients(True)
