"""From the settings of a run to how its policy samples, and to how its likelihoods are drawn."""

from dataclasses import fields, replace
from typing import Any

from pararl.config import LearnerConfig, RolloutConfig
from pararl.options import Drawing, DrawingOptions, Sampling, SamplingOptions


def sampling_of(rollout: RolloutConfig) -> Sampling:
    """How a run samples, for training and evaluation alike; which guesses are kept is for the caller to say."""
    return Sampling(**_shared(SamplingOptions, rollout))


def drawing_of(learner: LearnerConfig) -> Drawing:
    """How the draws of a run's ELBOs are made: a ratio of -1 is the policy's own."""
    drawing = Drawing(**_shared(DrawingOptions, learner))
    own: dict[str, Any] = {name: None for name in ("image_ratio", "text_ratio") if getattr(drawing, name) < 0}
    return replace(drawing, **own)


def _shared(kind: type, config: RolloutConfig | LearnerConfig) -> dict[str, Any]:
    """The options of ``kind`` that ``config``, which extends it, holds."""
    return {field.name: getattr(config, field.name) for field in fields(kind)}
