"""From the settings of a run to how its policy samples."""

from pararl.config import RolloutConfig
from policies.base import Sampling


def sampling_of(rollout: RolloutConfig) -> Sampling:
    """How a run samples, for training and evaluation alike; which guesses are kept is for the caller to say."""
    return Sampling(
        steps=rollout.steps,
        recorded=rollout.recorded,
        temperature=rollout.temperature,
        choice_temperature=rollout.choice_temperature,
        decoding=rollout.decoding,
        image_steps=rollout.image_steps,
        guidance=rollout.guidance,
        text_guidance=rollout.text_guidance,
        input_guidance=rollout.input_guidance,
    )
