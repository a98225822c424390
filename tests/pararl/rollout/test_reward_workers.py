"""Reward workers: the same scores from every number of actors, in order, counted; a reward that fails stops the run and is never a 0."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from pararl import scenes
from pararl.config import Config, changed
from pararl.rollout.reward_worker import RewardError
from pararl.rollout.reward_workers import LocalRewardWorkers, RayRewardWorkers, RewardWorkers
from pararl.types import Judgement, Output, Rollout
from rewards import SceneReward
from rewards.base import Sample
from tests.wording import telling

ROOT = Path(__file__).resolve().parents[3]
HERE = "tests.pararl.rollout.test_reward_workers"


def raises(completions: list[Output], **columns: Any) -> list[float]:
    raise ZeroDivisionError("the detector saw nothing")


def none_for_most(completions: list[Output], id: list[str], **columns: Any) -> list[float | None]:
    return [0.5 if name == "id-3" else None for name in id]


def leaves_a_mark(completions: list[Output], spec: list[dict[str, str]], **columns: Any) -> list[float]:
    Path(spec[0]["mark"]).touch()
    return [1.0] * len(completions)


def counts(completions: list[Output], spec: list[dict[str, str]], **columns: Any) -> list[float]:
    with Path(spec[0]["mark"]).open("a") as file:
        file.write("x" * len(completions))
    return [1.0] * len(completions)


class Backwards(SceneReward):
    """Ranks its own good examples below the bad ones."""

    def examples(self) -> list[Sample]:
        return [(prompt, bad, good) for prompt, good, bad in super().examples()]


def rollout(index: int, guesses: int = 2) -> Rollout:
    """The right scene for every even prompt, another scene for the odd ones; guesses are other scenes again."""
    shown = scenes.example("id", index)
    other = [scenes.example("id", index + 1 + k).output for k in range(guesses)]
    output = shown.output if index % 2 == 0 else scenes.example("id", index + 50).output
    return Rollout(shown.prompt, 0, index, 0, 4, tuple(range(guesses)), (), output, tuple(other))


ROLLOUTS = [rollout(i, guesses=i % 3) for i in range(10)]
CALLS = sum(1 + i % 3 for i in range(10))


def config(name: str = "scenes", workers: int = 1) -> Config:
    return changed(Config(), {"reward.name": name, "reward.workers": workers})


@pytest.fixture(scope="module")
def two(ray_cluster: None) -> Iterator[RayRewardWorkers]:
    reward_workers = RayRewardWorkers(config(workers=2))
    reward_workers.ready()
    yield reward_workers
    reward_workers.close()


def values(judgements: list[Judgement]) -> list[list[float | None]]:
    return [[None if s is None else s.value for s in (j.final, *j.steps)] for j in judgements]


def expected_values() -> list[list[float]]:
    """Straight from the world, without rewards or workers."""
    return [
        [scenes.check(r.prompt.spec, scenes.parse(o.image)).value for o in (r.output, *r.guesses) if o is not None and o.image is not None]
        for r in ROLLOUTS
    ]


def test_actors_and_process_give_the_scores_of_the_world_in_order(two: RayRewardWorkers) -> None:
    expected = expected_values()
    assert values(LocalRewardWorkers(config()).score(ROLLOUTS)) == values(two.score(ROLLOUTS)) == expected
    assert all(row[0] == 1.0 for row in expected[::2]) and any(row[0] < 1 for row in expected[1::2])


def test_a_stream_of_chunks_in_any_order_gives_the_batch_in_order(two: RayRewardWorkers) -> None:
    chunks = [(6, ROLLOUTS[6:]), (0, ROLLOUTS[:2]), (2, ROLLOUTS[2:6])]
    for reward_workers in (two, LocalRewardWorkers(config())):
        rollouts, judgements = reward_workers.stream(iter(chunks))
        assert [r.prompt.id for r in rollouts] == [r.prompt.id for r in ROLLOUTS]
        assert values(judgements) == expected_values()


def test_scoring_starts_while_later_chunks_are_still_sampled(ray_cluster: None, tmp_path: Path) -> None:
    def sampled() -> Iterator[tuple[int, list[Rollout]]]:
        for start in (0, 5):
            marked = tmp_path / str(start)
            yield start, [replace(r, prompt=replace(r.prompt, spec={"mark": str(marked)})) for r in ROLLOUTS[start : start + 5]]
            deadline = time.monotonic() + 60
            while not marked.exists():
                assert time.monotonic() < deadline, "the first chunk was not scored before the second one was asked for"
                time.sleep(0.01)

    reward_workers = RayRewardWorkers(config(f"{HERE}:leaves_a_mark"))
    assert len(reward_workers.stream(sampled())[1]) == 10
    reward_workers.close()


def test_every_output_and_guess_counts_as_one_reward_call(two: RayRewardWorkers) -> None:
    local = LocalRewardWorkers(config())
    before = two.calls
    for reward_workers in (local, two):
        reward_workers.score(ROLLOUTS)
        reward_workers.stream([(0, ROLLOUTS[:4]), (4, ROLLOUTS[4:])])
    assert (local.calls, two.calls - before) == (2 * CALLS, 2 * CALLS)


def test_every_output_and_guess_is_scored_once(ray_cluster: None, tmp_path: Path) -> None:
    for reward_workers in both(f"{HERE}:counts"):
        mark = tmp_path / type(reward_workers).__name__
        marked = [replace(r, prompt=replace(r.prompt, spec={"mark": str(mark)})) for r in ROLLOUTS]
        reward_workers.score(marked)
        reward_workers.stream([(0, marked[:4]), (4, marked[4:])])
        assert mark.stat().st_size == reward_workers.calls == 2 * CALLS


def test_no_rollouts_are_no_judgements(two: RayRewardWorkers) -> None:
    assert two.score([]) == LocalRewardWorkers(config()).score([]) == []


def both(name: str) -> Iterator[RewardWorkers]:
    yield LocalRewardWorkers(config(name))
    remote = RayRewardWorkers(config(name))
    yield remote
    remote.close()


def test_a_reward_that_raises_stops_the_run_with_its_name_and_cause(ray_cluster: None) -> None:
    for reward_workers in both(f"{HERE}:raises"):
        with pytest.raises(
            RewardError, match=telling(f"{HERE}:raises", "id-0", "id-1", "ZeroDivisionError: the detector saw nothing")
        ) as caught:
            reward_workers.score(ROLLOUTS)
        assert "\n" not in str(caught.value) and reward_workers.calls == 0


def test_none_stays_none(ray_cluster: None) -> None:
    for reward_workers in both(f"{HERE}:none_for_most"):
        expected = [[0.5 if i == 3 else None] * (1 + i % 3) for i in range(10)]
        assert values(reward_workers.score(ROLLOUTS)) == expected


def test_a_reward_that_fails_its_self_test_does_not_start(ray_cluster: None) -> None:
    with pytest.raises(RuntimeError, match=telling("self-test", "scenes")):
        LocalRewardWorkers(config(f"{HERE}:Backwards"))
    remote = RayRewardWorkers(config(f"{HERE}:Backwards"))
    with pytest.raises(RuntimeError, match=telling(f"'{HERE}:Backwards'", "RuntimeError", "self-test", "scenes")):
        remote.ready()
    remote.close()


def test_a_reward_actor_that_dies_comes_back(two: RayRewardWorkers) -> None:
    pids = ray.get([handle.__ray_call__.remote(lambda actor: os.getpid()) for handle in two.actors.handles])
    for handle in two.actors.handles:
        ray.kill(handle, no_restart=False)
    assert values(two.score(ROLLOUTS)) == expected_values()
    assert not set(pids) & set(ray.get([handle.__ray_call__.remote(lambda actor: os.getpid()) for handle in two.actors.handles]))


def test_broken_output_is_an_error_not_a_zero() -> None:
    broken = replace(ROLLOUTS[0], output=Output(image=None), guesses=(), recorded=())
    with pytest.raises(RewardError, match=telling("scenes", 1, "ValueError", "image")):
        LocalRewardWorkers(config()).score([broken])


def test_judging_loads_no_torch() -> None:
    code = "import sys; from pararl.config import Config; from pararl.rollout.reward_workers import LocalRewardWorkers, RayRewardWorkers; "
    code += "LocalRewardWorkers(Config()); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120).returncode == 0
