"""The arms: seven ways of getting preference data and updating, as data rather than programs."""

from dataclasses import dataclass
from typing import Literal

from pararl.config import Arm


@dataclass(frozen=True, slots=True)
class ArmSpec:
    """What makes an arm; everything else about it is configuration."""

    data: Literal["current", "base", "static"]
    """current: rollouts of the policy as it is now. base: fresh rollouts of the base. static: rollouts of the base, sampled once
    before training."""
    reward: Literal["step", "final"]
    """step: the guesses at the recorded steps and the final output are scored. final: the final output only."""
    objective: Literal["preference", "grpo", "best"]
    """preference: DPO on pairs. grpo: clipped ratios with group-normalised advantages. best: likelihood of the best of a group."""
    paired: bool = False
    """Whether it learns from captions and images of the same scenes, a DPO term for each."""


ARM_SPECS: dict[Arm, ArmSpec] = {
    "pararl": ArmSpec("current", "step", "preference"),
    "pararl_grpo": ArmSpec("current", "step", "grpo"),
    "online_dpo": ArmSpec("current", "final", "preference"),
    "offline_dpo": ArmSpec("static", "final", "preference"),
    "offline_stream": ArmSpec("base", "final", "preference"),
    "best_of_n": ArmSpec("current", "final", "best"),
    "hermesflow": ArmSpec("static", "final", "preference", paired=True),
}
