"""What takes long is told, and what takes too long ends with its cause: one error, and no process that hangs is left behind."""

import os
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from pararl import scenes
from pararl.config import Config, changed
from pararl.rollout import waiting
from pararl.rollout.actors import Actors, Call
from pararl.rollout.reward_worker import RewardError
from pararl.rollout.reward_workers import RayRewardWorkers
from pararl.rollout.waiting import Limit, TimedOut, watched
from pararl.types import Output, Rollout

HERE = "tests.pararl.rollout.test_waiting"
PATIENT = Limit(120.0, "run.timeout")


class Sleeper:
    def sleep(self, seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    def pid(self) -> int:
        return os.getpid()


class Slow:
    """Never made."""

    def __init__(self) -> None:
        time.sleep(1000.0)


def of(*names: str, kind: type = Sleeper, start: Limit = PATIENT) -> Actors:
    return Actors(kind, [(name, ()) for name in names], start, threads=1)


def sleep(seconds: float, limit: Limit = PATIENT) -> Call:
    return Call("sleep", (seconds,), f"sleep {seconds:g} s", limit)


@pytest.fixture(scope="module")
def pair(ray_cluster: None) -> Iterator[Actors]:
    actors = of("one", "two")
    actors.ready()
    yield actors
    actors.close()


def gone(pid: int) -> bool:
    """Whether the process ends within seconds; one that nobody has buried yet has ended."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("how", ["in_turn", "whoever_is_free"])
def test_a_call_that_hangs_ends_with_who_what_how_long_and_the_setting_and_its_process_is_gone(ray_cluster: None, how: str) -> None:
    actors = of("one")
    (pid,) = actors.every(Call("pid", (), "tell", PATIENT))
    limit, began = Limit(1.5, "reward.timeout"), time.monotonic()
    with pytest.raises(TimedOut) as told:
        list(getattr(actors, how)([sleep(0.0, limit), sleep(1000.0, limit), sleep(0.0, limit)]))
    assert time.monotonic() - began < 6
    assert all(word in str(told.value) for word in ("one ", "sleep 1000 s", "1.5 s", "--reward.timeout"))
    assert gone(pid)


def test_an_actor_that_does_not_start_in_time_is_told(ray_cluster: None) -> None:
    slow = of("rollout-0", kind=Slow, start=Limit(2.0, "run.timeout"))
    with pytest.raises(TimedOut) as told:
        slow.ready()
    assert all(word in str(told.value) for word in ("rollout-0", "start", "2 s", "--run.timeout"))


def test_the_time_of_a_call_runs_from_when_its_actor_is_free_for_it(pair: Actors) -> None:
    # Two calls a worker, each within the limit, both together beyond it.
    assert pair.in_turn([sleep(2.0, Limit(3.0, "reward.timeout"))] * 4) == [2.0] * 4


def test_an_answer_that_came_while_nobody_waited_is_not_too_late(pair: Actors) -> None:
    results = pair.whoever_is_free([sleep(0.0, Limit(0.5, "run.timeout"))] * 4)
    first = next(results)
    time.sleep(1.0)
    assert sorted([first, *results]) == [(place, 0.0) for place in range(4)]


def test_no_limit_is_none_and_results_do_not_depend_on_it(pair: Actors) -> None:
    for seconds in (0.0, 60.0):
        assert pair.in_turn([sleep(s, Limit(seconds, "reward.timeout")) for s in (0.6, 0.0, 0.3)]) == [0.6, 0.0, 0.3]


def test_what_is_waited_for_is_told_once_in_a_while_and_since_when(
    pair: Actors, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(waiting, "FIRST", 0.5)
    monkeypatch.setattr(waiting, "AGAIN", 3.0)
    pair.every(sleep(0.2))
    assert capsys.readouterr().err == ""
    before = time.time()
    list(pair.whoever_is_free([sleep(1.3)] * 4))
    pair.every(sleep(2.5))
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == "" and len(lines) == 2, "five seconds of waiting for six slow calls"
    assert "one" in lines[0] and "sleep 1.3 s" in lines[0] and "sleep 2.5 s" in lines[1]
    assert any(time.strftime("%H:%M:%S", time.localtime(before + late)) in lines[0] for late in (0, 1))


def test_what_cannot_be_asked_in_between_is_told_as_well(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(waiting, "FIRST", 0.2)
    monkeypatch.setattr(waiting, "AGAIN", 0.2)
    with watched("the moon"):
        time.sleep(0.5)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2 and all("the moon" in line for line in told)
    with watched("the moon"):
        pass
    time.sleep(0.3)
    assert capsys.readouterr().err == ""


def hangs(completions: list[Output], **columns: object) -> list[float]:
    time.sleep(1000.0)
    raise AssertionError


def takes_as_long_as_two_chunks(completions: list[Output], **columns: object) -> list[float]:
    time.sleep(3.5 if len(completions) > 2 else 0.0)
    return [1.0] * len(completions)


ROLLOUTS = [
    Rollout(example.prompt, 0, i, 0, 4, (), (), example.output, ()) for i, example in enumerate(scenes.example("id", i) for i in range(4))
]


def config(name: str, timeout: float, **more: object) -> Config:
    return changed(Config(), {"reward.name": f"{HERE}:{name}", "reward.timeout": timeout, "rollout.chunk": 2, **more})


def test_a_reward_that_hangs_is_named_with_its_setting(ray_cluster: None) -> None:
    reward_workers = RayRewardWorkers(config("hangs", 1.0))
    reward_workers.ready()
    with pytest.raises(TimedOut) as told:
        reward_workers.stream([(0, ROLLOUTS[:2]), (2, ROLLOUTS[2:])])
    assert all(word in str(told.value) for word in (f"{HERE}:hangs", "2 rollouts", "1 s", "--reward.timeout"))
    assert not isinstance(told.value, RewardError) and reward_workers.calls == 0
    reward_workers.close()


def test_a_share_of_several_chunks_has_the_time_of_as_many(ray_cluster: None) -> None:
    # A call has up to a second more than its limit: what takes 3.5 s is beyond 2 s, and within twice that.
    reward_workers = RayRewardWorkers(config("takes_as_long_as_two_chunks", 2.0))
    reward_workers.ready()
    assert len(reward_workers.score([replace(r, index=i) for i, r in enumerate(ROLLOUTS)])) == 4
    assert reward_workers.actors.names == [f"reward '{HERE}:takes_as_long_as_two_chunks'"]
    reward_workers.close()


def test_ending_actors_that_are_at_work_says_nothing(ray_cluster: None, capfd: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> Iterator[Call]:
        yield from [sleep(1000.0)] * 2
        time.sleep(0.5)
        raise KeyboardInterrupt

    busy = of("one")
    busy.ready()
    with pytest.raises(KeyboardInterrupt):
        busy.in_turn(interrupted())
    busy.close()
    time.sleep(1.5)  # Ray tells of a repeated call from a thread
    assert capfd.readouterr() == ("", "")
