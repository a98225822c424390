"""From the settings of a run to how its policy samples, and to how its likelihoods are drawn."""

from pararl.config import LearnerConfig, RolloutConfig
from pararl.options import Drawing, Sampling


def sampling_of(rollout: RolloutConfig) -> Sampling:
    """How a run samples, for training and evaluation alike; which guesses are kept is for the caller to say."""
    return Sampling(
        steps=rollout.steps,
        recorded=rollout.recorded,
        temperature=rollout.temperature,
        choice_temperature=rollout.choice_temperature,
        image_sampler=rollout.image_sampler,
        flow_noise=rollout.flow_noise,
        decoding=rollout.decoding,
        image_steps=rollout.image_steps,
        guidance=rollout.guidance,
        text_guidance=rollout.text_guidance,
        input_guidance=rollout.input_guidance,
    )


def drawing_of(learner: LearnerConfig) -> Drawing:
    """How the draws of a run's ELBOs are made."""
    return Drawing(
        image_ratio=None if learner.image_ratio < 0 else learner.image_ratio,
        text_ratio=None if learner.text_ratio < 0 else learner.text_ratio,
        text_masks=learner.text_masks,
        image_rows=learner.image_rows,
    )
