"""The ``showo`` family: text token by token, images denoised as a whole, both in one vocabulary and in one sequence.

Layouts of Show-o (``training/prompting_utils.py``), which are MMaDA's too; its sampler of images is MaskGIT. The release has no loop that
mixes both. Here an image follows a text that ends in ``<|soi|>``; it sees the prompt, the text and itself. A text does not see what stands
behind it, so whatever is in front of an image is read once and not at every step.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from pararl.types import Prompt, Task
from policies.attention.masks import between
from policies.backbones.showo import Showo
from policies.canvas import Span, Specials, Tail
from policies.families.codes import code_layout, codes_of, read_magvitv2
from policies.families.family import Family
from policies.families.mmada import task_prefix
from policies.heads.causal import CausalHead
from policies.heads.masked import MaskedHead
from policies.heads.tokens import TokenLogits
from policies.image.base import ImageTokenizer
from policies.layout import Layout
from policies.policy import Policy
from policies.settings import TEXT_ONLY, Part, Settings

LORA = r".*\.layers\.\d+\.(self_attn\.(q_proj|k_proj|v_proj|dense)|mlp\.(fc1|fc2))"


class ShowoLayout(Layout):
    """MMaDA's prompts, and behind them ``text <soi> image <eoi>``."""

    def prefix(self, prompt: Prompt, shown: Sequence[int] = (), without: Part | None = None) -> list[int]:
        """MMaDA's."""
        return task_prefix(self, prompt, shown, without)

    def tail(self, task: Task) -> Tail:
        """See ``text_then_image``."""
        return text_then_image(self, task)

    def blocks(self, ids: Tensor) -> Tensor | None:
        """See ``image_blocks``."""
        sp = self.settings.specials
        return image_blocks(ids, sp.soi, sp.eoi, sp.mmu)


def text_then_image(layout: Layout, task: Task) -> Tail:
    """``text <soi> image <eoi>``, of which an answer has the text alone and an image asked for alone no text. The column of the time of a
    continuous image stands in front of its tokens."""
    settings, sp = layout.settings, layout.settings.specials
    words = settings.words(task)
    spans = [Span("text", 0, words)] if words else []
    ids = [sp.pad] * words
    if task not in TEXT_ONLY:
        stop = words + 1 + layout.columns
        spans.append(Span("image", stop - settings.grid[0] * settings.grid[1], stop))
        ids += [sp.soi, *[sp.mask] * layout.columns, sp.eoi]
    return Tail(tuple(ids), tuple(spans))


def image_blocks(ids: Tensor, soi: int, eoi: int, mmu: int) -> Tensor:
    """Blocks int64 [batch, length] of ids, 0 = text: each image from its ``<|soi|>`` to its ``<|eoi|>``. The ``<|mmu|>`` in front of an
    image to be understood belongs to its block, as ``create_attention_mask_for_mmu`` has it."""
    found = between(ids, soi, eoi)
    return torch.where(ids == mmu, F.pad(found[:, 1:], (0, 1)), found)


def ends_of(specials: Specials) -> tuple[int, ...]:
    """The end of a text, and the start of an image."""
    return specials.eos, specials.soi


def policy(model: Showo, tokenizer: PreTrainedTokenizerFast, images: ImageTokenizer, settings: Settings) -> Policy:
    """A Show-o policy of these parts. The likelihood of its text is exact; its images have those of masked diffusion."""
    layout = code_layout(ShowoLayout, tokenizer, images, settings, ends_of(settings.specials))
    tokens = TokenLogits(model, layout.text.vocabulary)
    text, image = CausalHead(tokens, layout.text.ends, settings.specials.pad), MaskedHead(tokens, settings)
    return Policy("showo", model, layout, tokens=tokens, text=text, image=image, lora_targets=LORA)


SHOWO = Family("showo", Showo, LORA, Settings, read_magvitv2, codes_of, policy)
