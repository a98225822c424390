"""What must hold where TRL takes the steps of an arm (``learner.trainer: trl``)."""

from pararl.config import Config, LearnerConfig, for_arm
from pararl.data.quotas import task_shares
from policies.traits import ANSWERS, TRAITS, Traits

FIXED = {"reference_every": 0, "nll": 0.0, "negatives": "elbo"}
"""Settings of the learner that TRL's loss knows one value of."""


def trl_problems(config: Config, family: str, traits: Traits) -> list[str]:
    """What is wrong with the arms that TRL is to train a policy of ``family`` with."""
    arms = [arm for arm in config.run.arms if for_arm(config, arm).learner.trainer == "trl"]
    if not arms:
        return []
    problems = []
    if others := [arm for arm in arms if arm != "offline_dpo"]:
        problems.append(
            f"learner.trainer trl is for arm offline_dpo, not for {', '.join(others)} "
            "(set --run.arms offline_dpo, or --arm.offline_dpo.learner.trainer trl alone)"
        )
    if images := [kind for kind in task_shares(config.curriculum.tasks) if kind not in ANSWERS]:
        problems.append(
            f"learner.trainer trl learns from texts alone, {' or '.join(ANSWERS)}, not from {', '.join(images)} (set --curriculum.tasks)"
        )
    if config.policy.adapter:
        problems.append("learner.trainer trl begins with a new adapter (leave policy.adapter out, or set --learner.trainer pararl)")
    if not traits.trl:
        able = " or ".join(name for name, others in TRAITS.items() if others.trl)
        problems.append(
            f"learner.trainer trl needs a policy that writes text token by token, of family {able}: {config.policy.name} is of family "
            f"{family} (set --policy.name, or --learner.trainer pararl)"
        )
    return problems + [problem for arm in arms if arm == "offline_dpo" for problem in _fixed(arm, for_arm(config, arm).learner)]


def _fixed(arm: str, learner: LearnerConfig) -> list[str]:
    return [
        f"learner.trainer trl has no learner.{name} {getattr(learner, name)} (set --arm.{arm}.learner.{name} {value})"
        for name, value in FIXED.items()
        if getattr(learner, name) != value
    ]
