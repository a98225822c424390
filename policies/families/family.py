"""What makes a family: its backbone, its settings, its image tokenizer, and how a policy is composed of them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from pararl.policy_files import REMEDY, checked_settings
from pararl.readers import record_of
from policies.policy import Policy
from policies.settings import Settings
from policies.sources import POLICY_FILE, Parts
from policies.text import read_tokenizer
from policies.weights import read_model


@dataclass(frozen=True, slots=True)
class Family:
    """One kind of policy."""

    name: str
    backbone: type[PreTrainedModel]
    lora_targets: str
    """Regular expression of the linear layers that an adapter wraps."""
    settings: type[Settings]
    read_images: Callable[[Path], Any]
    """The image tokenizer in a directory."""
    shared: Callable[[Any, Any], tuple[str, int, int]]
    """Of an image tokenizer and a backbone's configuration: what both must have equally many of, and how many each has."""
    policy: Callable[..., Policy]
    """``policy(model, tokenizer, images, settings)`` composes one."""

    def load(self, parts: Parts) -> Policy:
        """Read a policy from where its parts lie. Raises ValueError where weights are not exactly those of the model, and where the
        text or the image tokenizer is another one than the backbone's."""
        file = parts.backbone / POLICY_FILE
        settings: Settings = record_of(self.settings.read, checked_settings({"settings": parts.settings}, file), file, REMEDY)
        released, text = parts.text_size is not None, parts.text or parts.backbone
        model = read_model(self.backbone, parts.backbone, released, dtype=parts.dtype, device_map=parts.device_map)
        tokenizer = read_tokenizer(text, parts.added)
        if parts.text_size not in (None, len(tokenizer)):
            raise ValueError(
                f"the text tokenizer in {text} has {len(tokenizer)} ids, that of the release {parts.text_size}: the image codes "
                "and special tokens, whose rows begin behind its words, would be others"
            )
        images = self.read_images(parts.images)
        # A directory of ours holds both; with a release the image tokenizer comes from somewhere else.
        what, has, wants = self.shared(images, model.config)
        if released and has != wants:
            raise ValueError(
                f"the image tokenizer in {parts.images} has {has} {what}, the backbone in {parts.backbone} was trained on {wants}: name "
                "the one that it was trained with (image_tokenizer=)"
            )
        policy = self.policy(model, tokenizer, images, settings)
        policy.layout.images.module.to(policy.device)
        return policy
