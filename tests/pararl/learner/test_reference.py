"""The reference is a snapshot, the base until the first one, and no longer there when it is done with."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor

import policies
from pararl import adapter
from pararl.learner.reference import Reference
from policies import Policy


@pytest.fixture
def parts(tiny_policy_dir: Path) -> tuple[Policy, PeftModel]:
    policy = policies.load(tiny_policy_dir)
    model = adapter.attach(policy, rank=2, alpha=4, seed=1)
    put(model, 1)
    return policy, model


def put(model: PeftModel, seed: int) -> None:
    """An adapter that looks trained."""
    generator = torch.Generator().manual_seed(seed)
    adapter.load_tensors(model, {n: 0.5 * torch.randn(t.shape, generator=generator) for n, t in adapter.tensors(model).items()})


def within(policy: Policy, reference: Reference) -> Tensor:
    with reference.active():
        return policy.canary()


def test_a_refreshed_reference_stays_what_the_policy_was(parts: tuple[Policy, PeftModel]) -> None:
    policy, model = parts
    reference, was = Reference(model), policy.canary()
    reference.refresh(3)
    put(model, 2)
    now = policy.canary()
    assert not torch.allclose(now, was, atol=1e-3)
    assert torch.equal(within(policy, reference), was) and torch.equal(policy.canary(), now)
    assert reference.is_policy(3) and not reference.is_policy(4)


def test_a_reference_of_no_values_is_the_base_and_the_policy_of_no_version(parts: tuple[Policy, PeftModel]) -> None:
    policy, model = parts
    with adapter.base(model):
        base = policy.canary()
    reference = Reference(model)
    assert torch.equal(within(policy, reference), base) and not reference.is_policy(0)
    reference.refresh(5)
    assert not torch.allclose(within(policy, reference), base, atol=1e-3)
    reference.load({}, 0)
    assert torch.equal(within(policy, reference), base) and not reference.is_policy(0)


def test_the_adapter_comes_back_where_the_reference_fails(parts: tuple[Policy, PeftModel]) -> None:
    policy, model = parts
    reference = Reference(model)
    reference.refresh(1)
    put(model, 2)
    now = policy.canary()
    with pytest.raises(FloatingPointError), reference.active():
        raise FloatingPointError
    assert torch.equal(policy.canary(), now)
