"""How many bytes a rollout worker and a learner take on a GPU. Pure functions of the configuration and the model's shape.

Weights, adapter and optimiser are exact. A pass is counted tensor by tensor, as ``policies/backbones/llada.py`` and PEFT's LoRA layers make
them. That is an upper bound but for the allocator, for which there is an allowance.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pararl.arms import ARM_SPECS
from pararl.config import Arm, Config, for_arm
from pararl.data.quotas import task_shares
from pararl.plan.forwards import branches
from pararl.plan.shapes import ModelShape
from pararl.types import Kind

FLOAT32 = 4
CONTEXT = int(1.5e9)
"""Bytes that a process takes on a GPU before it has a tensor there: context, kernels, workspaces. Assumed."""
SLACK = 0.08
"""Share that the allocator loses to gaps between tensors that come and go. Assumed."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one worker by what they are for."""

    parts: Mapping[str, float]

    @property
    def total(self) -> float:
        return sum(self.parts.values())


def weight_bytes(config: Config, shape: ModelShape, gpu: bool) -> int:
    """Bytes of a weight of the backbone: ``policy.dtype``."""
    if config.policy.dtype == "auto":
        return shape.weight_bytes if gpu else FLOAT32
    return 2 if config.policy.dtype == "bfloat16" else FLOAT32


def block_saved(shape: ModelShape, b: int, rank: int) -> int:
    """Bytes per token that one block keeps for its backward pass, with an adapter on; ``b`` bytes a weight.

    Norms keep their float32 input and its scale. Frozen matrices keep nothing. The LoRA beside each keeps its product of rank numbers and
    its input in float32, which is a copy where the backbone is less. Attention keeps queries, keys, values and its output, SwiGLU two
    factors and the input of its SiLU.
    """
    d, k, h = shape.width, shape.kv_width, shape.mlp
    # In float32 queries, keys and values share one input, and so do the two factors; below it, each LoRA casts a copy.
    lora_inputs = 3 * d + d + 2 * d + h if b < FLOAT32 else d + d + d + h
    attention = b * (2 * d + 2 * k) + FLOAT32 * shape.heads
    return FLOAT32 * (2 * (d + 1) + lora_inputs + len(shape.projections) * rank) + attention + 3 * b * h


def block_working(shape: ModelShape, b: int) -> int:
    """Bytes per token of a block at its widest; they are free again behind it. The widest place is the second matrix into the SwiGLU, whose
    LoRA makes three float32 tensors on the way."""
    return 3 * b * shape.width + FLOAT32 * shape.width + 2 * b * shape.mlp + 3 * FLOAT32 * shape.mlp


def mask_bytes(length: int, b: int) -> int:
    """Of one sequence: which keys are seen, as truth values and as what is added to the scores."""
    return (1 + b) * length**2


def learner_pass(shape: ModelShape, kind: Kind, sequences: int, b: int, rank: int, checkpointing: bool) -> float:
    """Bytes of the graph of one forward pass over so many sequences, and of its backward pass; without the head."""
    saved = block_saved(shape, b, rank)
    kept = shape.layers * b * shape.width + saved if checkpointing else shape.layers * saved
    return sequences * (shape.length(kind) * (kept + block_working(shape, b)) + mask_bytes(shape.length(kind), b))


def learner_memory(config: Config, arm: Arm, shape: ModelShape, gpu: bool = True) -> Memory:
    """Of the learner of an arm, at the kind of prompt that takes most."""
    config = for_arm(config, arm)
    learner, b, rank = config.learner, weight_bytes(config, shape, gpu), config.policy.lora_rank
    # The recorded steps of a rollout go together, so a rollout is not cut between forwards.
    rollouts = learner.micro if learner.likelihood == "elbo" else max(1, learner.micro // config.rollout.recorded)
    sequences = rollouts * (1 if learner.likelihood == "elbo" else config.rollout.recorded)

    def taken(kind: Kind) -> tuple[float, float]:
        # Logits, their float32 copy, its softmax and the gradients of both.
        rows = {m: shape.rows if m == "image" and learner.image_rows == "all" else rows for m, (_, rows) in shape.outputs(kind).items()}
        head = rollouts * sum(tokens * rows[m] for m, (tokens, _) in shape.outputs(kind).items()) * (3 * FLOAT32 + 2 * b)
        return learner_pass(shape, kind, sequences, b, rank, learner.gradient_checkpointing), head

    body, head = max((taken(kind) for kind in task_shares(config.curriculum.tasks)), key=sum)
    adapter = FLOAT32 * shape.adapter_parameters(rank)
    refreshed = 2 * adapter if learner.reference_every and ARM_SPECS[arm].objective == "preference" else 0
    parts = {"adapter": adapter + refreshed, "gradients, AdamW": 4 * adapter, "activations": body, "logits": head}
    return _whole(shape, b, parts, gpu)


def rollout_pass(shape: ModelShape, kind: Kind, chunk: int, both: int, b: int) -> float:
    """Bytes of one denoising step of so many rollouts, each of ``both`` sequences under guidance, 1 without; with the head."""
    length = shape.length(kind)
    body = both * chunk * (length * block_working(shape, b) + mask_bytes(length, b))
    return body + _draws(shape, kind, chunk, both, b)


def _draws(shape: ModelShape, kind: Kind, chunk: int, both: int, b: int) -> float:
    """Logits of every branch, the text's with its forbidden rows, and with guidance their difference and their sum; then three float32
    copies for one draw."""
    logits = (2 * both + (2 if both > 1 else 0)) * b
    return chunk * sum(tokens * rows for tokens, rows in shape.outputs(kind).values()) * (logits + 3 * FLOAT32)


def rollout_memory(config: Config, shape: ModelShape, gpu: bool = True) -> Memory:
    """Of a rollout worker, at the kind of prompt that takes most."""
    b, chunk = weight_bytes(config, shape, gpu), config.rollout.chunk
    sequences = {kind: 1 + len(branches(shape, kind, config.rollout)) for kind in task_shares(config.curriculum.tasks)}
    most = max(sequences, key=lambda kind: rollout_pass(shape, kind, chunk, sequences[kind], b))
    logits = _draws(shape, most, chunk, sequences[most], b)
    body = rollout_pass(shape, most, chunk, sequences[most], b) - logits
    adapter = FLOAT32 * shape.adapter_parameters(config.policy.lora_rank)
    return _whole(shape, b, {"adapter": adapter, "activations": body, "logits": logits}, gpu)


def _whole(shape: ModelShape, b: int, parts: Mapping[str, float], gpu: bool) -> Memory:
    """With what every worker has: the backbone, the image tokenizer and one image on its way through it."""
    decoding = 6 * FLOAT32 * shape.image_channels * shape.pixels
    tokenizer = FLOAT32 * shape.image_weights + decoding
    found = {"weights": b * shape.parameters, "image tokenizer": tokenizer, **parts}
    if gpu:
        found["context, gaps"] = CONTEXT + SLACK * sum(parts.values())
    return Memory(found)


def widest(memories: Sequence[Memory]) -> Memory:
    """The one with most bytes."""
    return max(memories, key=lambda memory: memory.total)
