"""The ``showo2`` family: text token by token, images by flow matching over the latents of a VAE, both in one sequence.

An image has no ids: ``<|image_pad|>`` holds its columns, the first of which is that of its time, and its latents go beside the ids. The
released sampler is the ODE with a time shift of 3. The SDE with the same marginals (``policies.sampling.flow``) gives the steps of an image
a density. Facts: showlab/Show-o, ``show-o2/models/misc.py`` and ``inference_*.py``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from torch import Tensor
from transformers import PreTrainedTokenizerFast

from pararl.types import Prompt, Task
from policies.backbones.showo2 import Showo2
from policies.backbones.showo2_state import first_columns
from policies.canvas import Specials, Tail
from policies.codec import TextCodec
from policies.families.family import Family
from policies.families.showo import ends_of, text_then_image
from policies.heads.causal import CausalHead
from policies.heads.flow import FlowHead
from policies.heads.tokens import TokenLogits
from policies.image.codec import LatentImages
from policies.image.latents import read_vae
from policies.layout import Layout
from policies.policy import Policy
from policies.settings import Part, Settings

LORA = r".*(showo\.model\.layers|diffusion_head_a)\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"


@dataclass(frozen=True, slots=True)
class Showo2Specials(Specials):
    """Ids of the special tokens, by default those of Qwen2.5 and the one that Show-o2 adds. There are none for tasks."""

    mask: int = 151655
    """``<|image_pad|>``, in every column of an image."""
    bos: int = 151644
    eos: int = 151645
    soi: int = 151652
    eoi: int = 151653
    t2i: int = 151655
    mmu: int = 151655
    pad: int = 151665
    interleave: int = 151655


@dataclass(frozen=True, slots=True)
class Showo2Settings(Settings):
    """What a directory's ``policy.json`` says beside the weights."""

    grid: tuple[int, int] = (27, 27)
    """Patches of latents, rows and columns."""
    dialogue: str = "{text}<|im_end|>\n<|im_start|>assistant\n"
    """How a question, or a request for text and image, stands in front of the answer. An input image takes the place of ``{image}``, or
    else stands in front. As upstream, ``{text}`` is tokenized apart from what is around it."""
    steps: int = 50
    time_shift: float = 3.0
    """How far the times of the sampler are moved towards the noise: ``t / (t + shift (1 - t))``."""
    flow_noise: float = 0.0
    """Noise level of the sampler, where nobody says otherwise; 0 = the ODE."""
    specials: Showo2Specials = field(default_factory=Showo2Specials)

    specials_class: ClassVar[type[Specials]] = Showo2Specials

    def __post_init__(self) -> None:
        front, found, behind = self.dialogue.partition("{text}")
        if not found or "{image}" in behind or front.count("{image}") > 1 or "{text}" in behind:
            raise ValueError(f"dialogue must have one {{text}}, and at most one {{image}} in front of it, got {self.dialogue!r}")


class Showo2Layout(Layout):
    """``<bos> <soi> image <eoi> text`` and behind it ``text <soi> image <eoi>``, an image with the column of its time in front."""

    def prefix(self, prompt: Prompt, shown: Sequence[int] = (), without: Part | None = None) -> list[int]:
        """The text of a request for an image alone stands as it is, that of others in the dialogue."""
        sp = self.settings.specials
        front, _, behind = ("" if prompt.task in ("t2i", "edit") else self.settings.dialogue).rpartition("{image}")
        before, _, after = (behind or "{text}").partition("{text}")
        head = self.text.encode_template(front, "")
        text = [*self.text.encode_template(before, ""), *self.text.encode(prompt.text), *self.text.encode_template(after, "")]
        self.check_length(prompt, [*head, *text])
        if without == "text":
            head, text = [], []
        seen = [] if without == "image" or not shown else [sp.soi, *shown, sp.eoi]
        return [sp.bos, *head, *seen, *text]

    def tail(self, task: Task) -> Tail:
        """Show-o's."""
        return text_then_image(self, task)

    def blocks(self, ids: Tensor) -> Tensor | None:
        """Each run of ``<|image_pad|>``."""
        inside = (ids == self.settings.specials.mask).long()
        return first_columns(inside).cumsum(1) * inside

    def undescribed(self, prompt: Prompt, shown: Sequence[int]) -> list[int]:
        """The dialogue stays, with no words in it: so the embedded base was trained."""
        return self.prefix(replace(prompt, text=""), shown)


def channels_of(images: Any, config: Any) -> tuple[str, int, int]:
    """What a VAE and a backbone must have equally many of; how many it has, and how many the backbone knows."""
    return "channels", images.channels, config.image_latent_dim


def policy(model: Showo2, tokenizer: PreTrainedTokenizerFast, images: Any, settings: Showo2Settings) -> Policy:
    """A Show-o2 policy of these parts. The likelihood of its text is exact; that of its images is the flow-matching loss, or the density of
    their steps."""
    text = TextCodec(tokenizer, settings.specials, 0, ends_of(settings.specials))
    layout = Showo2Layout(text, LatentImages(images, settings.grid, model.config.patch_size), settings)
    tokens = TokenLogits(model, text.vocabulary)
    words = CausalHead(tokens, text.ends, settings.specials.pad)
    flow = FlowHead(model, settings.grid, settings.time_shift)
    return Policy("showo2", model, layout, tokens=tokens, text=words, image=flow, lora_targets=LORA, flow_noise=settings.flow_noise)


SHOWO2 = Family("showo2", Showo2, LORA, Showo2Settings, read_vae, channels_of, policy)
