"""A run that learns nothing says so, and ends in the end."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pararl.config import Arm, Config, EvalConfig, PolicyConfig, RolloutConfig, TrackConfig, changed, for_arm
from pararl.files import read_lines
from pararl.learner.handle import LocalLearner
from pararl.loop.arm_run import ArmRun
from pararl.loop.idle import idle_reason, idle_warning
from pararl.loop.session import Session
from pararl.rollout.fleet import LocalFleet
from pararl.rollout.reward_workers import LocalRewardWorkers
from pararl.tracking.progress import Progress
from pararl.types import Output
from pipelines.pararl import train


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ({"learner/grad_norm": 0.1, "reward/groups_without_spread": 1.0, "learner/pairs": 0.0}, None),
        ({"reward/groups_without_spread": 1.0, "learner/pairs": 0.0}, "constant reward"),
        ({"learner/grad_norm": 0.0, "reward/groups_without_spread": 0.5, "learner/pairs": 3.0}, "gradient was zero"),
        ({"reward/groups_without_spread": 0.5, "learner/pairs": 0.0}, "prefer.min_margin"),
    ],
)
def test_the_reason_is_what_is_missing(metrics: dict[str, float], words: str | None) -> None:
    why = idle_reason(metrics)
    assert why is None if words is None else why is not None and words in why


def test_it_is_told_every_fifth_time_and_ends_when_patience_does() -> None:
    told = [count for count in range(1, 21) if idle_warning(count, "why", 0)]
    assert told == [5, 10, 15, 20]
    assert idle_warning(7, "why", 8) is None
    with pytest.raises(RuntimeError, match=r"8 .*why.*run\.patience 8"):
        idle_warning(8, "why", 8)


def constant(prompts: Sequence[str], completions: Sequence[Output], **columns: Any) -> list[float]:
    """A reward that tells nothing apart."""
    return [0.5] * len(completions)


def bright(prompts: Sequence[str], completions: Sequence[Output], **columns: Any) -> list[float]:
    """A reward that tells images apart."""
    return [float(c.image.mean() / 255) for c in completions if c.image is not None]


class Shown(Progress):
    """Keeps what it was told to say."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)


def run_of(tiny_policy_dir: Path, folder: Path, arm: Arm, values: dict[str, Any]) -> tuple[ArmRun, Shown]:
    """An arm whose workers and learner are in this process."""
    config = changed(
        Config(
            policy=PolicyConfig(name=str(tiny_policy_dir), lora_rank=2),
            rollout=RolloutConfig(prompts=2, group=4, steps=4, recorded=2),
            eval=EvalConfig(prompts=2, every=0),
            track=TrackConfig(mode="disabled"),
        ),
        values,
    )
    workers = LocalRewardWorkers(config)
    session = Session(config, folder, LocalFleet(config), workers, workers, lambda line: None)
    run = ArmRun(session, arm, LocalLearner(for_arm(config, arm), arm))
    session.tracker.start(arm)
    run.progress = Shown(config.run.updates, arm)
    return run, run.progress


def learn(run: ArmRun, updates: Sequence[int]) -> None:
    """The loop of the pipeline, in this process."""
    for update in run.updates():
        batch = run.score(run.generate(run.prompts(update), update))
        feedback = run.prefer(batch)
        run.log(update, batch, feedback, run.learn(batch, feedback), run.publish(update))
        if update == updates[-1]:
            break


@pytest.mark.parametrize("arm", ["pararl", "pararl_grpo", "best_of_n"])
def test_a_constant_reward_is_told_and_ends_the_run(tiny_policy_dir: Path, tmp_path: Path, arm: Arm) -> None:
    values = {"reward.name": f"{__name__}:constant", "run.updates": 9, "run.patience": 7}
    run, shown = run_of(tiny_policy_dir, tmp_path / "run", arm, values)
    with pytest.raises(RuntimeError, match=r"7 updates in a row.*constant reward.*run\.patience 7"):
        learn(run, range(1, 10))
    (line,) = [line for line in shown.lines if "warning" in line]
    assert line.startswith(f"{arm}: warning: nothing was learned in 5 updates")
    rows = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert [row.get("learner/idle") for row in rows] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]


def test_a_run_that_learns_again_is_not_idle_any_more(tiny_policy_dir: Path, tmp_path: Path) -> None:
    run, shown = run_of(
        tiny_policy_dir, tmp_path / "run", "pararl", {"reward.name": f"{__name__}:bright", "run.updates": 4, "prefer.min_margin": 2.0}
    )
    learn(run, range(1, 4))
    assert run.counters.idle == 3
    run.config = changed(run.config, {"prefer.min_margin": 0.0})
    run.counters.update = 3
    learn(run, range(4, 5))
    rows = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert run.counters.idle == 0 and "learner/idle" not in rows[-1] and rows[-1]["learner/grad_norm"] > 0
    assert not [line for line in shown.lines if "warning" in line]


def test_the_loop_of_these_tests_is_that_of_the_pipeline() -> None:
    assert {"updates", "prompts", "generate", "score", "prefer", "learn", "publish", "log"} <= set(train.__code__.co_names)
