"""Log-probabilities at recorded steps: what the sampler recorded stands for the reference's only where the reference sampled."""

from pathlib import Path

import pytest
import torch

from pararl import adapter
from pararl.learner.reference import Reference
from pararl.learner.step_terms import StepTerms
from pararl.learner.tables import step_table
from tests.pararl.learner.learning import adapter_of, make, sample


@pytest.mark.parametrize("micro", [1, 64])
def test_a_rollout_of_another_version_is_measured_under_the_reference(tiny_policy_dir: Path, micro: int) -> None:
    learner = make(tiny_policy_dir)
    was = adapter.tensors(learner.peft)
    (before, *_) = sample(learner, group=1)
    generator = torch.Generator().manual_seed(0)
    adapter.load_tensors(learner.peft, {name: 0.5 * torch.randn(value.shape, generator=generator) for name, value in was.items()})
    learner.version += 1
    (now, *_) = sample(learner, group=1)
    reference = Reference(learner.peft)
    reference.refresh(learner.version)
    batch = learner.policy.prepare([now, before])
    terms = StepTerms(learner.policy, batch, micro, learner.version)
    with torch.no_grad():
        table = step_table(learner.policy, batch)
    assert not torch.allclose(table.logprob[1], table.behaviour[1], atol=1e-2), "the two versions differ"
    found = terms.reference(reference).tokens
    assert found is not None
    torch.testing.assert_close(found.logprob, table.logprob)
    assert adapter_of(learner).abs().sum() > 0, "the adapter is back"
