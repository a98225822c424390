"""What scores outputs: ``load`` a reward by name, ``self_test`` it, and ``score_rollouts`` with it.

May import: the ground floor, scenes.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rewards import names

if TYPE_CHECKING:
    from rewards.base import FunctionReward, Reward, check_scores, score_outputs, score_rollouts, self_test
    from rewards.scenes import SceneReward
    from rewards.standardise import Calibration

LAZY = {
    **dict.fromkeys(("FunctionReward", "Reward", "check_scores", "score_outputs", "score_rollouts", "self_test"), "rewards.base"),
    "SceneReward": "rewards.scenes",
    "Calibration": "rewards.standardise",
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
    ``module:attribute`` for the user's own.

    The attribute may be a function with TRL's signature (sync or async), a ``Reward`` or a subclass of it (made without arguments). Raises
    what ``own`` raises.
    """
    from rewards.base import FunctionReward, Reward
    from rewards.scenes import SceneReward

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


def own(name: str) -> Any:
    """What the name ``module:attribute`` of a reward of the user's own stands for, imported but not made.

    Raises ValueError that says what is missing or wrong; an error inside the user's module passes through.
    """
    from rewards.base import Reward

    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise ValueError(f"unknown reward {name!r}: a function of yours is named 'module:function'")
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        # A module that the user's own module lacks is an error inside it.
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        hint = "install it, or put its folder on PYTHONPATH"
        if module_name.endswith(".py"):
            hint = f"it is named without .py: {module_name.removesuffix('.py')}:{attribute}"
        raise ValueError(f"reward {name!r}: no module {error.name!r}; {hint}") from error
    if not hasattr(module, attribute):
        raise ValueError(f"reward {name!r}: module {module_name!r} has no {attribute!r}")
    found = getattr(module, attribute)
    if not (isinstance(found, Reward) or callable(found)):
        raise ValueError(f"reward {name!r} is a {type(found).__name__}: it must be a function, or a Reward")
    return found
