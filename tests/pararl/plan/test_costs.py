"""Forwards and operations of an update: as torch's own counter finds them in the real passes, and as the released sizes give by hand."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import policies
from pararl import adapter
from pararl.arms import ARM_SPECS
from pararl.config import ARMS, Arm, Config, RolloutConfig, changed, for_arm
from pararl.learner.learner import KL_ROLLOUTS as LEARNER_KL_ROLLOUTS
from pararl.learner.learner import Learner
from pararl.learner.prefer import Feedback
from pararl.learner.tables import step_table
from pararl.plan.costs import KL_ROLLOUTS, attention_flops, forward_flops, gradient_flops, rollout_cost, update_cost
from pararl.plan.shapes import ModelShape, shape_of
from pararl.types import Kind, Pair, Prompt, Rollout
from policies import Policy, Sampling
from tests.pararl.learner.learning import teach

RANK = 4
PROMPT = " ".join(["red"] * 48)
"""As long as the tiny policy reads."""


@pytest.fixture(autouse=True)
def plain_products() -> Iterator[None]:
    """Attention as two products of matrices, which the counter can see on a CPU."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


def tiny(directory: Path) -> Policy:
    policy = policies.load(directory)
    adapter.attach(policy, RANK, 8)
    # With a gradient in its embedding the first block is like all others; without one it saves the way back to it.
    policy.model.get_input_embeddings().register_forward_hook(lambda *given: given[2].requires_grad_())
    return policy


@pytest.mark.parametrize("recorded", [0, 4])
@pytest.mark.parametrize("kind", ["t2i", "interleaved"])
def test_a_rollout_takes_the_operations_that_torch_counts(kind: Kind, recorded: int, tiny_policy_dir: Path) -> None:
    """With no step recorded and with all: whole outputs at all steps, or only what advances, which differ by the text blocks."""
    policy, shape = tiny(tiny_policy_dir), shape_of(str(tiny_policy_dir), tiny_policy_dir)
    assert isinstance(policy, Policy)
    prompts = [Prompt("a", "interleaved" if kind == "interleaved" else "t2i", PROMPT)]
    with FlopCounterMode(display=False) as counter:
        policy.generate(prompts, [0], Sampling(steps=4, recorded=recorded, guesses=0, guidance=1.0))
    with FlopCounterMode(display=False) as decoding:
        policy.layout.images.decode(torch.full((1, 16), policy.layout.text.vocabulary.text_size))
    found = counter.get_total_flops() - decoding.get_total_flops()
    rollout = replace(RolloutConfig(), steps=4, recorded=recorded, guidance=1.0)
    assert found == pytest.approx(rollout_cost(shape, kind, rollout, RANK).flops, rel=1e-9)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_gradient_takes_the_operations_that_torch_counts(checkpointing: bool, tiny_policy_dir: Path) -> None:
    policy, shape = tiny(tiny_policy_dir), shape_of(str(tiny_policy_dir), tiny_policy_dir)
    rollouts = policy.generate([Prompt("a", "t2i", PROMPT)] * 2, [0, 1], Sampling(steps=4, recorded=4, guesses=0))
    policy.checkpoint_gradients(checkpointing)
    with FlopCounterMode(display=False) as counter:
        step_table(policy, policy.prepare(rollouts)).logprob.sum().backward()
    # All four steps of each are learnt, at which every token is committed once.
    expected = 2 * 4 * gradient_flops(shape, "t2i", RANK, 1 / 4, checkpointing)
    # Checkpointing ends where the last kept tensor is there again, before the last product of a block.
    assert (0.99 if checkpointing else 1 - 1e-9) * expected <= counter.get_total_flops() <= expected


class Counted:
    """Sequences that go forward through the backbone of a policy."""

    def __init__(self, policy: Policy) -> None:
        self.forwards = 0
        policy.model.get_input_embeddings().register_forward_hook(self.see)

    def see(self, module: object, given: tuple[torch.Tensor, ...], out: object) -> None:
        self.forwards += len(given[0])

    def taken(self) -> int:
        found, self.forwards = self.forwards, 0
        return found


STEPS: list[tuple[Arm, str]] = [(arm, "steps") for arm in ARMS if not ARM_SPECS[arm].paired]  # whose prompts are of two kinds
ELBOS: list[tuple[Arm, str]] = [(arm, "elbo") for arm in ("best_of_n", "online_dpo", "offline_dpo", "pararl_grpo")]


@pytest.mark.parametrize("every", [0, 1])
@pytest.mark.parametrize(("arm", "likelihood"), STEPS + ELBOS)
def test_an_update_takes_the_forwards_that_pass_through_the_backbone(arm: Arm, likelihood: str, every: int, tiny_policy_dir: Path) -> None:
    settings = {"policy.name": str(tiny_policy_dir), "rollout.prompts": 2, "rollout.group": 4, "rollout.steps": 4, "rollout.recorded": 2}
    settings |= {"rollout.guidance": 1.0, "learner.micro": 2, "policy.lora_rank": RANK, "learner.reference_every": every}
    settings |= {"learner.likelihood": likelihood, "learner.kl": 0.1}  # of pararl_grpo, to the base whatever the reference of the others
    config = changed(Config(arm={}), settings)
    own, spec = for_arm(config, arm), ARM_SPECS[arm]
    policy = policies.load(tiny_policy_dir)
    learner = Learner(policy, adapter.attach(policy, RANK, 8), own.learner, spec)
    counted = Counted(policy)
    cost = update_cost(config, arm, shape_of(str(tiny_policy_dir), tiny_policy_dir))
    group = 4 * (2 if spec.reward == "final" else 1)
    for version in (0, 1):  # at version 0 the policy is the base, which spares some passes: the second update is counted
        learner.version = version
        asked = [Prompt(f"p{i}", "t2i", PROMPT) for i in range(2) for _ in range(group)]
        counted.taken()
        given = version if spec.data == "current" else 0
        guesses = 1 if spec.reward == "step" else 0
        rollouts = grouped(
            policy.generate(asked, range(len(asked)), Sampling(steps=4, recorded=2, guesses=guesses, guidance=1.0), given), group
        )
        sampled = counted.taken()
        feedback = teach(rollouts, spec)
        if feedback.advantages is None and not feedback.best:
            feedback = teach_four(rollouts, group)
        learner.update(rollouts, feedback)
        learnt = counted.taken()
    assert sampled == cost.rollout.forwards
    assert learnt == cost.learner.forwards + cost.reference.forwards


def test_a_paired_arm_takes_the_same_whatever_the_shares() -> None:
    found = [
        update_cost(changed(Config(), {"curriculum.tasks": tasks}), arm, ModelShape()).rollout.flops
        for arm in ("hermesflow", "offline_dpo")
        for tasks in (("i2t", "t2i"), ("i2t", "t2i:15"))
    ]
    assert found[0] == found[1] == found[2] != found[3]


def grouped(rollouts: list[Rollout], size: int) -> list[Rollout]:
    return [replace(r, index=i % size) for i, r in enumerate(rollouts)]


def teach_four(rollouts: list[Rollout], group: int) -> Feedback:
    """Pairs in which four rollouts of each group take part."""
    return Feedback(pairs=tuple(Pair(g + i, g + i + 1, 0.5, None) for g in range(0, len(rollouts), group) for i in (0, 2)))


def test_a_forward_of_the_release_takes_two_operations_a_weight_and_token() -> None:
    shape = ModelShape()
    length = 512 + 3 + 1026
    by_hand = 2 * 6_979_321_856 * length + 4 * 32 * 4096 * length**2 + 2 * 4096 * 8192 * 1024
    # The last block is computed for the 1,024 image tokens: queries, the output of attention and the MLP; keys and values are whole.
    spared = 2 * (2 * 4096 * 4096 + 3 * 4096 * 12288) + 4 * 4096 * length
    assert forward_flops(shape, "t2i") == by_hand - spared * (length - 1024)
    assert attention_flops(shape, length, 1024) / by_hand < 0.06
    assert LEARNER_KL_ROLLOUTS == KL_ROLLOUTS
