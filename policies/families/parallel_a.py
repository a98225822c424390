"""MMaDA-Parallel-A: the layout of its prompts and outputs, on the backbone and the head of the ``mmada`` family.

Its base is Lumina-DiMOO. A prompt is a system message and a user message. An image has a line break behind each row of its tokens. The
answer stands between two tokens of its own. Guidance by text and by the input image are two branches (``Sampling.guidance`` and
``Sampling.input_guidance``). Facts: tyfeld/MMaDA-Parallel, ``MMaDA-Parallel-A/inference.py`` and ``train/train.py``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor
from transformers import PreTrainedTokenizerFast

from pararl.types import Prompt, Task
from policies.backbones.llada import LLaDAForMultiModalGeneration
from policies.canvas import Span, Specials, Tail
from policies.codec import TextCodec
from policies.families.codes import codes_of
from policies.families.family import Family
from policies.families.mmada import LORA, compose
from policies.image.amused import AmusedVQ
from policies.image.base import ImageTokenizer
from policies.image.codec import ImageCodec
from policies.layout import Layout
from policies.policy import Policy
from policies.settings import Part, Settings


@dataclass(frozen=True, slots=True)
class ParallelASpecials(Specials):
    """Ids of the special tokens, by default those of the release. Those of MMaDA's tasks are in its tokenizer too, and unused."""

    soi: int = 126349
    eoi: int = 126350
    pad: int = 126339
    newline: int = 126084
    """Behind every row of an image."""
    answer_start: int = 126354
    answer_end: int = 126355


@dataclass(frozen=True, slots=True)
class ParallelASettings(Settings):
    """What a directory's ``policy.json`` says beside the weights."""

    prompt_tokens: int = 1024
    dialogue: str = "<system>{system}</system><user>{text}</user>"
    """A prompt, special tokens spelled out."""
    nobody: str = "<uncondition>"
    """What stands for a text that is left out."""
    system_new: str = "Generate an image according to the text prompt."
    system_edit: str = "Generate an image applying the following editing instruction based on the original image."
    tasks: tuple[Task, ...] = ("t2i", "edit", "interleaved")
    specials: ParallelASpecials = field(default_factory=ParallelASpecials)

    specials_class: ClassVar[type[Specials]] = ParallelASpecials


class ParallelALayout(Layout):
    """``<system>...</system><user>text image</user>`` and behind it ``<answer> image text </answer>``."""

    settings: ParallelASettings

    def __init__(self, text: TextCodec, images: ImageCodec, settings: ParallelASettings) -> None:
        super().__init__(text, images, settings)

    def prefix(self, prompt: Prompt, shown: Sequence[int] = (), without: Part | None = None) -> list[int]:
        """The image stands before the last token of the prompt."""
        s = self.settings
        template = s.dialogue.replace("{system}", s.system_new if prompt.image is None else s.system_edit)
        text = self.text.encode_template(template, prompt.text)
        self.check_length(prompt, text)
        if without == "text":
            text = self.text.encode_template(template.replace("{text}", s.nobody), "")
        image = [] if not shown or without == "image" else self._rows(shown)
        return [*text[:-1], *image, *text[-1:]]

    def tail(self, task: Task) -> Tail:
        """A task that makes an image alone has no text."""
        s, sp = self.settings, self.settings.specials
        rows, row = s.grid
        words = s.text_tokens if task == "interleaved" else 0
        image = self._rows([sp.mask] * (rows * row))
        spans = [Span("image", 2, 2 + rows * (row + 1), row)]
        if words:
            spans.append(Span("text", 1 + len(image), 1 + len(image) + words))
        return Tail((sp.answer_start, *image, *[sp.mask] * words, sp.answer_end), tuple(spans))

    def blocks(self, ids: Tensor) -> Tensor | None:
        """None: every token sees every other."""
        return None

    def _rows(self, tokens: Sequence[int]) -> list[int]:
        """``<boi>``, the rows of an image, each with its line break, ``<eoi>``."""
        sp, row = self.settings.specials, self.settings.grid[1]
        parts = [[*tokens[i : i + row], sp.newline] for i in range(0, len(tokens), row)]
        return [sp.soi, *(i for part in parts for i in part), sp.eoi]


def policy(model: LLaDAForMultiModalGeneration, tokenizer: PreTrainedTokenizerFast, images: ImageTokenizer, settings: Settings) -> Policy:
    """A ``-A`` policy of these parts."""
    return compose("mmada_parallel_a", ParallelALayout, model, tokenizer, images, settings)


MMADA_PARALLEL_A = Family(
    "mmada_parallel_a", LLaDAForMultiModalGeneration, LORA, ParallelASettings, AmusedVQ.from_pretrained, codes_of, policy
)
