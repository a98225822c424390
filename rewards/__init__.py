"""What scores outputs: ``load`` a reward by name, ``self_test`` it, and ``score_rollouts`` with it.

May import: the ground floor, scenes.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rewards import names

if TYPE_CHECKING:
    from rewards.base import Reward, check_scores, score_outputs, score_rollouts, self_test
    from rewards.function import FunctionReward
    from rewards.scenes import SceneReward
    from rewards.standardise import Calibration
    from rewards.users import own

LAZY = {
    **dict.fromkeys(("Reward", "check_scores", "score_outputs", "score_rollouts", "self_test"), "rewards.base"),
    "FunctionReward": "rewards.function",
    "SceneReward": "rewards.scenes",
    "Calibration": "rewards.standardise",
    "own": "rewards.users",
}
"""Where the names live that load the scene world, which reading a reward's name does not need."""

__all__ = [
    "Calibration",
    "FunctionReward",
    "Reward",
    "SceneReward",
    "check_scores",
    "load",
    "own",
    "score_outputs",
    "score_rollouts",
    "self_test",
]


def __getattr__(name: str) -> Any:
    if name in LAZY:
        return getattr(import_module(LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load(name: str) -> "Reward":
    """The reward of that name: ``scenes``, a CLIP model's (``scenes-clip``, ``clip:DIRECTORY``, ``clip:OWNER/NAME@REVISION``), or
    ``module:attribute`` or ``FILE.py:attribute`` for the user's own.

    The attribute may be a function with TRL's signature (sync or async), a ``Reward`` or a subclass of it (made without arguments). Raises
    what ``own`` raises.
    """
    from rewards.base import Reward
    from rewards.function import FunctionReward
    from rewards.scenes import SceneReward
    from rewards.users import own

    if name == SceneReward.name:
        return SceneReward()
    if wrong := names.problem(name):
        raise ValueError(wrong)
    if names.is_clip(name):
        from rewards.clip import ClipReward  # loads torch

        return ClipReward.named(name)
    found = own(name)
    if isinstance(found, type) and issubclass(found, Reward):
        found = found()
    return found if isinstance(found, Reward) else FunctionReward(found, name)
