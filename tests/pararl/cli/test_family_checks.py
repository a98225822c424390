"""Settings that have no effect on a policy are told, by what its heads are."""

import pytest

from pararl.cli.family_checks import family_problems
from pararl.config import Config, changed
from policies.traits import TRAITS


@pytest.mark.parametrize(
    ("settings", "family", "told"),
    [
        ({"rollout.text_guidance": 1.0}, "showo", "the text of a showo policy is not guided"),
        ({"rollout.text_guidance": 1.0}, "mmada", None),
        ({"rollout.flow_noise": 0.0}, "showo2", "have no density for pararl, offline_dpo to learn from"),
        ({"rollout.flow_noise": 0.0}, "showo", "rollout.flow_noise is about images of continuous latents"),
        ({"rollout.decoding": "sequential"}, "showo", "rollout.decoding is about text and image that are denoised together"),
        ({"rollout.decoding": "sequential", "rollout.image_steps": 2}, "mmada", None),
        ({"rollout.flow_noise": 0.0, "curriculum.tasks": ("i2t",)}, "showo2", None),
        ({"rollout.flow_noise": 0.0, "learner.likelihood": "elbo"}, "showo2", None),
        ({}, "showo2", None),
        ({"learner.negatives": "spg"}, "showo2", "learner.negatives is about masks, and a showo2 policy hides no token there"),
        ({"learner.image_ratio": 0.5}, "showo2", "(arm pararl; set --arm.pararl.learner.image_ratio -1.0)"),
        ({"learner.text_masks": "block"}, "showo", "learner.text_masks is about masks"),
        ({"learner.image_ratio": 0.5, "learner.negatives": "spg"}, "showo", None),
        ({"learner.text_masks": "block"}, "mmada", None),
        ({"rollout.image_sampler": "emerge"}, "showo2", "rollout.image_sampler is about the order of masked tokens"),
        ({"rollout.image_sampler": "emerge"}, "showo", None),
    ],
)
def test_a_setting_without_effect_is_told(settings: dict[str, object], family: str, told: str | None) -> None:
    problems = family_problems(changed(Config(), settings), family, TRAITS[family])
    assert problems == [] if told is None else told in problems[0]
