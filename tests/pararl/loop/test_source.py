"""What each arm is given: prompts, groups and budgets."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pararl.arms import ARM_SPECS
from pararl.config import ARMS, Arm, Config, ConfigError, CurriculumConfig, PolicyConfig, RewardConfig, RolloutConfig, RunConfig
from pararl.data.curriculum import Curriculum
from pararl.loop.source import ScoredRollouts, Source
from pararl.loop.static import StaticRollouts
from pararl.rollout.fleet import LocalFleet
from pararl.rollout.reward_workers import LocalRewardWorkers
from pararl.types import Judgement, Output, Rollout, Score


def batch_of(source: Source, update: int) -> ScoredRollouts:
    """The three steps of an update, with the base as the current policy."""
    prompts = source.prompts(update)
    batch = source.score(source.generate(prompts, update, 0))
    assert list(dict.fromkeys((p.kind, p.id) for p in prompts)) == list(dict.fromkeys((r.prompt.kind, r.prompt.id) for r in batch.rollouts))
    return batch


@pytest.fixture
def config(tiny_policy_dir: Path) -> Config:
    return Config(
        run=RunConfig(updates=2),
        policy=PolicyConfig(name=str(tiny_policy_dir), lora_rank=2),
        rollout=RolloutConfig(prompts=2, group=2, steps=4, recorded=2, scored=1),
    )


def batches(config: Config, arm: Arm, store: Path) -> list[ScoredRollouts]:
    source = Source(config, ARM_SPECS[arm], LocalFleet(config), LocalRewardWorkers(config), store, lambda _: None)
    return [batch_of(source, update) for update in (1, 2)]


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_makes_the_same_number_of_reward_calls_on_the_same_prompts(config: Config, arm: Arm, tmp_path: Path) -> None:
    made = batches(config, arm, tmp_path / "store")
    assert [b.calls for b in made] == [2 * 2 * (1 + 1)] * 2
    curriculum = Curriculum(config, ARM_SPECS[arm].paired)
    asked = [(p.kind, p.id) for _ in (1, 2) for p in curriculum.next()]
    learnt = [key for b in made for key in dict.fromkeys((r.prompt.kind, r.prompt.id) for r in b.rollouts)]
    assert sorted(learnt) == sorted(asked) and (learnt == asked or ARM_SPECS[arm].data == "static")
    for batch in made:
        scored = 1 if ARM_SPECS[arm].reward == "step" else 0
        assert all(sum(s is not None for s in j.steps) == scored for j in batch.judgements)
        assert len(batch.rollouts) == 4 * (2 - scored)


def test_without_equal_calls_every_arm_samples_groups_of_the_same_size(config: Config, tmp_path: Path) -> None:
    config = replace(config, rollout=replace(config.rollout, equal_calls=False))
    assert {len(batches(config, arm, tmp_path / arm)[0].rollouts) for arm in ("pararl", "online_dpo")} == {4}


def test_offline_arms_learn_from_the_same_rollouts_in_another_order(config: Config, tmp_path: Path) -> None:
    config = replace(config, run=RunConfig(updates=6))
    seen = []
    for arm in ("offline_dpo", "offline_stream"):
        source = Source(config, ARM_SPECS[arm], LocalFleet(config), LocalRewardWorkers(config), tmp_path / arm, lambda _: None)
        seen.append([tuple(r.seed for r in batch_of(source, update).rollouts) for update in range(1, 7)])
    static, stream = seen
    assert static != stream
    assert sorted(s for batch in static for s in batch) == sorted(s for batch in stream for s in batch)


@pytest.mark.parametrize(("arm", "asked"), [("pararl", 3), ("best_of_n", 3), ("offline_stream", 0), ("offline_dpo", 0), ("hermesflow", 0)])
def test_current_arms_sample_with_the_current_version_and_offline_ones_with_the_base(
    config: Config, arm: Arm, asked: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet, versions = LocalFleet(config), []

    def generate_iter(prompts: Any, group: int, version: int, *given: Any) -> Any:
        versions.append(version)
        return own(prompts, group, 0, *given)

    own = fleet.generate_iter
    monkeypatch.setattr(fleet, "generate_iter", generate_iter)
    source = Source(config, ARM_SPECS[arm], fleet, LocalRewardWorkers(config), tmp_path / "store", lambda _: None)
    source.generate(source.prompts(1), 1, 3)
    assert set(versions) == {asked}


def test_the_curriculum_is_told_the_prompts_whose_groups_have_no_spread(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(config, rollout=replace(config.rollout, prompts=8))
    source = Source(config, ARM_SPECS["online_dpo"], LocalFleet(config), LocalRewardWorkers(config), tmp_path, lambda _: None)
    told: list[str] = []
    monkeypatch.setattr(source.curriculum, "told", lambda flat: told.extend(prompt.id for prompt in flat))
    batch = batch_of(source, 1)
    scores: dict[str, set[float]] = {}
    for rollout, judgement in zip(batch.rollouts, batch.judgements, strict=True):
        assert judgement.final is not None
        scores.setdefault(rollout.prompt.id, set()).add(judgement.final.value)
    assert told == [name for name, found in scores.items() if len(found) == 1]


def test_the_time_of_sampling_once_is_counted_with_the_first_update(config: Config, tmp_path: Path) -> None:
    first, second = batches(config, "offline_dpo", tmp_path / "store")
    assert first.rollout_seconds > 0 and (second.rollout_seconds, second.reward_seconds) == (0.0, 0.0)


def test_static_rollouts_are_sampled_once_and_survive_a_restart(config: Config, tmp_path: Path) -> None:
    first = batches(config, "offline_dpo", tmp_path / "store")
    source = Source(config, ARM_SPECS["offline_dpo"], LocalFleet(config), LocalRewardWorkers(config), tmp_path / "store", lambda _: None)
    again = batch_of(source, 2)
    assert source.reward_workers.calls == 0, "nothing was scored again"
    assert [r.seed for r in again.rollouts] == [r.seed for r in first[1].rollouts]
    assert [j.final.value for j in again.judgements if j.final] == [j.final.value for j in first[1].judgements if j.final]


def test_a_kill_while_static_rollouts_are_sampled_costs_one_batch(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(config, run=RunConfig(updates=4))

    def source_in(store: Path) -> Source:
        return Source(config, ARM_SPECS["offline_dpo"], LocalFleet(config), LocalRewardWorkers(config), store, lambda _: None)

    def seen(source: Source) -> list[Any]:
        made = [batch_of(source, update) for update in range(1, 5)]
        return [[(r.seed, j.final) for r, j in zip(b.rollouts, b.judgements, strict=True)] for b in made]

    killed, asked, own = source_in(tmp_path / "killed"), iter(range(2)), Curriculum.next
    with monkeypatch.context() as patched, pytest.raises(StopIteration):
        patched.setattr(Curriculum, "next", lambda self: (next(asked), own(self))[1])
        batch_of(killed, 1)
    resumed = source_in(tmp_path / "killed")
    assert seen(resumed) == seen(source_in(tmp_path / "straight"))
    assert killed.reward_workers.calls == resumed.reward_workers.calls == 2 * 8, "none of the two batches was made again"


def test_a_replayed_curriculum_is_the_one_that_was_told_what_had_no_spread(tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"prompt {i}"}) + "\n" for i in range(6)))
    settings = Config(
        rollout=RolloutConfig(prompts=2, group=2),
        curriculum=CurriculumConfig(tasks=("t2i",), file=str(file)),
        reward=RewardConfig(name="mine:judge"),
    )
    told, replayed, static = Curriculum(settings), Curriculum(settings), StaticRollouts()
    for update in (1, 2):
        flat, spread = told.next()
        static.rollouts += [Rollout(p, i, 0, 0, 1, (), (), Output(None, None), ()) for p in (flat, spread) for i in range(2)]
        static.judgements += [Judgement(Score(value), ()) for value in (0.5, 0.5, 0.0, 1.0)]
        static.wanted.append(update)
        told.told([flat])
    static.replay(replayed, 2)
    assert replayed.state() == told.state() and len(told.state()["cursors"]["t2i"]["resting"]) == 2
    with pytest.raises(ConfigError, match="curriculum.file"):
        static.replay(replayed, 2)
