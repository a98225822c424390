"""Log-probabilities at recorded steps: what the sampler recorded stands for the reference's only where the reference sampled."""

from pathlib import Path

import pytest
import torch

from pararl import adapter
from pararl.learner.reference import Reference
from pararl.learner.step_terms import StepTerms
from pararl.learner.tables import Table, step_table
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


def test_a_level_is_the_mean_of_its_step_and_the_last_that_of_the_steps_that_committed_any() -> None:
    logprob = torch.tensor([[-1.0, -2.0, -4.0], [-8.0, -16.0, -32.0], [-64.0, -128.0, -256.0]])[None, :, None]
    committed = torch.tensor([[True, True, False], [False, False, False], [True, False, False]])[None, :, None]
    table = Table(logprob, logprob, committed)
    assert table.levels(logprob).tolist() == [[[-1.5], [0.0], [-64.0], [(-1.5 - 64.0) / 2]]]
    nothing = Table(logprob, logprob, torch.zeros_like(committed))
    assert nothing.levels(logprob).tolist() == [[[0.0]] * 4]
