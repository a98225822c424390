"""Checkpoints: whole or not at all, and the same after a round trip."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import policies
from pararl import checkpoint, scenes
from pararl.types import Judgement, Output, Score
from policies import Sampling


def test_arrays_and_facts_come_back(tmp_path: Path) -> None:
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.array([1, 2], np.int16)}
    checkpoint.save(tmp_path / "c", arrays, {"update": 3})
    checkpoint.save(tmp_path / "c", {"a": arrays["a"] + 1}, {"update": 4})
    found, facts = checkpoint.load(tmp_path / "c")  # type: ignore[misc]
    assert facts == {"update": 4} and set(found) == {"a"}
    assert np.array_equal(found["a"], arrays["a"] + 1)
    assert checkpoint.load(tmp_path / "nothing") is None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c"]


def test_a_kill_at_any_moment_of_a_save_leaves_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path / "c", {"a": np.zeros(1)}, {"update": 1})
    real, calls = os.replace, []

    def dies_at(number: int):  # type: ignore[no-untyped-def]
        def replace_or_die(*args: object) -> None:
            calls.append(args)
            if len(calls) == number:
                raise KeyboardInterrupt
            real(*args)  # type: ignore[arg-type]

        return replace_or_die

    # Each save renames three times: its JSON file, the old checkpoint away, the new one in.
    for number in (1, 2, 3):
        calls.clear()
        monkeypatch.setattr(os, "replace", dies_at(number))
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(tmp_path / "c", {"a": np.ones(1)}, {"update": 2})
        monkeypatch.setattr(os, "replace", real)
        found = checkpoint.load(tmp_path / "c")
        assert found is not None and found[1]["update"] == 1
        assert found[0]["a"][0] == 0


@pytest.mark.parametrize("task", ["t2i", "interleaved"])
def test_stored_rollouts_have_the_same_likelihoods(tiny_policy_dir: Path, tmp_path: Path, task: str) -> None:
    policy = policies.load(tiny_policy_dir)
    prompts = [scenes.prompt("train", i, task=task) for i in range(3)]  # type: ignore[arg-type]
    rollouts = policy.generate(prompts, [1, 2, 3], Sampling(steps=4, recorded=2))
    judgements = [Judgement(Score(0.5, strict=False)), Judgement(None), Judgement(Score(1.0, strict=True))]
    checkpoint.save_rollouts(tmp_path / "r", rollouts, judgements)
    back, scores = checkpoint.load_rollouts(tmp_path / "r")  # type: ignore[misc]
    assert scores == judgements
    assert [r.prompt.spec for r in back] == [r.prompt.spec for r in rollouts]
    assert back[0].output == Output()
    steps = [r.recorded for r in rollouts]
    assert policy.step_log_likelihood(back, steps).equal(policy.step_log_likelihood(rollouts, steps))
    assert replace(back[1], segments=()) == replace(checkpoint.without_outputs(rollouts[1]), segments=())
