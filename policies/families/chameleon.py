"""The ``chameleon`` family: text and image tokens of one vocabulary, both written from left to right.

A sequence is ``<s> image text <eot>`` and behind it texts and images. A text ends in ``</s>`` or in the begin of an image. An image is its
begin, exactly as many codes as the grid has, and its end. Guidance of images is the released three-way one, see ``ChameleonLayout.prefix``.
Facts: Chameleon (arXiv 2405.09818), Anole (arXiv 2407.06135), and the configuration of transformers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from pararl.types import Prompt, Task
from policies.backbones.chameleon import Chameleon
from policies.canvas import Specials, Tail
from policies.codec import TextCodec
from policies.families.codes import read_magvitv2
from policies.families.family import Family
from policies.families.showo import ends_of, text_then_image
from policies.heads.causal import CausalHead
from policies.heads.tokens import TokenLogits
from policies.image.base import ImageTokenizer
from policies.image.chameleon import code_ids
from policies.image.chameleon_files import described, read_vq
from policies.image.codec import CodeImages
from policies.image.magvitv2 import MAGVITv2Config
from policies.layout import Layout
from policies.policy import Policy
from policies.settings import Part, Settings

LORA = r".*\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
SPELLED = {
    "mask": "<image>",
    "bos": "<s>",
    "eos": "</s>",
    "pad": "<pad>",
    "soi": "<racm3:break>",
    "eoi": "<eoss>",
    "eot": "<reserved08706>",
}
"""The special tokens as the vocabulary names them."""


@dataclass(frozen=True, slots=True)
class ChameleonSpecials(Specials):
    """Ids of the special tokens, by default those of the release. There are none for tasks, and none that hides a token."""

    mask: int = 8711
    """``<image>``, which holds the columns of an image that is still to come."""
    bos: int = 0
    eos: int = 2
    soi: int = 8197
    eoi: int = 8196
    t2i: int = 8711
    mmu: int = 8711
    pad: int = 1
    interleave: int = 8711
    eot: int = 8710
    """Behind a prompt."""


@dataclass(frozen=True, slots=True)
class ChameleonSettings(Settings):
    """What a directory's ``policy.json`` says beside the weights."""

    prompt_tokens: int = 1024
    dialogue: str = "{text}"
    """Not looked at: a prompt is its image and its text."""
    steps: int = 8
    specials: ChameleonSpecials = field(default_factory=ChameleonSpecials)

    specials_class: ClassVar[type[Specials]] = ChameleonSpecials


class ChameleonLayout(Layout):
    """``<s> <boi> image <eoi> text <eot>`` and behind it ``text <boi> image <eoi>``, of each what a task has."""

    settings: ChameleonSettings

    def __init__(self, text: TextCodec, images: CodeImages, settings: ChameleonSettings) -> None:
        super().__init__(text, images, settings)

    def prefix(self, prompt: Prompt, shown: Sequence[int] = (), without: Part | None = None) -> list[int]:
        """As released, a prompt without its text is its image alone, and one without its image has no text either. With the logits f of the
        prompt, i of its image and u of nothing the sampler then draws from ``f + guidance (f - i) + input_guidance (f - u)``: the released
        ``u + 1.2 (i - u) + 3 (f - i)`` is guidance 1.8 and input guidance 0.2. Where no image is shown, i is u, and it is guidance 2.
        """
        sp, text = self.settings.specials, self.text.encode(prompt.text)
        self.check_length(prompt, text)
        if without == "image" and shown:
            return [sp.bos]
        image = [sp.soi, *shown, sp.eoi] if shown else []
        return [sp.bos, *image, *([] if without == "text" else [*text, sp.eot])]

    def tail(self, task: Task) -> Tail:
        """Show-o's."""
        return text_then_image(self, task)

    def blocks(self, ids: Tensor) -> Tensor:
        """No image sees what stands behind a token of its own: all is causal."""
        return torch.zeros_like(ids)


def read_images(directory: Path) -> ImageTokenizer:
    """The image tokenizer in a directory: a MAGVIT-v2, or Chameleon's own. Raises ValueError where its weights are not exactly those of the
    model."""
    magvit = described(directory).get("model_type") == MAGVITv2Config.model_type
    return read_magvitv2(directory) if magvit else read_vq(directory)


def codes_of(images: ImageTokenizer, config: Any) -> tuple[str, int, int]:
    """What an image tokenizer and a vocabulary must have equally many of; how many it has, and how many the vocabulary names."""
    return "codes", images.codebook_size, len(code_ids(config.vocabulary_map))


def check_names(named: Mapping[str, int], specials: ChameleonSpecials) -> None:
    """Raise ValueError where the vocabulary gives a special token another id than the settings."""
    wrong = {token: named[token] for name, token in SPELLED.items() if named.get(token, getattr(specials, name)) != getattr(specials, name)}
    if wrong:
        raise ValueError(f"the vocabulary of this Chameleon is not the released one: it has {wrong}, the settings have {specials}")


def policy(model: Chameleon, tokenizer: PreTrainedTokenizerFast, images: ImageTokenizer, settings: ChameleonSettings) -> Policy:
    """A Chameleon policy of these parts; the likelihoods of its texts and of its images are exact. Raises ValueError for a vocabulary whose
    image codes do not stand in a row."""
    ids = code_ids(model.config.vocabulary_map)
    first, specials = int(ids.min()), settings.specials
    if not torch.equal(ids.sort().values, torch.arange(first, first + len(ids))):
        raise ValueError("the image codes of this vocabulary do not stand in a row")
    check_names(model.config.vocabulary_map, specials)
    # The release adds hundreds of reserved tokens, which its tokenizer does not call special.
    never = [i for token, i in tokenizer.get_added_vocab().items() if token.strip()]
    text = TextCodec(tokenizer, specials, len(ids), ends_of(specials), first if first < len(tokenizer) else None, never)
    layout = ChameleonLayout(text, CodeImages(images, settings.grid, first, ids - first), settings)
    tokens = TokenLogits(model, text.vocabulary)
    writer, painter = CausalHead(tokens, text.ends, specials.pad), CausalHead(tokens, (), specials.pad)
    return Policy("chameleon", model, layout, tokens=tokens, text=writer, image=painter, lora_targets=LORA)


CHAMELEON = Family("chameleon", Chameleon, LORA, ChameleonSettings, read_images, codes_of, policy)
