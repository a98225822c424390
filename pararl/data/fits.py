"""What a policy can read, told by its files alone: pictures of one size, texts of so many tokens, words of a closed vocabulary."""

from pathlib import Path
from typing import Any

from pararl.config import ConfigError
from pararl.policy_files import description, image_shape, read_json
from pararl.types import Prompt
from policies.traits import TRAITS

READ = ("tokenizer.json", "tokenizer_config.json", "image_tokenizer/config.json")
"""What is read of a policy's directory."""


def image_size(name: str, directory: Path) -> tuple[int, int] | None:
    """Height and width of the pictures that the policy ``name`` reads, whose files, where there are any, lie in ``directory``.

    None where they do not tell. The releases' are in ``policies/releases``, so nothing of them need be there. Raises ConfigError for files
    that are broken.
    """
    told = description(name, directory) or {}
    settings, factor = told.get("settings", {}), told.get("factor")
    # As policies.sources looks for it.
    beside = [directory / place for place in ("image_tokenizer", told.get("images", "image_tokenizer"))]
    try:
        if found := next((place for place in beside if (place / "config.json").is_file()), None):
            patch = read_json(directory / "config.json").get("patch_size", 2) if TRAITS[told["family"]].patched else 1
            factor = patch * image_shape(found).factor
        if factor is None or "grid" not in settings:
            return None
        rows, columns = settings["grid"]
        return rows * factor, columns * factor
    except ConfigError:
        raise
    except (KeyError, OSError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {error}"
        raise ConfigError(f"policy.name: {directory} does not tell the size of its pictures ({what}; set --policy.name)") from error


class Texts:
    """The texts that the policy in a directory reads. It has the files of ``READ``; no model is loaded."""

    def __init__(self, directory: Path) -> None:
        """Raises ConfigError for files that do not tell."""
        from tokenizers import Tokenizer

        self.name = directory.name
        try:
            self.tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        except Exception as error:  # tokenizers has no class of its own for what it cannot read
            raise ConfigError(f"policy.name: {directory / 'tokenizer.json'} cannot be read: {error} (set --policy.name)") from error
        self.unknown = read_json(directory / "tokenizer_config.json").get("unk_token")
        policy = read_json(directory / "policy.json")
        self.settings: dict[str, Any] = policy["settings"]
        self.traits = TRAITS[policy["family"]]
        if lacking := [key for key in ("dialogue", "prompt_tokens") if key not in self.settings]:
            raise ConfigError(f"policy.name: {directory / 'policy.json'} has no setting {lacking[0]} (set --policy.name)")

    def check(self, prompt: Prompt) -> None:
        """Raise ValueError for words beyond a closed vocabulary, and for a text that is too long."""
        settings = self.settings
        text = settings["dialogue"].replace("{image}", "") if prompt.task in self.traits.spoken else "{text}"
        text = text.replace("{system}", settings.get("system_new" if prompt.image is None else "system_edit", ""))
        before, _, after = text.partition("{text}")
        parts = (before, prompt.text, after) if self.traits.apart else (text.replace("{text}", prompt.text),)  # as each tokenizes it
        tokens = [token for part in parts for token in self._tokens(part)]
        if self.unknown is not None and self.unknown in tokens:
            words = [word for word in dict.fromkeys(prompt.text.split()) if self.unknown in self._tokens(word)]
            raise ValueError(f"prompt {prompt.id}: the vocabulary of {self.name} has no {', '.join(map(repr, words))}")
        if len(tokens) > settings["prompt_tokens"]:
            raise ValueError(
                f"prompt {prompt.id} has {len(tokens)} tokens, more than the {settings['prompt_tokens']} that {self.name} reads"
            )

    def _tokens(self, text: str) -> list[str]:
        return list(self.tokenizer.encode(text, add_special_tokens=False).tokens)
