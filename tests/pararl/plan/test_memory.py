"""Bytes of a plan against bytes that are really alive: exact for what stays, an upper bound not far off for what passes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

import policies
from pararl import adapter
from pararl.arms import ARM_SPECS
from pararl.config import Config, changed
from pararl.learner.learner import Learner
from pararl.plan.memory import block_saved, learner_memory, learner_pass, rollout_memory
from pararl.plan.shapes import ModelShape, shape_of
from pararl.types import Prompt
from policies import Sampling
from policies.attention.masks import Full
from policies.backbones.llada import MMadaConfig, MMadaModelLM
from policies.families.mmada import MMADA
from policies.sequences import Sequences
from tests.pararl.learner.learning import CONFIG, sample, teach
from tests.pararl.plan.live_bytes import LiveBytes

LENGTH, SEQUENCES, RANK = 256, 2, 4
SHAPE = ModelShape(width=128, layers=6, heads=2, kv_heads=2, mlp=384, rows=300, codes=64, prompt_tokens=0, image_tokens=LENGTH - 5)


def backbone(dtype: torch.dtype, layers: int = SHAPE.layers) -> MMadaModelLM:
    """The real class with the sizes of SHAPE, an adapter in it."""
    sizes = {"d_model": SHAPE.width, "n_layers": layers, "n_heads": SHAPE.heads, "mlp_hidden_size": SHAPE.mlp}
    model = MMadaModelLM(MMadaConfig(**sizes, embedding_size=SHAPE.rows)).eval().to(dtype)
    get_peft_model(model, LoraConfig(r=RANK, lora_alpha=RANK, target_modules=MMADA.lora_targets)).eval()
    return model


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_pass_of_the_learner_takes_no_more_than_planned_and_not_much_less(dtype: torch.dtype, checkpointing: bool) -> None:
    model = backbone(dtype)
    model.gradient_checkpointing = checkpointing
    ids, attention = torch.zeros(SEQUENCES, LENGTH, dtype=torch.long), torch.ones(SEQUENCES, LENGTH, dtype=torch.bool)
    attention[:, :9] = False
    with LiveBytes() as live:
        live.ignore([*model.parameters(), ids, attention])
        model.hidden(Sequences(ids, Full(attention))).float().sum().backward()
    assert SHAPE.length("t2i") == LENGTH
    planned = learner_pass(SHAPE, "t2i", SEQUENCES, dtype.itemsize, RANK, checkpointing)
    assert live.peak <= planned <= 1.5 * live.peak


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_every_block_keeps_so_many_bytes_a_token(dtype: torch.dtype) -> None:
    # What stands before and behind the blocks cancels out.
    found = (kept(backbone(dtype, 6)) - kept(backbone(dtype, 3))) / (3 * SEQUENCES * LENGTH)
    assert found <= block_saved(SHAPE, dtype.itemsize, RANK) <= 1.1 * found


def kept(model: MMadaModelLM) -> int:
    """Bytes that a forward pass keeps for the backward pass, parameters left out."""
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    found: dict[int, torch.Tensor] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        if x.untyped_storage()._cdata not in own:
            found.setdefault(x.untyped_storage()._cdata, x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        out = model.states(torch.zeros(SEQUENCES, LENGTH, dtype=torch.long))
    assert out.requires_grad
    return sum(x.untyped_storage().nbytes() for x in found.values())


def test_what_a_learner_holds_is_planned_to_the_byte(tiny_policy_dir: Path) -> None:
    config = changed(Config(), {"policy.name": str(tiny_policy_dir), "policy.lora_rank": RANK})
    planned = learner_memory(config, "pararl", shape_of(str(tiny_policy_dir), tiny_policy_dir), gpu=False).parts
    policy = policies.load(tiny_policy_dir)
    learner = Learner(policy, adapter.attach(policy, RANK, 8), replace(CONFIG, reference_every=1), ARM_SPECS["pararl"])
    rollouts = sample(learner)
    learner.update(rollouts, teach(rollouts, learner.arm))
    held = adapter.tensors(learner.peft)
    sizes = {name: p.nbytes for name, p in policy.model.named_parameters()}
    assert planned["weights"] == sum(size for name, size in sizes.items() if "lora_" not in name)
    assert learner.reference.values is not None
    reference = sum(x.nbytes for x in learner.reference.values.values())
    # The third: while the reference computes, the learner's own adapter lies aside.
    assert planned["adapter"] == sum(x.nbytes for x in held.values()) + 2 * reference
    moments = sum(x.nbytes for s in learner.optimizer.state_dict()["state"].values() for n, x in s.items() if n.startswith("exp_avg"))
    gradients = sum(p.grad.nbytes for p in learner.parameters if p.grad is not None)
    assert planned["gradients, AdamW"] == moments + gradients + gradients, "the third: what AdamW makes on the way"


@pytest.mark.parametrize("guidance", [0.0, 2.0])
def test_sampling_takes_no_more_than_planned_and_not_much_less(guidance: float, tiny_policy_dir: Path) -> None:
    policy, chunk = policies.load(tiny_policy_dir), 8
    model = adapter.attach(policy, RANK, 8)
    values = {"policy.name": str(tiny_policy_dir), "policy.lora_rank": RANK, "rollout.chunk": chunk, "rollout.guidance": guidance}
    values["curriculum.tasks"] = ("interleaved",)
    planned = rollout_memory(changed(Config(), values), shape_of(str(tiny_policy_dir), tiny_policy_dir), gpu=False).parts
    prompts = [Prompt("a", "interleaved", " ".join(["red"] * 48))] * chunk
    images: torch.nn.Module = policy.layout.images.module
    with LiveBytes() as live:
        live.ignore([*model.parameters(), *images.parameters(), *images.buffers()])
        policy.generate(prompts, range(chunk), Sampling(steps=4, guesses=0, recorded=1, guidance=guidance))
    assert live.peak <= planned["activations"] + planned["logits"] + planned["image tokenizer"] <= 3 * live.peak
