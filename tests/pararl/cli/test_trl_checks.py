"""What TRL cannot train is one clear line, before anything loads or starts."""

import json
from pathlib import Path

import pytest

from pararl.cli import validation
from pararl.config import Config, ConfigError, changed

RUN = {"run.arms": ("offline_dpo",), "curriculum.tasks": ("i2t",), "learner.trainer": "trl"}
"""All that a run by TRL takes, its policy aside."""


@pytest.fixture
def policies(tmp_path: Path) -> Path:
    """Folders that say of which family they are and what they do, and nothing else."""
    for family in ("showo", "mmada"):
        (tmp_path / family).mkdir()
        settings = {"tasks": ["t2t", "i2t", "t2i", "edit", "interleaved"]}
        (tmp_path / family / "policy.json").write_text(json.dumps({"family": family, "settings": settings}))
    return tmp_path


def config(policies: Path, family: str = "showo", **more: object) -> Config:
    return changed(Config(), {**RUN, "policy.name": str(policies / family), **{k.replace("__", "."): v for k, v in more.items()}})


def test_one_option_is_enough(policies: Path) -> None:
    validation.validate(config(policies))
    validation.validate(config(policies, curriculum__tasks=("t2t", "i2t"), learner__likelihood="elbo", eval__tasks=("i2t", "t2i")))
    own = changed(Config(), {"policy.name": str(policies / "mmada")})
    validation.validate(own)  # where TRL is not asked for, nothing is said


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (
            {"run__arms": ("pararl", "offline_dpo")},
            "learner.trainer offline_dpo pararl --run.arms",
        ),
        ({"run__arms": ("offline_stream",)}, "learner.trainer offline_dpo offline_stream"),
        (
            {"curriculum__tasks": ("i2t", "t2i", "interleaved")},
            "learner.trainer t2t i2t t2i, interleaved --curriculum.tasks",
        ),
        ({"family": "mmada"}, "learner.trainer showo mmada --policy.name"),
        ({"learner__nll": 0.1}, "learner.nll 0.1 --arm.offline_dpo.learner.nll 0.0"),
        ({"learner__negatives": "spg", "learner__likelihood": "elbo"}, "learner.negatives spg"),
        ({"arm": {"offline_dpo": {"learner.reference_every": 5}}}, "learner.reference_every 5"),
    ],
)
def test_what_trl_cannot_train_is_refused_in_one_line(policies: Path, more: dict[str, object], words: str) -> None:
    from dataclasses import replace

    arm = more.pop("arm", None)
    wrong = config(policies, **more)  # type: ignore[arg-type]
    if arm is not None:
        wrong = replace(wrong, arm=arm)  # type: ignore[arg-type]
    with pytest.raises(ConfigError) as told:
        validation.validate(wrong)
    line = str(told.value)
    assert [word for word in words.split() if word not in line] == [] and "\n" not in line


def test_it_may_be_asked_for_in_one_arm_beside_others(policies: Path) -> None:
    both = config(policies, run__arms=("pararl", "offline_dpo"), learner__trainer="pararl")
    arm = {"offline_dpo": {**both.arm["offline_dpo"], "learner.trainer": "trl"}}
    validation.validate(Config(**{**vars(both), "arm": arm}))
