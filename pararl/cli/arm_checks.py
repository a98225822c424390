"""What must hold for the settings that each arm runs with: the part of ``pararl/cli/validation.py`` that looks at arms one by one."""

from pararl.arms import ARM_SPECS, ArmSpec
from pararl.config import Config, LearnerConfig, for_arm
from pararl.data.quotas import PAIRED, task_shares

ELBO_ONLY = ("image_ratio", "text_ratio", "text_masks", "image_rows", "negatives")
"""Settings of the learner that are about ELBOs alone."""
GRPO_ONLY = ("prefer.credit", "learner.kl")
"""Settings that the objective of arm pararl_grpo alone has."""


def arm_problems(config: Config) -> list[str]:
    """What is wrong with the settings of single arms once their overrides are applied."""
    problems = []
    taking = [arm for arm in config.run.arms if ARM_SPECS[arm].objective == "grpo"]  # type: ignore[index]
    if config.prefer.credit and not taking:
        problems.append(f"prefer.credit has an effect in arm pararl_grpo only, not in {', '.join(config.run.arms)} (set --run.arms)")
    pairing = [arm for arm in config.run.arms if ARM_SPECS[arm].paired]  # type: ignore[index]
    if pairing and not set(PAIRED) <= task_shares(config.curriculum.tasks).keys():
        problems.append(
            f"arm {pairing[0]} learns from captions and images of the same scenes: curriculum.tasks must name i2t and t2i "
            "(set --curriculum.tasks i2t,t2i, or --run.arms)"
        )
    if pairing and not config.curriculum.file and "caption" in config.curriculum.canaries:
        problems.append(f"arm {pairing[0]} learns from captions, which curriculum.canaries rule out (set --curriculum.canaries)")
    if pairing and config.rollout.prompts % 2:
        problems.append(f"arm {pairing[0]} takes prompts in pairs: rollout.prompts must be even (set --rollout.prompts)")
    for arm in config.run.arms:
        for name in GRPO_ONLY:
            if config.arm.get(arm, {}).get(name) and arm not in taking:
                problems.append(f"arm.{arm}.{name} has no effect: only arm pararl_grpo has a use for it (set --arm.pararl_grpo.{name})")
        # With the arm's overrides: it may have another likelihood than the run.
        learner = for_arm(config, arm).learner
        if learner.likelihood == "steps":
            problems += _steps(arm, learner)
        else:
            problems += _elbo(arm, ARM_SPECS[arm], learner, config.rollout.decoding)  # type: ignore[index]
    return problems


def _steps(arm: str, learner: LearnerConfig) -> list[str]:
    """What is wrong with an arm whose likelihoods are conditionals at steps."""
    return [
        f"learner.{name} is about ELBOs and arm {arm} learns from conditionals at steps "
        f"(set --arm.{arm}.learner.likelihood elbo, or the setting for other arms alone: --arm.NAME.learner.{name})"
        for name in ELBO_ONLY
        # A default is no wish of the user's, and may be idle.
        if getattr(learner, name) != getattr(LearnerConfig(), name)
    ]


def _elbo(arm: str, spec: ArmSpec, learner: LearnerConfig, decoding: str) -> list[str]:
    """What is wrong with an arm whose likelihoods are ELBOs."""
    problems = []
    if spec.reward == "step" and spec.objective != "grpo":
        problems.append(
            f"learner.likelihood elbo is that of a whole output, and arm {arm} learns from steps "
            f"(set --arm.{arm}.learner.likelihood steps, or elbo for other arms alone: --arm.offline_dpo.learner.likelihood elbo)"
        )
    if learner.negatives == "spg" and spec.objective != "preference":
        problems.append(
            f"learner.negatives spg is about rejected sides, and arm {arm} has none "
            f"(set --arm.{arm}.learner.negatives elbo, or spg for other arms alone: --arm.online_dpo.learner.negatives spg)"
        )
    if learner.text_masks == "block" and decoding == "released":
        problems.append(
            "learner.text_masks block hides text in the blocks of its sampler, and rollout.decoding released has none "
            "(set --rollout.decoding or --learner.text_masks random)"
        )
    return problems
