"""The user's prompts of a run, as its settings have them read: those that are trained on, and those that measure."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pararl.config import Config, checking, measuring
from pararl.data.fits import Texts, image_size
from pararl.data.prompts import read_prompts
from pararl.images import Fit, fitted
from pararl.policy_files import policy_directory
from pararl.types import Prompt

Key = Literal["curriculum.file", "eval.file"]


@dataclass(frozen=True, slots=True)
class Own:
    """A source of the user's prompts, and what they must suit."""

    file: str
    reward: str
    """The reward that their specs must suit."""
    shared: bool
    """Whether another one reads the specs too."""
    size: tuple[int, int] | None
    """Height and width of the pictures that the policy reads; None = it does not say."""
    image_fit: Fit

    @classmethod
    def of(cls, config: Config, key: Key) -> "Own":
        """The source that a setting names. Raises ConfigError for a policy whose files cannot be read."""
        trained = key == "curriculum.file"
        source, reward = (config.curriculum.file, checking(config)) if trained else (config.eval.file, measuring(config))
        size = image_size(config.policy.name, policy_directory(config))
        return cls(source, reward, {config.reward.name, measuring(config)} != {"scenes"}, size, config.curriculum.image_fit)

    def prompts(self, texts: Texts | None = None) -> list[Prompt]:
        """The prompts, their pictures in the policy's size; ``texts``: what their texts are held against.

        Raises one ConfigError with all that is wrong with them.
        """

        def fit(prompt: Prompt) -> Prompt:
            if texts:
                texts.check(prompt)
            if prompt.image is None or self.size is None:
                return prompt
            return replace(prompt, image=fitted(prompt.image, self.size, self.image_fit))

        return read_prompts(self.file, self.reward, fit, self.shared)


def in_both(trained: Sequence[Prompt], measured: Sequence[Prompt]) -> list[Prompt]:
    """The prompts that measure and are trained on as well: of one kind, with the same text and the same picture, whatever their ids."""
    known = {_asks(prompt) for prompt in trained}
    return [prompt for prompt in measured if _asks(prompt) in known]


def _asks(prompt: Prompt) -> tuple[str, str, bytes | None]:
    picture = None if prompt.image is None else hashlib.blake2b(prompt.image.tobytes(), digest_size=16).digest()
    return prompt.kind, " ".join(prompt.text.split()), picture
