"""What must hold where a policy writes its text token by token."""

from pararl.cli.arm_checks import ELBO_ONLY
from pararl.config import Config, LearnerConfig, RolloutConfig, for_arm
from pararl.data.quotas import task_shares

CAUSAL = ("showo", "showo2")
"""Families that do. Their text has no blocks and no steps of its own."""
MASKS = {"showo": ("text_ratio", "text_masks"), "showo2": ELBO_ONLY}
"""Settings of the learner about masks that a family has not: Show-o in its text, Show-o2 anywhere."""
COMMITS = ("choice_temperature", "image_sampler", "image_steps", "decoding")
"""Settings of the sampler about when tokens of an image are committed: all of Show-o2's move at every step."""


def causal_problems(config: Config, family: str | None) -> list[str]:
    """What the settings ask of a policy of ``family`` (None = not known) that such a family does not do."""
    if family not in CAUSAL:
        return []
    problems = []
    if config.rollout.text_guidance:
        problems.append(f"rollout.text_guidance must be 0: the text of a {family} policy is not guided (set --rollout.text_guidance 0)")
    for name in COMMITS if family == "showo2" else ():
        if getattr(config.rollout, name) != getattr(RolloutConfig(), name):
            problems.append(
                f"rollout.{name} is about the order of masked tokens, and a {family} policy has none (set --rollout.{name} "
                f"{getattr(RolloutConfig(), name)})"
            )
    for arm in config.run.arms:
        learner = for_arm(config, arm).learner
        for name in MASKS[family]:
            if getattr(learner, name) != getattr(LearnerConfig(), name):
                problems.append(
                    f"learner.{name} is about masks, and a {family} policy hides no token there (arm {arm}; set --arm.{arm}.learner.{name} "
                    f"{getattr(LearnerConfig(), name)})"
                )
    draws = any(kind not in ("t2t", "i2t") for kind in task_shares(config.curriculum.tasks))
    by_steps = [arm for arm in config.run.arms if for_arm(config, arm).learner.likelihood == "steps"]
    if family == "showo2" and draws and not config.rollout.flow_noise and by_steps:
        problems.append(
            f"rollout.flow_noise 0 samples images by an ODE, whose steps have no density for {', '.join(by_steps)} to learn from (set "
            "--rollout.flow_noise 0.7, or --learner.likelihood elbo)"
        )
    return problems
