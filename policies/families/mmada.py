"""The ``mmada`` family: a masked-diffusion LLaDA backbone that denoises text and image tokens together, with bidirectional attention."""

from collections.abc import Sequence

from torch import Tensor
from transformers import PreTrainedTokenizerFast

from pararl.types import Prompt, Task
from policies.backbones.llada import MMadaModelLM
from policies.canvas import Tail, tail
from policies.families.codes import code_layout, codes_of, read_magvitv2
from policies.families.family import Family
from policies.heads.masked import MaskedHead
from policies.heads.tokens import TokenLogits
from policies.image.base import ImageTokenizer
from policies.layout import Layout
from policies.policy import Policy
from policies.settings import TEXT_ONLY, Part, Settings

LORA = r".*\.blocks\.\d+\.(q_proj|k_proj|v_proj|attn_out|ff_proj|up_proj|ff_out)"
"""Layers that an adapter wraps. The head is called ff_out as well: only the ff_out inside a block may be wrapped."""


class MMadaLayout(Layout):
    """``<task> <soi> image <eoi> <bos> text <eos>`` and behind it ``<soi> image <eoi> <bos> text``, of each what a task has."""

    def prefix(self, prompt: Prompt, shown: Sequence[int] = (), without: Part | None = None) -> list[int]:
        """See ``task_prefix``."""
        return task_prefix(self, prompt, shown, without)

    def tail(self, task: Task) -> Tail:
        """See ``policies.canvas.tail``."""
        return tail(0 if task in TEXT_ONLY else self.columns, self.settings.words(task), self.settings.specials)

    def blocks(self, ids: Tensor) -> Tensor | None:
        """None: every token sees every other."""
        return None


def task_prefix(layout: Layout, prompt: Prompt, shown: Sequence[int], without: Part | None) -> list[int]:
    """Ids in front of the generated part: ``<task> <soi> shown <eoi> <bos> text <eos>``, without an image ``<task> <bos> text <eos>``.

    Tasks that produce text alone end in the open dialogue instead of ``<eos>``, and t2t has no task token (MMaDA's ``mmu`` and ``lm``).

    Some releases spell out a missing image as blanks. There, leaving out the text leaves out the image too, and ``<eos>`` fills the place
    of the text: MMaDA-Parallel-M's code has this as its unconditional prompt.
    """
    settings, s = layout.settings, layout.settings.specials
    answers, blank = prompt.task in TEXT_ONLY, settings.blank_image if prompt.task == "interleaved" else None
    text = layout.text.encode_template(settings.dialogue, prompt.text) if answers else layout.text.encode(prompt.text)
    layout.check_length(prompt, text)
    if without == "text":
        text = [] if blank is None else [s.eos] * len(text)
    if blank is not None and (without or prompt.image is None):
        shown = [blank] * layout.columns
    elif without == "image":
        shown = ()
    task = {"t2t": [], "i2t": [s.mmu], "t2i": [s.t2i], "edit": [s.t2i], "interleaved": [s.interleave]}[prompt.task]
    if prompt.task == "interleaved" and prompt.image is None and settings.text_only_task is not None:
        task = [settings.text_only_task]
    return [*task, *([s.soi, *shown, s.eoi] if shown else []), s.bos, *text, *([] if answers else [s.eos])]


def compose(
    name: str,
    kind: type[Layout],
    model: MMadaModelLM,
    tokenizer: PreTrainedTokenizerFast,
    images: ImageTokenizer,
    settings: Settings,
) -> Policy:
    """A policy whose one masked head denoises text and images at the same steps."""
    layout = code_layout(kind, tokenizer, images, settings, (settings.specials.eos,))
    tokens = TokenLogits(model, layout.text.vocabulary)
    head = MaskedHead(tokens, settings)
    return Policy(name, model, layout, tokens=tokens, text=head, image=head, lora_targets=LORA)


def policy(model: MMadaModelLM, tokenizer: PreTrainedTokenizerFast, images: ImageTokenizer, settings: Settings) -> Policy:
    """An MMaDA policy of these parts."""
    return compose("mmada", MMadaLayout, model, tokenizer, images, settings)


MMADA = Family("mmada", MMadaModelLM, LORA, Settings, read_magvitv2, codes_of, policy)
