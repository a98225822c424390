"""A run that trains on one reward and measures by another: the scale of the first is kept in its folder, the second scores evaluations."""

import json
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

import policies
from pararl import scenes
from pararl.config import Config, EvalConfig, PolicyConfig, RewardConfig, RolloutConfig, TrackConfig, changed, for_arm
from pararl.data.curriculum import Curriculum
from pararl.evaluation.evaluation import split_prompts
from pararl.learner.handle import LocalLearner
from pararl.loop import checkpoint
from pararl.loop.arm_run import ArmRun
from pararl.loop.session import Session, _by_prompt
from pararl.rollout.fleet import LocalFleet
from pararl.rollout.reward_workers import LocalRewardWorkers
from pararl.rollout.workers import rollout_seed
from pararl.sampling import sampling_of
from pararl.types import Rollout
from rewards.names import CHECKPOINTS

SHIPPED = CHECKPOINTS / "scenes-clip"


@pytest.fixture
def config(tiny_policy_dir: Path) -> Config:
    return Config(
        policy=PolicyConfig(name=str(tiny_policy_dir), lora_rank=2),
        rollout=RolloutConfig(prompts=4, group=2, steps=4, recorded=2),
        reward=RewardConfig(name="scenes-clip", calibration=10),
        eval=EvalConfig(reward="scenes", prompts=6),
        track=TrackConfig(mode="disabled"),
    )


def session(config: Config, folder: Path) -> Session:
    exact = LocalRewardWorkers(changed(config, {"reward.name": "scenes"}))
    return Session(config, folder, LocalFleet(config), LocalRewardWorkers(config), exact, lambda line: None)


def raw_scores(rollouts: list[Rollout]) -> list[float]:
    """(1 + cosine) / 2 of prompt and image, one by one by transformers itself."""
    model, processor = CLIPModel.from_pretrained(SHIPPED), CLIPProcessor.from_pretrained(SHIPPED)
    found = []
    for rollout in rollouts:
        with torch.no_grad():
            out = model(**processor(text=[rollout.prompt.text], images=[rollout.output.image], return_tensors="pt"))
        found.append((1 + out.logits_per_image.item() / model.logit_scale.exp().item()) / 2)
    return found


def test_the_scale_is_that_of_outputs_of_the_base(config: Config, tmp_path: Path) -> None:
    found = session(config, tmp_path).calibration()
    curriculum = Curriculum(config)
    prompts = [prompt for _ in range(3) for prompt in curriculum.next()]  # whole batches of four: at least ten
    policy = policies.load(config.policy.name)
    rollouts = policy.generate(prompts, [rollout_seed(0, 0, prompt.id, 0) for prompt in prompts], sampling_of(config.rollout))
    scores = raw_scores(rollouts)
    assert found is not None and found.count == 12
    assert (found.mean, found.deviation) == pytest.approx((statistics.mean(scores), statistics.stdev(scores)), abs=1e-5)


def test_the_scale_is_made_once_and_a_resumed_run_has_the_same(config: Config, tmp_path: Path) -> None:
    first = session(config, tmp_path).calibration()
    resumed = session(replace(config, run=replace(config.run, seed=7)), tmp_path)  # would sample other outputs
    assert resumed.calibration() == first
    assert isinstance(resumed.reward_workers, LocalRewardWorkers) and resumed.reward_workers.calls == 0
    assert json.loads((tmp_path / "calibration.json").read_text()).keys() == {"mean", "deviation", "count"}


def test_rewards_with_a_scale_of_their_own_and_runs_that_ask_for_none_keep_their_scores(config: Config, tmp_path: Path) -> None:
    for values in ({"reward.name": "scenes"}, {"reward.calibration": 0}):
        assert session(changed(config, values), tmp_path).calibration() is None
    assert not (tmp_path / "calibration.json").exists()


def test_evaluations_are_by_the_reward_that_measures(config: Config, tmp_path: Path) -> None:
    done = session(config, tmp_path).evaluate(0, ("id",), 6)
    exact = [scenes.check(r.prompt.spec, scenes.parse(r.output.image)) for r in done.rollouts if r.output.image is not None]
    assert done.splits["id"].soft == pytest.approx(statistics.mean(s.value for s in exact)) and len(exact) == 6
    assert done.splits["id"].strict == statistics.mean(bool(s.strict) for s in exact)
    assert [r.prompt.id for r in done.rollouts] == [p.id for p in split_prompts("id", "t2i", 6, config)]


def test_an_update_learns_from_standardised_scores_and_shows_raw_and_exact_ones(config: Config, tmp_path: Path) -> None:
    whole = session(config, tmp_path)
    run = ArmRun(whole, "pararl", LocalLearner(for_arm(config, "pararl"), "pararl"))
    batch = run.score(run.generate(run.prompts(1), 1))
    scores, scale = raw_scores(batch.rollouts), whole.calibration()
    assert scale is not None
    by_hand = [min(1.0, max(0.0, 0.5 + 0.5 * (s - scale.mean) / scale.deviation)) for s in scores]
    metrics, beside = dict(run.prefer(batch).metrics), run.beside(batch)
    assert metrics["reward/mean"] == pytest.approx(statistics.mean(by_hand), abs=1e-4) and "reward/strict" not in metrics
    assert beside["reward/raw"] == pytest.approx(statistics.mean(scores), abs=1e-5)
    exact = [scenes.check(r.prompt.spec, scenes.parse(r.output.image)) for r in batch.rollouts if r.output.image is not None]
    assert beside["reward/measured"] == pytest.approx(statistics.mean(s.value for s in exact))
    assert beside["reward/measured_strict"] == statistics.mean(bool(s.strict) for s in exact)
    assert batch.calls == 4 * 2 * 2, "outputs that are measured are no reward calls of the arm"


def test_a_sheet_shows_the_prompts_that_every_system_was_shown_with_also_where_their_texts_are_the_same(
    config: Config, tmp_path: Path
) -> None:
    whole = session(config, tmp_path)
    measured, _ = whole.measure("base", 0)
    first, *rest = measured.samples
    assert len(rest) == 5
    same = [first, replace(first, cells=rest[0].cells)]  # two prompts of one text are two rows
    assert list(_by_prompt([*same, *rest]).values()) == [*same, *rest]
    whole.draw_samples([])
    tall = Image.open(tmp_path / "samples" / "id-000.png").height
    arrays, facts = checkpoint.load(tmp_path / "results" / "base") or ({}, {})
    kept = {f"image.{i}": arrays[f"image.{i + 1}"] for i in range(5)}
    checkpoint.save(tmp_path / "results" / "pararl", kept, {**facts, "samples": facts["samples"][1:]})  # as an older version chose them
    whole.draw_samples(["pararl"])
    assert Image.open(tmp_path / "samples" / "id-000.png").height < tall


def test_small_evaluations_have_a_beginning_and_an_end_that_a_resumed_run_reads_back(config: Config, tmp_path: Path) -> None:
    small = changed(config, {"eval.during": 4})
    made, evaluation = session(small, tmp_path).measure("base", 0)
    assert made.during == evaluation.first(4) and made.during["eval/during_n"] == 4
    kept = session(small, tmp_path).measured("base")
    assert kept is not None and kept.during == made.during and kept.kinds == made.kinds
    for values in ({"eval.every": 0}, {"eval.during": 6}, {"eval.splits": ("para", "id")}):
        other = session(changed(small, values), tmp_path / "other")
        assert other.measure("base", 0)[0].during == {}, "no small evaluations, none smaller, or of other prompts"
