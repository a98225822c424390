"""The toy family: text token by token and behind it an image denoised as a whole, in a layout that no other family has."""

from collections.abc import Sequence

from torch import Tensor
from transformers import PreTrainedTokenizerFast

from pararl.types import Prompt, Task
from policies.attention.masks import between
from policies.canvas import Span, Tail
from policies.families.codes import code_layout, codes_of, read_magvitv2
from policies.families.family import Family
from policies.heads.causal import CausalHead
from policies.heads.masked import MaskedHead
from policies.heads.tokens import TokenLogits
from policies.image.base import ImageTokenizer
from policies.layout import Layout
from policies.policy import Policy
from policies.settings import TEXT_ONLY, Part, Settings
from policies.traits import Traits
from tests.policies.toy_family.backbone import Toy

LORA = r"layers\.\d+\.(q|k|v|out|up|down)"


class ToyLayout(Layout):
    """``<bos> text <soi> image <eoi> <task>`` and behind it ``text <soi> image <eoi> <eos>``: the task is said last."""

    def prefix(self, prompt: Prompt, shown: Sequence[int] = (), without: Part | None = None) -> list[int]:
        """Whatever guidance leaves out is not there."""
        sp, text = self.settings.specials, self.text.encode(prompt.text)
        self.check_length(prompt, text)
        image = [] if without == "image" or not shown else [sp.soi, *shown, sp.eoi]
        return [sp.bos, *([] if without == "text" else text), *image, {"i2t": sp.mmu, "t2i": sp.t2i}.get(prompt.task, sp.interleave)]

    def tail(self, task: Task) -> Tail:
        """A text is padding until it is written."""
        sp, words = self.settings.specials, self.settings.words(task)
        ids, spans = [sp.pad] * words, [Span("text", 0, words)] if words else []
        if task not in TEXT_ONLY:
            spans.append(Span("image", words + 1, words + 1 + self.columns))
            ids += [sp.soi, *[sp.mask] * self.columns, sp.eoi, sp.eos]
        return Tail(tuple(ids), tuple(spans))

    def blocks(self, ids: Tensor) -> Tensor:
        """Each image with its two delimiters."""
        return between(ids, self.settings.specials.soi, self.settings.specials.eoi)


def policy(model: Toy, tokenizer: PreTrainedTokenizerFast, images: ImageTokenizer, settings: Settings) -> Policy:
    """A toy policy of these parts."""
    ends = settings.specials.eos, settings.specials.soi
    layout = code_layout(ToyLayout, tokenizer, images, settings, ends)
    tokens = TokenLogits(model, layout.text.vocabulary)
    text, image = CausalHead(tokens, ends, settings.specials.pad), MaskedHead(tokens, settings)
    return Policy("toy", model, layout, tokens=tokens, text=text, image=image, lora_targets=LORA)


TOY = Family("toy", Toy, LORA, Settings, read_magvitv2, codes_of, policy)
"""The row of ``policies.families.table``."""
TRAITS = Traits(text="causal", image="masked")
"""The row of ``policies.traits``, for the programs around a policy."""
