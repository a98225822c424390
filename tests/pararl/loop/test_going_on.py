"""A run that is killed, extended or started from an adapter, in this process: it is the run that nobody disturbed, bit for bit."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import policies
from pararl import adapter
from pararl.config import (
    Arm,
    Config,
    EvalConfig,
    LearnerConfig,
    PolicyConfig,
    PreferConfig,
    RewardConfig,
    RolloutConfig,
    RunConfig,
    TrackConfig,
    changed,
    for_arm,
)
from pararl.evaluation.summary import ArmResult, SplitResult, Summary, table
from pararl.files import read_lines
from pararl.learner.handle import LocalLearner
from pararl.loop import arm_run
from pararl.loop.arm_run import ArmRun
from pararl.loop.best import BestAdapter
from pararl.loop.session import Session
from pararl.loop.start import keep_start, with_own_start
from pararl.rollout.fleet import BASE, LocalFleet
from pararl.rollout.reward_workers import LocalRewardWorkers
from pararl.sampling import sampling_of
from pipelines.pararl import train
from tests.pararl.learner.learning import table_of

ARMS: tuple[Arm, ...] = ("pararl", "offline_dpo")


def brightness(prompts: list[str], completions: list[Any], **columns: Any) -> list[float]:
    """A reward that the samples of a random policy differ in."""
    return [float(c.image.mean()) / 255 for c in completions]


class Killed(BaseException):
    """The process is gone."""


@pytest.fixture
def config(tiny_policy_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setattr(arm_run, "RayLearner", LocalLearner)
    return Config(
        run=RunConfig(updates=5, checkpoint_every=2, arms=ARMS),
        policy=PolicyConfig(name=str(tiny_policy_dir), lora_rank=2),
        rollout=RolloutConfig(prompts=4, group=2, steps=4, recorded=2),
        reward=RewardConfig(name="tests.pararl.loop.test_going_on:brightness"),
        prefer=PreferConfig(min_margin=0.0),
        learner=LearnerConfig(lr=1e-2, threads=1),
        eval=EvalConfig(prompts=4, during=4, every=1, splits=("id",)),
        track=TrackConfig(mode="disabled"),
    )


def session(config: Config, folder: Path) -> Session:
    workers = LocalRewardWorkers(config)
    if not folder.exists():
        folder.mkdir()
        keep_start(config, folder)
    return Session(with_own_start(config, folder), folder, LocalFleet(config), workers, workers, lambda line: None)


def run(config: Config, folder: Path) -> Summary:
    """What ``pipelines/pararl.py`` does behind the command line."""
    made = session(config, folder)
    made.base()
    return made.finish({arm: made.finished(arm) or train(made, arm) for arm in made.arms})


def rows(folder: Path, arm: str) -> dict[int, dict[str, Any]]:
    """Metrics by update but for what a clock says."""
    found: dict[int, dict[str, Any]] = {}
    for row in read_lines(folder / "metrics.jsonl"):
        if row["arm"] == arm:
            values = {name: x for name, x in row.items() if not name.startswith(("perf/", "sync/canary"))}
            assert not (found.get(row["update"], {}).keys() & values.keys()) - {"arm", "update", "samples"}
            found.setdefault(row["update"], {}).update(values)
    return found


def weights(folder: Path, name: str) -> bytes:
    return (folder / "adapters" / name / "adapter_model.safetensors").read_bytes()


def same(found: Path, straight: Path, arm: str) -> None:
    assert rows(found, arm) == rows(straight, arm)
    for name in (arm, f"{arm}-best"):
        assert weights(found, name) == weights(straight, name)
    results = [json.loads((place / "results" / f"{arm}.json").read_text()) for place in (found, straight)]
    assert [{**r, "seconds": 0} for r in results[:1]] == [{**r, "seconds": 0} for r in results[1:]]
    assert sorted(p.name for p in (found / "adapters").iterdir()) == sorted(p.name for p in (straight / "adapters").iterdir())


def dies(real: Callable[..., Any], at: int) -> Callable[..., Any]:
    """The same function, but for its call of that number, behind which the process is gone."""
    calls = []

    def call(*given: Any, **named: Any) -> Any:
        result = real(*given, **named)
        calls.append(given)
        if len(calls) == at:
            raise Killed
        return result

    return call


def test_killed_anywhere_and_resumed_is_undisturbed_with_its_best_adapter(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    run(config, straight)
    places: list[tuple[Any, str, int]] = [
        (arm_run.BestAdapter, "offer", 1),
        (arm_run.checkpoint, "save", 3),  # of the base, the static rollouts and the arm
        (LocalLearner, "save", 3),
        (ArmRun, "_show", 2),
        (shutil, "rmtree", 1),
        (ArmRun, "_save", 2),
    ]
    for owner, name, at in places:
        with monkeypatch.context() as patched, pytest.raises(Killed):
            patched.setattr(owner, name, dies(getattr(owner, name), at))
            run(config, killed)
        kept = [json.loads(p.read_text()).get("best") for p in killed.glob("checkpoints/*/state.json")]
        assert all((killed / best["adapter"]).is_dir() or list(killed.glob("adapters/.*-best-*")) for best in kept if best)
    summary = run(config, killed)
    for arm in ARMS:
        same(killed, straight, arm)
        best = summary.arms[arm].best
        assert best is not None and f"update {best.update}, " in table(summary) and best.adapter in table(summary)
        by_hand = {u: row["eval/id_soft"] for u, row in rows(straight, arm).items() if 0 < u < 5}
        assert len(set(by_hand.values())) > 2 and best.id.soft == max(by_hand.values())
        assert best.update == min(u for u, value in by_hand.items() if value == best.id.soft)
    assert Summary.from_json(json.loads((killed / "summary.json").read_text())) == summary


def test_a_run_that_is_made_longer_is_the_longer_run(config: Config, tmp_path: Path) -> None:
    config = changed(config, {"run.arms": ("pararl", "offline_stream", "offline_dpo"), "eval.every": 2})
    straight, longer = tmp_path / "straight", tmp_path / "longer"
    run(config, straight)
    run(changed(config, {"run.updates": 4}), longer)
    old = {path: path.read_bytes() for path in (longer / "results").glob("*.json")}
    made = session(config, longer)
    assert made.finished("pararl") is None and {path: path.read_bytes() for path in old} == old, "the result stays until there is another"
    summary = run(config, longer)
    for arm in ("pararl", "offline_stream"):
        same(longer, straight, arm)
    assert {arm: result.updates for arm, result in summary.arms.items()} == dict.fromkeys(config.run.arms, 5)
    # The same samples of the base, but for the order: those of the last update were sampled for it.
    found, wanted = (rows(place, "offline_dpo") for place in (longer, straight))
    assert found.keys() == wanted.keys() == set(range(6)) and found[5]["samples"] == wanted[5]["samples"]
    before = {p: p.read_bytes() for p in longer.rglob("*.json*")}
    run(config, longer)
    assert {p: p.read_bytes() for p in longer.rglob("*.json*")} == before


def test_a_run_starts_from_an_adapter_on_policy_and_compares_with_it(config: Config, tmp_path: Path) -> None:
    run(changed(config, {"run.updates": 2, "run.arms": ("pararl",), "eval.every": 0}), tmp_path / "first")
    given = tmp_path / "first" / "adapters" / "pararl"
    config = changed(config, {"policy.adapter": str(given), "run.updates": 2})
    summary = run(config, tmp_path / "second")
    shutil.rmtree(given)
    assert weights(tmp_path / "second", "start") and summary.start is not None
    found = rows(tmp_path / "second", "pararl")[0]
    assert found["eval/id_soft"] == summary.start.id.soft and found["eval/kl_total"] > 0
    assert (
        "start" in table(summary).split() and Summary.from_json(json.loads((tmp_path / "second" / "summary.json").read_text())) == summary
    )
    assert rows(tmp_path / "second", "offline_dpo")[0]["eval/id_soft"] == summary.start.id.soft, "every arm starts from it"

    # Right after a sync the workers have the policy of the learner, and the reference is it.
    made = session(config, tmp_path / "second")
    learner = LocalLearner(for_arm(made.config, "pararl"), "pararl")
    made.fleet.begin(learner.adapter())
    prompts = ArmRun(made, "pararl", learner).prompts(1)
    sampling = sampling_of(config.rollout)
    started, base = (made.fleet.generate(prompts, 2, version, 0, sampling, update=1) for version in (0, BASE))
    held = learner.learner
    policy = held.policy

    def ratios(rollouts: list[Any]) -> torch.Tensor:
        terms = table_of(policy, rollouts)
        return (terms.behaviour - terms.logprob)[terms.committed]

    assert ratios(started).abs().max() < 2e-5 < 1e-2 < ratios(base).abs().max()
    with held.reference.active():
        assert ratios(started).abs().max() < 2e-5
    with adapter.base(held.peft):
        assert ratios(base).abs().max() < 2e-5
    other = policies.load(config.policy.name)
    again = other.generate(prompts, [r.seed for r in base[::2]], replace(sampling))
    assert all(np.array_equal(a.segments[0].tokens, b.segments[0].tokens) for a, b in zip(base[::2], again, strict=True))


def test_a_start_that_does_not_fit_the_policy_stops_the_learner(config: Config, tmp_path: Path) -> None:
    run(changed(config, {"run.updates": 1, "run.arms": ("pararl",)}), tmp_path / "first")
    given = tmp_path / "first" / "adapters" / "pararl"
    asked = changed(for_arm(config, "pararl"), {"policy.adapter": str(given), "policy.lora_rank": 4})
    with pytest.raises(ValueError, match=r"\[2, "):
        LocalLearner(asked, "pararl")


def test_the_start_of_a_run_is_named_from_wherever_its_actors_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = with_own_start(changed(Config(), {"policy.adapter": "given"}), Path("run"))
    assert found.policy.adapter == str(tmp_path.resolve() / "run" / "adapters" / "start")


def test_of_the_adapters_that_waited_a_checkpoint_leaves_the_best_alone(tmp_path: Path) -> None:
    def save(place: Path) -> None:
        place.mkdir(parents=True)
        (place / place.name.rpartition("-")[2]).touch()

    best = BestAdapter(tmp_path, "pararl")
    for update, score in ((1, 0.25), (2, 0.5), (3, 0.5), (4, 0.125)):
        best.offer(update, SplitResult(score, None, 4), save)
    assert len(list((tmp_path / "adapters").iterdir())) == 2, "none of them was lost before a checkpoint knew of a better one"
    best.commit()
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == [
        "adapters",
        "adapters/pararl-best",
        "adapters/pararl-best/2",
    ]


def test_results_of_earlier_versions_have_no_best(config: Config) -> None:
    split = {"soft": 0.5, "strict": 0.25, "n": 4}
    old = {"id": split, "ood": None, "updates": 1, "reward_calls": 2, "seconds": 3.0, "kl": 0.0, "adapter": "a", "kinds": {}}
    assert ArmResult.from_json(old).best is None
