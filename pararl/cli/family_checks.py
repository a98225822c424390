"""What must hold for the settings of a run because of how its policy samples and what its likelihoods are."""

from collections.abc import Iterator

from pararl.config import Config, LearnerConfig, RolloutConfig, for_arm
from pararl.data.quotas import task_shares
from policies.traits import ANSWERS, Traits


def family_problems(config: Config, family: str, traits: Traits) -> list[str]:
    """What the settings ask of a policy of ``family`` that it does not do: settings without an effect are mistakes too."""
    problems = []
    if config.rollout.text_guidance and not traits.text_guided:
        problems.append(f"rollout.text_guidance must be 0: the text of a {family} policy is not guided (set --rollout.text_guidance 0)")
    # A default is no wish of the user's: only another value, which would have no effect, is told.
    for name, why in idle_sampling(traits):
        if getattr(config.rollout, name) != (usual := getattr(RolloutConfig(), name)):
            problems.append(f"rollout.{name} is about {why}, and a {family} policy has none (set --rollout.{name} {usual})")
    for arm in config.run.arms:
        learner = for_arm(config, arm).learner
        for name in idle_masks(traits):
            if getattr(learner, name) != (usual := getattr(LearnerConfig(), name)):
                problems.append(
                    f"learner.{name} is about masks, and a {family} policy hides no token there (arm {arm}; set --arm.{arm}.learner.{name} "
                    f"{usual})"
                )
    draws = any(kind not in ANSWERS for kind in task_shares(config.curriculum.tasks))
    # An arm that learns by ELBO needs no density of steps.
    by_steps = [arm for arm in config.run.arms if for_arm(config, arm).learner.likelihood == "steps"]
    if traits.image == "flow" and draws and not config.rollout.flow_noise and by_steps:
        problems.append(
            f"rollout.flow_noise 0 samples images by an ODE, whose steps have no density for {', '.join(by_steps)} to learn from (set "
            "--rollout.flow_noise 0.7, or --learner.likelihood elbo)"
        )
    return problems


def idle_sampling(traits: Traits) -> Iterator[tuple[str, str]]:
    """Settings of ``rollout`` that have no effect on such policies, with what they are about."""
    if traits.image != "masked":
        yield from dict.fromkeys(("choice_temperature", "image_sampler"), "the order of masked tokens").items()
    if not traits.joint:
        yield from dict.fromkeys(("image_steps", "decoding"), "text and image that are denoised together").items()
    if traits.image != "flow":
        yield "flow_noise", "images of continuous latents"


def idle_masks(traits: Traits) -> tuple[str, ...]:
    """Settings of ``learner`` about hidden tokens that have no effect on such policies."""
    text = () if traits.text == "masked" else ("text_ratio", "text_masks")
    image = () if traits.image == "masked" else ("image_ratio", "image_rows")
    return (*text, *image, *(() if traits.masks else ("negatives",)))
