"""A Show-o policy under an adapter: gradients reach every target, off is the base, and what is saved says the same again."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import Tensor

import policies
from pararl import adapter
from pararl.options import Sampling
from pararl.types import Output, Rollout
from policies import Policy
from policies.image.magvitv2 import MAGVITv2
from tests.policies.by_hand import KINDS, Kind, picture, prompts
from tests.policies.conftest import MakeShowo

TARGETS = 6 * 2
"""Six projections in each of two layers."""
SAMPLING = Sampling(steps=4, recorded=2, guidance=1.0)


def adapted(make_showo: MakeShowo, seed: int = 0) -> tuple[Policy, PeftModel]:
    """A policy with an adapter that looks trained."""
    own = make_showo()
    model = adapter.attach(own, rank=2, alpha=4)
    generator = torch.Generator().manual_seed(seed)
    adapter.load_tensors(model, {n: 0.5 * torch.randn(t.shape, generator=generator) for n, t in adapter.tensors(model).items()})
    return own, model


def sampled(policy: Policy) -> list[Rollout]:
    asked = [prompt for kind in KINDS for prompt in prompts(kind, 3)]
    return policy.generate(asked, range(len(asked)), SAMPLING)


def same(a: list[Rollout], b: list[Rollout]) -> bool:
    """Whether rollouts are equal bit for bit, what a person sees of them included."""
    names = ("tokens", "commit_step", "logprob", "guesses")
    segments = [(x, y) for r, s in zip(a, b, strict=True) for x, y in zip(r.segments, s.segments, strict=True)]
    alike = all(np.array_equal(getattr(x, name), getattr(y, name)) for x, y in segments for name in names)
    return alike and all(shows(r.output, s.output) for r, s in zip(a, b, strict=True))


def shows(a: Output, b: Output) -> bool:
    if a.image is None or b.image is None:
        return a.text == b.text and a.image is b.image
    return a.text == b.text and np.array_equal(a.image, b.image)


# ---- gradients


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("by", ["steps", "draws"])
def test_a_gradient_reaches_every_target_and_nothing_else(make_showo: MakeShowo, kind: Kind, by: str) -> None:
    own, model = adapted(make_showo)
    batch = own.generate(prompts(kind, 3), range(3), SAMPLING)
    if by == "steps":
        value: Tensor = torch.stack([t.logprob.sum() for t in own.step_tokens(batch, [r.recorded for r in batch]).values()]).sum()
    else:
        value = own.log_likelihood(batch, own.draws(batch, 2, torch.Generator().manual_seed(0))).sum()
    value.backward()
    reached = {n for n, p in model.named_parameters() if p.grad is not None and float(p.grad.abs().max()) > 0}
    assert len(reached) == 2 * TARGETS and reached == {n for n, _ in model.named_parameters() if "lora_" in n}


@pytest.mark.parametrize("kind", ["i2t", "t2i", "interleaved"])
def test_checkpointed_gradients_of_an_adapter_are_the_plain_ones(make_showo: MakeShowo, kind: Kind) -> None:
    found = []
    for on in (False, True):
        own, model = adapted(make_showo)
        own.checkpoint_gradients(on)
        batch = own.generate(prompts(kind, 3), range(3), SAMPLING)
        own.log_likelihood(batch, own.draws(batch, 2, torch.Generator().manual_seed(0))).sum().backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    plain, again = found
    assert plain.keys() == again.keys() and len(plain) == 2 * TARGETS
    assert all(torch.allclose(plain[n], again[n], rtol=1e-5, atol=1e-6) for n in plain)


# ---- off


def test_adapter_off_is_the_base_bit_for_bit_and_on_is_not(make_showo: MakeShowo) -> None:
    own, model = adapted(make_showo)
    base = make_showo()
    expected = sampled(base)
    with adapter.base(model):
        assert same(sampled(own), expected) and torch.equal(own.canary(), base.canary())
    on = sampled(own)
    assert not same(on, expected) and not torch.equal(own.canary(), base.canary())
    draws = own.draws(on[:3], 2, torch.Generator().manual_seed(0))
    with torch.no_grad(), adapter.base(model):
        assert torch.equal(own.log_likelihood(on[:3], draws), base.log_likelihood(on[:3], draws))


def test_a_new_adapter_changes_nothing(make_showo: MakeShowo) -> None:
    own = make_showo()
    adapter.attach(own, rank=2, alpha=4)
    assert same(sampled(own), sampled(make_showo()))


# ---- saved


def test_a_saved_policy_samples_the_same_bit_for_bit(make_showo: MakeShowo, tmp_path: Path) -> None:
    own = make_showo(steps=3, tasks=("t2t", "i2t", "t2i", "edit", "interleaved"))
    own.save(tmp_path)
    loaded = policies.load(tmp_path)
    assert isinstance(loaded, Policy) and loaded.settings == own.settings and loaded.layout.text.vocabulary == own.layout.text.vocabulary
    assert json.loads((tmp_path / "policy.json").read_text())["family"] == "showo"
    assert {p.suffix for p in tmp_path.rglob("*") if p.is_file()} == {".safetensors", ".json"}
    assert isinstance(own.layout.images.module, MAGVITv2) and isinstance(loaded.layout.images.module, MAGVITv2)
    for ours, theirs in ((own.model, loaded.model), (own.layout.images.module, loaded.layout.images.module)):
        before, after = ours.state_dict(), theirs.state_dict()
        assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    assert same(sampled(own), sampled(loaded)) and torch.equal(own.canary(), loaded.canary())
    prompt = prompts("interleaved", 1)[0]
    assert all(shows(a, b) for a, b in zip(own.mixed(prompt, 3), loaded.mixed(prompt, 3), strict=True))
    answers = [p.sample("red circle", task="i2t", images=[picture(0)])[0].text for p in (own, loaded)]
    assert answers[0] == answers[1]


def test_a_saved_adapter_samples_the_same_bit_for_bit(make_showo: MakeShowo, tmp_path: Path) -> None:
    own, model = adapted(make_showo)
    expected = sampled(own)
    adapter.save(model, tmp_path / "adapter", "tiny")
    other = make_showo()
    PeftModel.from_pretrained(other.model, str(tmp_path / "adapter"))
    assert same(sampled(other), expected)
    third = make_showo()
    adapter.load_tensors(adapter.attach(third, rank=2, alpha=4), adapter.tensors(model))
    assert same(sampled(third), expected)


def test_a_model_that_carries_an_adapter_is_not_saved(make_showo: MakeShowo, tmp_path: Path) -> None:
    own, _ = adapted(make_showo)
    with pytest.raises(ValueError, match=f"carries an adapter .*q_proj.* and {2 * TARGETS - 1} more"):
        own.save(tmp_path)
    assert not list(tmp_path.iterdir())
