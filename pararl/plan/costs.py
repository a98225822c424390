"""How many forwards and floating-point operations an update of an arm takes. Pure functions of the configuration and the model's shape.

Operations are those of matrix products, two for a multiplication and an addition, on sequences with prompts at their longest. The image
tokenizer and the rewards are not counted. The backward pass needs no gradients of frozen weights: there it takes as much as the forward
pass. In attention and in the adapter it takes twice as much.
"""

from dataclasses import dataclass

from pararl.arms import ARM_SPECS, ArmSpec
from pararl.config import Arm, Config, RolloutConfig, for_arm
from pararl.data.quotas import PAIRED, task_shares
from pararl.plan.forwards import steps_of
from pararl.plan.shapes import ModelShape
from pararl.types import Kind

KL_ROLLOUTS = 32
"""Rollouts of a batch on which the learner estimates the KL to the base."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a part of an update takes."""

    forwards: float = 0.0
    """Sequences that go forward through the backbone, those of the backward pass not counted again."""
    flops: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.forwards + other.forwards, self.flops + other.flops)

    def times(self, count: float) -> "Cost":
        return Cost(self.forwards * count, self.flops * count)


@dataclass(frozen=True, slots=True)
class UpdateCost:
    """What an update of an arm takes, on average over a run."""

    rollout: Cost
    learner: Cost
    """The passes whose gradient is taken, with what they compute again, and the first of two passes where that is needed."""
    reference: Cost
    """The reference policy, and the base for the KL."""


def blocks_flops(shape: ModelShape, length: int, kept: int) -> float:
    """Of the frozen matrices of all blocks, for one sequence. The last block is computed for the ``kept`` positions alone; its keys and
    values are those of all positions."""
    keys = 2 * shape.width * shape.kv_width
    return 2.0 * (shape.block_weights * length - (shape.block_weights // shape.layers - keys) * (length - kept))


def attention_flops(shape: ModelShape, length: int, kept: int) -> float:
    """Of queries against keys and of weights against values, every position with every other; in the last block the kept ones alone ask."""
    return 4.0 * shape.width * ((shape.layers - 1) * length**2 + kept * length)


def adapter_flops(shape: ModelShape, length: int, rank: int, kept: int) -> float:
    """Of a LoRA on every matrix of the blocks."""
    keys, whole = 2 * rank * (shape.width + shape.kv_width), shape.adapter_parameters(rank)
    return 2.0 * (whole * length - (whole // shape.layers - keys) * (length - kept))


def head_flops(shape: ModelShape, kind: Kind, share: float = 1.0, all_rows: bool = False) -> float:
    """Of the head at a share of the generated positions, over the rows of their modality; ``all_rows``: an image's over all there are."""
    made = shape.outputs(kind)
    rows = {m: shape.rows if all_rows and m == "image" else rows for m, (_, rows) in made.items()}
    return share * sum(2.0 * shape.width * tokens * rows[m] for m, (tokens, _) in made.items())


def forward_flops(shape: ModelShape, kind: Kind, rank: int = 0, share: float = 1.0, all_rows: bool = False) -> float:
    """Of one sequence without a gradient; ``rank`` of the adapter, 0 = off."""
    return body_flops(shape, kind, rank, made(shape, kind)) + head_flops(shape, kind, share, all_rows)


def made(shape: ModelShape, kind: Kind) -> int:
    """Generated positions of a sequence."""
    return sum(tokens for tokens, _ in shape.outputs(kind).values())


def body_flops(shape: ModelShape, kind: Kind, rank: int, kept: int) -> float:
    """The same without the head."""
    length = shape.length(kind)
    return blocks_flops(shape, length, kept) + attention_flops(shape, length, kept) + adapter_flops(shape, length, rank, kept)


def rollout_cost(shape: ModelShape, kind: Kind, rollout: RolloutConfig, rank: int) -> Cost:
    """Of one rollout, from its first step to its last."""
    total, rows = Cost(), {m: rows for m, (_, rows) in shape.outputs(kind).items()}
    for often, step in steps_of(shape, kind, rollout):
        head = sum(2.0 * shape.width * n * rows[m] * step.branched[m] for m, n in step.positions.items())
        total += Cost(step.sequences, step.sequences * body_flops(shape, kind, rank, sum(step.positions.values())) + head).times(often)
    return total


def gradient_flops(shape: ModelShape, kind: Kind, rank: int, share: float, checkpointing: bool, all_rows: bool = False) -> float:
    """Of one sequence forward and backward; ``checkpointing`` computes the blocks once more."""
    length, kept, again = shape.length(kind), made(shape, kind), int(checkpointing)
    frozen = blocks_flops(shape, length, kept)
    twice = attention_flops(shape, length, kept) + adapter_flops(shape, length, rank, kept)
    return (2 + again) * frozen + (3 + again) * twice + 2 * head_flops(shape, kind, share, all_rows)


def update_cost(config: Config, arm: Arm, shape: ModelShape) -> UpdateCost:
    """Of an average update of an arm, over the kinds of prompts in their shares."""
    config, spec = for_arm(config, arm), ARM_SPECS[arm]
    shares = dict.fromkeys(PAIRED, 1) if spec.paired else task_shares(config.curriculum.tasks)
    total = UpdateCost(Cost(), Cost(), Cost())
    for kind, share in shares.items():
        prompts = config.rollout.prompts * share / sum(shares.values())
        part = _of_prompt(config, spec, shape, kind)
        total = UpdateCost(*(getattr(total, n) + getattr(part, n).times(prompts) for n in ("rollout", "learner", "reference")))
    return total


def _of_prompt(config: Config, spec: ArmSpec, shape: ModelShape, kind: Kind) -> UpdateCost:
    """What one prompt adds to an update."""
    rollout, learner = config.rollout, config.learner
    current, rank = spec.data == "current", config.policy.lora_rank
    calls = 1 + rollout.scored if spec.reward == "final" and rollout.equal_calls else 1
    # What is sampled beyond rollout.group is not learnt from: prefer keeps the best and the worst of a larger group.
    sampled, used = rollout.group * calls, 1 if spec.objective == "best" else rollout.group
    sampling = rollout_cost(shape, kind, rollout, rank if current else 0).times(sampled)
    if learner.likelihood == "elbo":
        sequences, share = used * learner.draws, 0.5  # the mean mask ratio of text, and close to it of images
    else:
        sequences, share = used * rollout.recorded, 1 / rollout.steps  # every token is committed at one of the steps
    # The sampler's record is the first pass of the policy that sampled, and advantages on ELBOs need none.
    first = (learner.likelihood == "elbo" and spec.objective != "grpo") or not current
    again, rows = learner.gradient_checkpointing, learner.image_rows == "all"
    plain = Cost(1, forward_flops(shape, kind, rank, share, rows))
    gradient = plain.times(first) + Cost(1 + again, gradient_flops(shape, kind, rank, share, again, rows))
    kl = Cost(1, forward_flops(shape, kind, 0, 1 / rollout.steps)).times(
        current * min(1.0, KL_ROLLOUTS / (rollout.prompts * sampled)) * sampled * rollout.recorded
    )
    return UpdateCost(sampling, gradient.times(sequences), plain.times(sequences * _reference_share(config, spec)) + kl)


def _reference_share(config: Config, spec: ArmSpec) -> float:
    """In which share of the updates the reference takes a forward: the sampler's record spares it where the reference sampled."""
    learner = config.learner
    if spec.objective == "best" or (spec.objective == "grpo" and not learner.kl):
        return 0.0
    if spec.objective == "grpo" and learner.likelihood == "elbo":
        return 1.0
    if learner.likelihood == "elbo":  # a reference that was just refreshed is the first pass too
        return 1 - 1 / learner.reference_every if learner.reference_every else 1.0
    # The KL penalty of pararl_grpo is to the base, however often the reference of preferences is refreshed.
    every = learner.reference_every if spec.objective == "preference" else 0
    if spec.data != "current":
        return 0.0 if not every else 1.0
    return 1.0 if not every else 1 - 1 / every
