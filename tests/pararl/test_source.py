"""What each arm is given: prompts, groups and budgets."""

from dataclasses import replace
from pathlib import Path

import pytest

from pararl.arms import ARM_SPECS
from pararl.config import ARMS, Arm, Config, PolicyConfig, RolloutConfig, RunConfig
from pararl.fleet import LocalFleet
from pararl.judges import LocalJudges
from pararl.source import Batch, Source, update_prompts


@pytest.fixture
def config(tiny_policy_dir: Path) -> Config:
    return Config(
        run=RunConfig(updates=2),
        policy=PolicyConfig(name=str(tiny_policy_dir), lora_rank=2),
        rollout=RolloutConfig(prompts=2, group=2, steps=4, recorded=2, scored=1),
    )


def batches(config: Config, arm: Arm, store: Path) -> list[Batch]:
    source = Source(config, ARM_SPECS[arm], LocalFleet(config), LocalJudges(config), store, lambda _: None)
    return [source.batch(update, 0) for update in (1, 2)]


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_makes_the_same_number_of_reward_calls_on_the_same_prompts(config: Config, arm: Arm, tmp_path: Path) -> None:
    made = batches(config, arm, tmp_path / "store")
    assert [b.calls for b in made] == [2 * 2 * (1 + 1)] * 2
    for update, batch in enumerate(made, start=1):
        assert list(dict.fromkeys(r.prompt.id for r in batch.rollouts)) == [p.id for p in update_prompts(config, update)]
        scored = 1 if ARM_SPECS[arm].reward == "step" else 0
        assert all(sum(s is not None for s in j.steps) == scored for j in batch.judgements)
        assert len(batch.rollouts) == 4 * (2 - scored)


def test_without_equal_calls_every_arm_samples_groups_of_the_same_size(config: Config, tmp_path: Path) -> None:
    config = replace(config, rollout=replace(config.rollout, equal_calls=False))
    assert {len(batches(config, arm, tmp_path / arm)[0].rollouts) for arm in ("pararl", "output")} == {4}


def test_static_rollouts_are_sampled_once_and_survive_a_restart(config: Config, tmp_path: Path) -> None:
    first = batches(config, "offline_dpo", tmp_path / "store")
    source = Source(config, ARM_SPECS["offline_dpo"], LocalFleet(config), LocalJudges(config), tmp_path / "store", lambda _: None)
    again = source.batch(2, 0)
    assert source.judges.calls == 0, "nothing was scored again"
    assert [r.seed for r in again.rollouts] == [r.seed for r in first[1].rollouts]
    assert [j.final.value for j in again.judgements if j.final] == [j.final.value for j in first[1].judgements if j.final]


def test_prompts_are_a_function_of_seed_and_update(config: Config) -> None:
    assert [p.text for p in update_prompts(config, 3)] == [p.text for p in update_prompts(config, 3)]
    assert {p.id for p in update_prompts(config, 1)}.isdisjoint(p.id for p in update_prompts(config, 2))
    other = replace(config, run=replace(config.run, seed=1))
    assert [p.text for p in update_prompts(config, 1)] != [p.text for p in update_prompts(other, 1)]
