"""What a run has kept and is read again is one line that names the file where it is cut short, another thing, or of another run."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pararl.config import Config, EvalConfig, PolicyConfig, RolloutConfig, TrackConfig, changed, for_arm
from pararl.files import append_line
from pararl.learner.handle import LocalLearner
from pararl.loop import checkpoint
from pararl.loop.arm_run import ArmRun
from pararl.loop.session import Session
from pararl.readers import FileError
from pararl.rollout.fleet import LocalFleet
from pararl.rollout.reward_workers import LocalRewardWorkers
from pararl.types import Judgement, Score

NOT_JSON = ["", "{", "[]", "{}", "[" * 100_000, '{"a": 1, "a": 2}', "version https://git-lfs.github.com/spec/v1\n"]


@pytest.fixture(scope="module")
def config(tiny_policy_dir: Path) -> Config:
    return Config(
        policy=PolicyConfig(name=str(tiny_policy_dir), lora_rank=2),
        rollout=RolloutConfig(prompts=4, group=4, steps=4, recorded=2),
        eval=EvalConfig(prompts=2, splits=("id",)),
        track=TrackConfig(mode="disabled"),
    )


@pytest.fixture(scope="module")
def session(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Session:
    workers = LocalRewardWorkers(config)
    return Session(config, tmp_path_factory.mktemp("run"), LocalFleet(config), workers, workers, lambda line: None)


def arm_run(session: Session, rank: int = 2) -> ArmRun:
    config = for_arm(changed(session.config, {"policy.lora_rank": rank}), "pararl")
    return ArmRun(session, "pararl", LocalLearner(config, "pararl"))


@pytest.fixture(scope="module")
def run(session: Session) -> ArmRun:
    return arm_run(session)


@pytest.fixture(scope="module")
def kept(run: ArmRun) -> Path:
    """The checkpoint of an arm after one update."""
    batch = run.score(run.generate(run.prompts(1), 1))
    spread = [Score(i / 16) for i in range(16)]  # a random policy's own scores teach nothing
    told = [Judgement(s, tuple(None if g is None else s for g in r.guesses)) for r, s in zip(batch.rollouts, spread, strict=True)]
    batch = replace(batch, judgements=told)
    run.learn(batch, run.prefer(batch))
    run.counters.update = 1
    run._save()
    run.counters.update = 0
    return run.checkpoint_path


@pytest.fixture
def saved(kept: Path, tmp_path: Path) -> Iterator[Path]:
    """The same, and whole again behind the test."""
    shutil.copytree(kept, tmp_path / "whole")
    yield kept
    shutil.rmtree(kept)
    shutil.copytree(tmp_path / "whole", kept)


def refused(read: Callable[[], object], path: Path) -> str:
    with pytest.raises(FileError) as caught:
        read()
    line = str(caught.value)
    assert str(path) in line and "\n" not in line and line.endswith(")"), line
    return line


def arrays(directory: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    found = {name: x.copy() for name, x in load_file(directory / checkpoint.TENSORS).items()}
    change(found)
    save_file(found, directory / checkpoint.TENSORS)


def facts(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    found = json.loads((directory / checkpoint.STATE).read_text())
    change(found)
    (directory / checkpoint.STATE).write_text(json.dumps(found))


def name_of(found: dict[str, np.ndarray], kind: str) -> str:
    return min(name for name in found if name.startswith(kind) and found[name].ndim == 2)


def test_a_whole_checkpoint_is_gone_on_with(run: ArmRun, saved: Path) -> None:
    fresh = arm_run(run.session)
    fresh._restore()
    assert fresh.counters.update == 1 and fresh.counters.reward_calls > 0
    run.session.tracker.finish("pararl")


def test_a_checkpoint_of_an_earlier_version_is_gone_on_with(run: ArmRun, saved: Path) -> None:
    """It counted no idle updates, and knew neither of a best adapter nor of a last update."""
    facts(saved, lambda f: (f["counters"].pop("idle"), f.pop("best"), f.pop("last")))
    fresh = arm_run(run.session)
    fresh._restore()
    assert fresh.counters.update == 1 and fresh.counters.idle == 0 and fresh.best.found is None
    run.session.tracker.finish("pararl")


@pytest.mark.parametrize("text", NOT_JSON)
def test_facts_of_a_checkpoint_that_are_none(run: ArmRun, saved: Path, text: str) -> None:
    (saved / checkpoint.STATE).write_text(text)
    refused(run._restore, saved / checkpoint.STATE)


@pytest.mark.parametrize(
    "change",
    [
        lambda f: f.pop("learner"),
        lambda f: f.update(counters={}),
        lambda f: f.update(counters=3),
        lambda f: f["counters"].update(update="one"),
        lambda f: f["counters"].update(more=1),
        lambda f: f["learner"].update(version=None),
        lambda f: f.update(curriculum=[]),
        lambda f: f.update(curriculum={}),
        lambda f: f["curriculum"].update(cursors=3),
    ],
)
def test_facts_of_a_checkpoint_of_another_form(run: ArmRun, saved: Path, change: Callable[[dict[str, Any]], object]) -> None:
    facts(saved, change)
    refused(run._restore, saved)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x08", b"version https://git-lfs.github.com/spec/v1\n", None])
def test_tensors_of_a_checkpoint_that_are_none(run: ArmRun, saved: Path, content: bytes | None) -> None:
    file = saved / checkpoint.TENSORS
    file.write_bytes(file.read_bytes()[:-9] if content is None else content)
    refused(run._restore, file)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda a: a[name_of(a, "adapter")].fill(np.nan), "not finite in adapter."),
        (lambda a: a[name_of(a, "moments")].fill(np.inf), "not finite in moments."),
        (lambda a: a.clear(), "does not hold the adapter"),
        (lambda a: a.pop(name_of(a, "adapter")), "does not hold the adapter"),
        (lambda a: a.pop(name_of(a, "reference")), "does not hold the adapter"),
        (lambda a: a.update(stray=np.ones(2)), "does not hold the adapter"),
        (lambda a: [a.pop(name) for kind in ("adapter", "reference") for name in [name_of(a, kind)]], "1 missing"),
        (lambda a: a.update({name_of(a, "moments"): np.ones((3, 3), np.float32)}), "fits none"),
    ],
)
def test_tensors_of_a_checkpoint_that_do_not_fit(
    run: ArmRun, saved: Path, change: Callable[[dict[str, np.ndarray]], object], word: str
) -> None:
    arrays(saved, change)
    assert word in refused(run._restore, saved)


def test_a_checkpoint_of_another_rank_is_told(run: ArmRun, saved: Path) -> None:
    assert "28 different" in refused(arm_run(run.session, rank=3)._restore, saved)


def test_results_and_calibrations_that_are_none(session: Session) -> None:
    session.base()
    workers = session.reward_workers
    clip = Session(changed(session.config, {"reward.name": "scenes-clip"}), session.folder, session.fleet, workers, workers)
    for text in NOT_JSON:
        for file, read in (
            (session.folder / "results" / "pararl.json", lambda: session.finished("pararl")),
            (session.folder / "calibration.json", clip.calibration),
            (session.folder / "results" / "base" / checkpoint.STATE, session.base),
        ):
            file.write_text(text)
            line = refused(read, file if text != "{}" or file.name != checkpoint.STATE else file.parent)
            assert "git lfs pull" in line or "remove" in line
    (session.folder / "calibration.json").write_text('{"mean": 1.0, "deviation": 0.0, "count": 3}')
    refused(clip.calibration, session.folder / "calibration.json")


@pytest.mark.parametrize("line", ["{", "3", "{}", '{"arm": 3, "update": 1}', '{"arm": "pararl"}', "[" * 100_000])
def test_rows_of_metrics_that_are_none(session: Session, line: str) -> None:
    path = session.tracker.metrics_path
    path.unlink(missing_ok=True)
    append_line(path, {"arm": "pararl", "update": 1})
    with path.open("a") as file:
        file.write(f"{line}\n")
    assert "line 2" in refused(lambda: session.tracker.truncate("other", 1), path)
    path.unlink()


def test_kept_rollouts_that_are_none(run: ArmRun, tmp_path: Path) -> None:
    batch = run.score(run.generate(run.prompts(1), 1))
    for change in (lambda f: f.clear(), lambda f: f.update(rollouts=[{}]), lambda f: f.update(prompts=3), lambda f: f["prompts"].clear()):
        checkpoint.save_rollouts(tmp_path / "r", batch.rollouts, batch.judgements, 1)
        facts(tmp_path / "r", change)
        refused(lambda: checkpoint.load_rollouts(tmp_path / "r"), tmp_path / "r")
    checkpoint.save_rollouts(tmp_path / "r", batch.rollouts, batch.judgements, 1)
    arrays(tmp_path / "r", lambda a: a.clear())
    refused(lambda: checkpoint.load_rollouts(tmp_path / "r"), tmp_path / "r")
