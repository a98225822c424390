"""What a step draws depends on the seed and on the version, and on both apart."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pararl.arms import ARM_SPECS
from pararl.config import LearnerConfig
from pararl.learner import stepper
from pararl.learner.reference import Reference
from pararl.learner.stepper import GradientStepper
from tests.pararl.learner.learning import make


def test_no_two_seeds_share_the_draws_of_any_two_versions(tiny_policy_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A seed's second update does not draw as another's first."""
    learner = make(tiny_policy_dir, "online_dpo")
    seeds: list[int] = []

    def kept(policy: Any, batch: Any, config: Any, generator: torch.Generator, *more: Any) -> None:
        seeds.append(generator.initial_seed())

    monkeypatch.setattr(stepper, "ElboTerms", kept)
    config, weight = LearnerConfig(likelihood="elbo"), torch.nn.Parameter(torch.zeros(1))
    for seed in range(3):
        optimizer = torch.optim.SGD([weight])
        own = GradientStepper(learner.policy, Reference(learner.peft), [weight], optimizer, config, ARM_SPECS["online_dpo"], seed)
        for version in range(4):
            own._terms(learner.policy.prepare([]), version)
    assert len(set(seeds)) == 12
