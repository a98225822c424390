"""Checkpoints: whole or not at all, and the same after a round trip."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import policies
from pararl import scenes
from pararl.loop import checkpoint
from pararl.types import KINDS, Judgement, Output, Score
from policies import Sampling
from tests.policies.by_hand import step_means


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


def test_stored_rollouts_of_every_kind_have_the_same_likelihoods(tiny_policy_dir: Path, tmp_path: Path) -> None:
    policy = policies.load(tiny_policy_dir)
    prompts = [scenes.prompt("train", i, 0, *scenes.FORMS[kind]) for kind in KINDS for i in range(2)]
    rollouts = policy.generate(prompts, list(range(12)), Sampling(steps=4, recorded=2))
    judgements = [Judgement(None if i == 1 else Score(i / 12, strict=i > 6)) for i in range(12)]
    checkpoint.save_rollouts(tmp_path / "r", rollouts, judgements, 5)
    back, scores, wanted = checkpoint.load_rollouts(tmp_path / "r")  # type: ignore[misc]
    assert scores == judgements and wanted == 5
    for before, after in zip(rollouts, back, strict=True):
        assert (after.prompt.kind, after.prompt.id, after.prompt.spec) == (before.prompt.kind, before.prompt.id, before.prompt.spec)
        assert before.prompt_ids is not None and after.prompt_ids is not None
        assert after.prompt_ids.tolist() == before.prompt_ids.tolist()
        assert after.output == Output() and step_means(policy, [after], [after.recorded]).equal(
            step_means(policy, [before], [before.recorded])
        )
    assert replace(back[1], segments=()) == replace(checkpoint.without_outputs(rollouts[1]), segments=())
