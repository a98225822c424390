"""Settings that have no effect on a policy are told, by what its heads are."""

from dataclasses import replace

import pytest

from pararl.cli.family_checks import family_problems
from pararl.config import Config, changed
from policies.traits import TRAITS


@pytest.mark.parametrize(
    ("settings", "family", "words"),
    [
        ({"rollout.text_guidance": 1.0}, "showo", "rollout.text_guidance 0 showo"),
        ({"rollout.text_guidance": 1.0}, "mmada", None),
        ({"rollout.flow_noise": 0.0}, "showo2", "rollout.flow_noise pararl, offline_dpo"),
        ({"rollout.flow_noise": 0.0}, "showo", "rollout.flow_noise showo 0.7"),
        ({"rollout.decoding": "sequential"}, "showo", "rollout.decoding showo parallel"),
        ({"rollout.decoding": "sequential", "rollout.image_steps": 2}, "mmada", None),
        ({"rollout.flow_noise": 0.0, "curriculum.tasks": ("i2t",)}, "showo2", None),
        ({"rollout.flow_noise": 0.0, "learner.likelihood": "elbo"}, "showo2", None),
        ({}, "showo2", None),
        ({"learner.negatives": "spg"}, "showo2", "learner.negatives showo2 elbo"),
        ({"learner.image_ratio": 0.5}, "showo2", "pararl; --arm.pararl.learner.image_ratio -1.0"),
        ({"learner.text_masks": "block"}, "showo", "learner.text_masks showo random"),
        ({"learner.image_ratio": 0.5, "learner.negatives": "spg"}, "showo", None),
        ({"learner.text_masks": "block"}, "mmada", None),
        ({"rollout.image_sampler": "emerge"}, "showo2", "rollout.image_sampler showo2 maskgit"),
        ({"rollout.image_sampler": "emerge"}, "showo", None),
    ],
)
def test_a_setting_without_effect_is_told(settings: dict[str, object], family: str, words: str | None) -> None:
    line = "; ".join(family_problems(changed(Config(), settings), family, TRAITS[family]))
    assert bool(line) == (words is not None)
    assert [word for word in (words or "").split() if word not in line] == []


def test_a_setting_of_one_arm_is_told_of_that_arm_alone() -> None:
    config = replace(Config(), arm={"offline_dpo": {"learner.text_masks": "block"}})
    (line,) = family_problems(config, "showo", TRAITS["showo"])
    assert "(arm offline_dpo; set --arm.offline_dpo.learner.text_masks random)" in line
