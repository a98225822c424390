"""Invariant 8: on texts our preference loss is that of TRL's DPOTrainer; and an arm that TRL trains learns what TRL teaches."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

import policies
from pararl import adapter, scenes
from pararl.arms import ARM_SPECS
from pararl.config import LearnerConfig
from pararl.learner.learner import Learner
from pararl.learner.prefer import Feedback
from pararl.learner.trl_dpo import PairTrainer, Row, TrlStepper, token_rows, trl_learner
from pararl.learner.trl_view import TextView
from pararl.types import Pair, Rollout, Task
from policies import Policy, Sampling
from tests.pararl.learner.learning import adapter_of
from tests.wording import telling

RANK, ALPHA, SEED, UPDATES = 4, 8, 1, 3
CONFIG = LearnerConfig(lr=1e-2, beta=3.0, reference_every=0, likelihood="elbo", draws=1, clip_norm=1e9)
"""Without clipping, so that gradients are compared as they are."""
ARM = ARM_SPECS["offline_dpo"]
I2T: tuple[Task, ...] = ("i2t",)
BOTH: tuple[Task, ...] = ("i2t", "t2t")
GROUP = 4


def policy_in(directory: Path) -> Policy:
    policy = policies.load(directory)
    assert isinstance(policy, Policy)
    return policy


def ours(directory: Path, config: LearnerConfig = CONFIG) -> Learner:
    policy = policy_in(directory)
    return Learner(policy, adapter.attach(policy, RANK, ALPHA, SEED), config, ARM, SEED, UPDATES)


def by_trl(directory: Path, config: LearnerConfig = CONFIG) -> Learner:
    return trl_learner(policy_in(directory), RANK, ALPHA, config, ARM, SEED, UPDATES)


def trainer_of(learner: Learner) -> PairTrainer:
    assert isinstance(learner.stepper, TrlStepper)
    return learner.stepper.trainer


def sample(policy: Policy, tasks: tuple[Task, ...]) -> list[Rollout]:
    """Two groups of each task, whose texts end at different places."""
    prompts = [scenes.prompt("train", i, task=task) for task in tasks for i in range(2) for _ in range(GROUP)]
    rollouts = policy.generate(prompts, list(range(len(prompts))), Sampling(steps=4, recorded=2))
    assert len({len(r.output.text.split()) for r in rollouts if r.output.text is not None}) > 3
    return rollouts


def taught(rollouts: list[Rollout], weights: tuple[float, ...] = (1.0,)) -> Feedback:
    """Three pairs of every group, one rollout in two of them; the weights in turn."""
    pairs = [(first + i, first + j) for first in range(0, len(rollouts), GROUP) for i, j in ((0, 1), (2, 3), (0, 3))]
    return Feedback(pairs=tuple(Pair(i, j, weights[n % len(weights)]) for n, (i, j) in enumerate(pairs)))


def rows_by_hand(policy: Policy, rollouts: list[Rollout], feedback: Feedback) -> list[Row]:
    """Read off what the policy is shown: a prompt's canvas without its padding, and a text's tokens until one ends it."""

    def said(rollout: Rollout) -> list[int]:
        tokens = rollout.segments[0].tokens.tolist()
        ends = [i for i, token in enumerate(tokens) if token in policy.layout.text.ends]
        return tokens[: ends[0] + 1] if ends else tokens

    rows = []
    for pair in feedback.pairs:
        chosen, rejected = rollouts[pair.chosen], rollouts[pair.rejected]
        canvas = policy.layout.canvas([chosen.prompt])
        prompt = canvas.ids[0, : canvas.prefix][canvas.attention[0, : canvas.prefix]].tolist()
        rows.append({"prompt_ids": prompt, "chosen_ids": said(chosen), "rejected_ids": said(rejected)})
    return rows


def stir(learner: Learner) -> None:
    """Move the adapter off the base."""
    generator = torch.Generator().manual_seed(5)
    for name, x in adapter.tensors(learner.peft).items():
        if "lora_B" in name:
            x.copy_(torch.randn(x.shape, generator=generator) * 0.3)


def gradient(learner: Learner) -> Tensor:
    return torch.cat([p.grad.flatten() for p in learner.parameters if p.grad is not None])


def trls_loss(learner: Learner, rows: list[Row]) -> Tensor:
    """TRL's own loss of rows in TRL's own batch, none of our code about it but the view."""
    batch = DataCollatorForPreference(learner.policy.settings.specials.pad)(rows)
    loss: Tensor = DPOTrainer.compute_loss(trainer_of(learner), trainer_of(learner).model, batch)
    return loss


@pytest.mark.parametrize("stirred", [False, True])
@pytest.mark.parametrize("tasks", [I2T, BOTH])
def test_our_loss_and_its_gradient_are_those_of_trls_dpo_trainer(speaking_showo_dir: Path, tasks: tuple[Task, ...], stirred: bool) -> None:
    learner, theirs = ours(speaking_showo_dir), by_trl(speaking_showo_dir)
    assert torch.equal(adapter_of(learner), adapter_of(theirs)), "TRL draws the adapter that we draw"
    policy = learner.policy
    assert isinstance(policy, Policy)
    rollouts = sample(policy, tasks)
    feedback = taught(rollouts)
    if stirred:
        stir(learner)
        stir(theirs)
    rows = rows_by_hand(policy, rollouts, feedback)
    assert token_rows(policy, [(rollouts[p.chosen], rollouts[p.rejected]) for p in feedback.pairs]) == rows
    loss = trls_loss(theirs, rows)
    loss.backward()
    metrics = learner.update(rollouts, feedback)
    assert metrics["loss/total"] == pytest.approx(loss.item(), rel=1e-5)
    assert (abs(loss.item() - math.log(2)) > 1e-3) == stirred
    assert gradient(learner).norm() > 0.01
    assert (gradient(learner) - gradient(theirs)).norm() < 1e-5 * gradient(learner).norm()


def sums(learner: Learner) -> None:
    trainer_of(learner).loss_types = ["sigmoid"]


def causal_images(learner: Learner) -> None:
    learner.policy.layout.blocks = torch.zeros_like  # type: ignore[method-assign, assignment]


def free_rows(learner: Learner) -> None:
    learner.policy.tokens.text_bias.zero_()


def other_beta(learner: Learner) -> None:
    trainer_of(learner).beta *= 1.1


@pytest.mark.parametrize("deviation", [sums, causal_images, free_rows, other_beta])
def test_that_comparison_sees_what_could_be_wrong_with_the_model_or_the_loss(
    speaking_showo_dir: Path, deviation: Callable[[Learner], None]
) -> None:
    theirs = by_trl(speaking_showo_dir)
    policy = theirs.policy
    assert isinstance(policy, Policy)
    rollouts = sample(policy, I2T)
    rows = rows_by_hand(policy, rollouts, taught(rollouts))
    stir(theirs)
    right = trls_loss(theirs, rows).item()
    deviation(theirs)
    assert abs(trls_loss(theirs, rows).item() / right - 1) > 1e-3


def without_ends(row: Row) -> Row:
    return row | {"chosen_ids": row["chosen_ids"][:-1], "rejected_ids": row["rejected_ids"][:-1]}


def ends_twice(row: Row) -> Row:
    return row | {side: row[side] + row[side][-1:] for side in ("chosen_ids", "rejected_ids")}


def without_image(row: Row) -> Row:
    return row | {"prompt_ids": row["prompt_ids"][:1] + row["prompt_ids"][-4:]}


@pytest.mark.parametrize("deviation", [without_ends, ends_twice, without_image])
def test_that_comparison_sees_what_could_be_wrong_with_the_tokens(speaking_showo_dir: Path, deviation: Callable[[Row], Row]) -> None:
    theirs = by_trl(speaking_showo_dir)
    policy = theirs.policy
    assert isinstance(policy, Policy)
    rollouts = sample(policy, I2T)
    rows = rows_by_hand(policy, rollouts, taught(rollouts))
    stir(theirs)
    assert abs(trls_loss(theirs, [deviation(row) for row in rows]).item() / trls_loss(theirs, rows).item() - 1) > 1e-3


@pytest.mark.parametrize("weights", [(1.0,), (0.5, 0.2, 0.5, 0.9)])
def test_updates_by_trl_are_our_updates_weights_micro_batches_and_schedule_included(
    speaking_showo_dir: Path, weights: tuple[float, ...]
) -> None:
    config = replace(CONFIG, schedule="linear", clip_norm=0.1, text_weight=0.5, micro=6)
    learner, theirs = ours(speaking_showo_dir, config), by_trl(speaking_showo_dir, config)
    policy = learner.policy
    assert isinstance(policy, Policy)
    rollouts = sample(policy, BOTH)
    feedback, start = taught(rollouts, weights), adapter_of(learner)
    for _ in range(UPDATES):
        mine, yours = learner.update(rollouts, feedback), theirs.update(rollouts, feedback)
        assert mine["learner/grad_norm"] > 0.1, "the gradient is clipped"
        for name in ("loss/total", "learner/grad_norm", "learner/lr", "learner/pairs"):
            assert yours[name] == pytest.approx(mine[name], rel=1e-4), name
    assert (adapter_of(learner) - adapter_of(theirs)).norm() < 1e-3 * (adapter_of(learner) - start).norm()
    assert not any(module.training for module in policy_modules(theirs))


def policy_modules(learner: Learner) -> list[torch.nn.Module]:
    return list(learner.policy.model.modules())


class Tokenised(DPOTrainer):
    """What a user of TRL would write to train on tokens."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset


def test_updates_by_trl_leave_what_one_training_by_trl_leaves(speaking_showo_dir: Path, tmp_path: Path) -> None:
    learner = by_trl(speaking_showo_dir)
    start = adapter_of(learner)
    policy = policy_in(speaking_showo_dir)
    rollouts = sample(policy, I2T)
    feedback = taught(rollouts)
    pairs = feedback.pairs
    for i in range(UPDATES):
        learner.update(rollouts, Feedback(pairs=pairs[2 * i : 2 * i + 2]))
    arguments = DPOConfig(
        str(tmp_path),
        seed=SEED,
        loss_type=["sigmoid_norm"],
        beta=CONFIG.beta,
        learning_rate=CONFIG.lr,
        lr_scheduler_type="constant",
        adam_beta2=0.99,
        weight_decay=0.0,
        optim="adamw_torch",
        max_grad_norm=CONFIG.clip_norm,
        per_device_train_batch_size=2,
        max_steps=UPDATES,
        train_sampling_strategy="sequential",
        max_length=None,
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Tokenised(
        TextView(policy),
        args=arguments,
        train_dataset=Dataset.from_list(rows_by_hand(policy, rollouts, feedback)),
        processing_class=policy.layout.text.tokenizer,
        peft_config=adapter.lora_config(policy, RANK, ALPHA),
    )
    trainer.train()
    assert isinstance(trainer.model, PeftModel)
    found = torch.cat([x.flatten() for x in adapter.tensors(trainer.model).values()])
    assert (found - start).norm() > 1
    assert (found - adapter_of(learner)).norm() < 1e-4 * (found - start).norm()


def test_resumed_by_trl_is_never_stopped_bit_for_bit_and_the_adapter_is_an_ordinary_one(speaking_showo_dir: Path, tmp_path: Path) -> None:
    straight, first, second = by_trl(speaking_showo_dir), by_trl(speaking_showo_dir), by_trl(speaking_showo_dir)
    policy = policy_in(speaking_showo_dir)
    rollouts = sample(policy, I2T)
    feedback = taught(rollouts, (0.3, 0.6))
    for _ in range(UPDATES):
        straight.update(rollouts, feedback)
    first.update(rollouts, feedback)
    second.load_state(*first.state())
    for _ in range(UPDATES - 1):
        second.update(rollouts, feedback)
    assert torch.equal(adapter_of(straight), adapter_of(second)) and not torch.equal(adapter_of(first), adapter_of(second))
    with adapter.base(straight.peft):
        assert torch.equal(straight.policy.canary(), policy.canary()), "adapter off is the base"
    adapter.save(straight.peft, tmp_path / "adapter", "tiny")
    before = policy.canary()
    PeftModel.from_pretrained(policy.model, str(tmp_path / "adapter"))
    assert torch.equal(policy.canary(), straight.policy.canary()) and not torch.equal(policy.canary(), before)


def test_trl_refuses_outputs_that_are_no_text(speaking_showo_dir: Path) -> None:
    learner = by_trl(speaking_showo_dir)
    prompts = [scenes.prompt("train", 0, task="t2i")] * 2
    rollouts = learner.policy.generate(prompts, [0, 1], Sampling(steps=4, recorded=2))
    with pytest.raises(ValueError, match=telling("TRL", "t2i")):
        learner.update(rollouts, Feedback(pairs=(Pair(0, 1, 1.0),)))
