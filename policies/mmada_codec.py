"""What the ``mmada`` family reads and writes as tokens: texts, pictures, and the layout of a prompt with its blank output."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from pararl.types import TASKS, Prompt, Segment, Task
from policies.image.base import ImageTokenizer
from policies.image.magvitv2 import MAGVITv2, MAGVITv2Config
from policies.layout import Canvas, Specials, Tail, Vocabulary, canvas, tail
from policies.weights import load_exactly

TEXT_ONLY: tuple[Task, ...] = ("t2t", "i2t")
"""Tasks whose output is text alone."""
DECODED_PIXELS = 2**18
"""Pixels that are decoded at once: one image of 512 x 512, whose widest features of 128 channels take 134 MB, or 256 of 32 x 32."""
MAGVITV2_FILES = ("model.safetensors", "pytorch_model.safetensors", "pytorch_model.bin")
"""Weights of an image tokenizer, as saved here and as released (``showlab/magvitv2``)."""
Part = Literal["text", "image"]
"""What guidance may leave out of a prompt."""
IMAGE_INPUT: dict[Task, bool | None] = {"t2t": False, "i2t": True, "t2i": False, "edit": True, "interleaved": None}
"""Whether a task reads an image; None = with or without."""


@dataclass(frozen=True, slots=True)
class MMadaSettings:
    """What a directory's ``policy.json`` says beside the weights."""

    grid: tuple[int, int] = (32, 32)
    """Image tokens, rows and columns."""
    prompt_tokens: int = 512
    """Longest prompt text in tokens."""
    text_tokens: int = 256
    """Generated text window of interleaved outputs, in tokens."""
    text_block: int = 64
    """Block of the text sampler there, in tokens."""
    answer_tokens: int = 512
    """Generated text window of tasks that produce text alone, in tokens."""
    answer_block: int = 128
    """Block of the text sampler there, in tokens."""
    dialogue: str = (
        "<|start_header_id|>user<|end_header_id|>\n{text}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n"  # as released
    )
    """How a question stands in front of its answer, special tokens spelled out; ``{text}`` is the prompt's text."""
    tasks: tuple[Task, ...] = TASKS
    """Tasks that this checkpoint was trained for."""
    image_ratio: tuple[float, float] = (0.6, 1.0)
    """Mask ratios at which image likelihoods are drawn (MaskGRPO: high ratios carry the signal)."""
    text_ratio: tuple[float, float] = (0.0, 1.0)
    """Mask ratios at which text likelihoods are drawn."""
    steps: int = 128
    """Denoising steps of a sample, where nobody says otherwise."""
    choice_temperature: float = 1.0
    """Likewise the Gumbel temperature of the image sampler's choices."""
    blank_image: int | None = None
    """Token that stands in every place of an input image that is not there; None = a prompt without an image has no such place."""
    text_only_task: int | None = None
    """Task token of an image and a text asked for in words alone; None = that of an edit."""
    specials: Specials = field(default_factory=Specials)

    specials_class: ClassVar[type[Specials]] = Specials

    @classmethod
    def read(cls, raw: dict[str, Any]) -> Self:
        """The settings of a ``policy.json``."""
        values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in raw.items()}
        return cls(**{**values, "specials": cls.specials_class(**raw["specials"])})


class MMadaCodec:
    """Tokenizer, image tokenizer and layout of the family, without the backbone."""

    settings_class: type[MMadaSettings] = MMadaSettings

    def __init__(self, tokenizer: PreTrainedTokenizerFast, images: ImageTokenizer, settings: MMadaSettings) -> None:
        self.tokenizer = tokenizer
        self.images = images.eval().requires_grad_(False)
        self.settings = settings
        specials = settings.specials
        others = {i for i in tokenizer.all_special_ids if i is not None} | set(asdict(specials).values())
        self.vocabulary = Vocabulary(len(tokenizer), self.codes, specials, tuple(sorted(others - set(self.ends))))
        self.spelled = {token: i for token, i in tokenizer.get_added_vocab().items() if i != tokenizer.unk_token_id and token.strip()}
        """Special and added tokens with their ids, which a template spells out; runs of blanks, which Phi's adds, are words like others."""
        self.reserved = {*self.spelled.values(), *self.vocabulary.forbidden, *self.ends} - {tokenizer.unk_token_id}
        """Ids that the text of a prompt never yields."""

    @property
    def codes(self) -> int:
        """Image codes of the vocabulary."""
        return self.images.codebook_size

    @property
    def ends(self) -> tuple[int, ...]:
        """Tokens with which a generated text ends."""
        return (self.settings.specials.eos,)

    def written(self, ids: Sequence[int]) -> list[int]:
        """Those of generated text ids that stand before the first end token."""
        return list(takewhile(lambda i: i not in self.ends, ids))

    @staticmethod
    def read_images(directory: Path) -> ImageTokenizer:
        """The image tokenizer in a directory. Raises ValueError where its weights are not exactly those of the model."""
        model = MAGVITv2(MAGVITv2Config.from_pretrained(directory))
        load_exactly(model, directory, MAGVITV2_FILES)
        return model

    @staticmethod
    def image_kinds(images: Any, config: Any) -> tuple[str, int, int]:
        """What an image tokenizer and a backbone must have equally many of; how many it has, and how many the backbone knows."""
        return "codes", images.codebook_size, config.codebook_size

    # ---- text and pixels

    def encode_text(self, text: str) -> list[int]:
        """Token ids of a text. A special token that it spells is text like any other: a prompt cannot end itself or mask anything.

        Raises ValueError that names the words which a closed vocabulary does not have, and for a text that yields a special token all
        the same.
        """
        encode = partial(self.tokenizer.encode, add_special_tokens=False, split_special_tokens=True)
        ids: list[int] = encode(text)
        unknown = self.tokenizer.unk_token_id
        if unknown is not None and unknown in ids:
            words = dict.fromkeys(w for w in text.split() if unknown in encode(w))
            raise ValueError(f"this policy's vocabulary has no {', '.join(map(repr, words))} (in {text!r}): use other words")
        if not self.reserved.isdisjoint(ids):
            raise ValueError(f"{text!r} spells a special token of this policy's tokenizer; take it out")
        return ids

    def encode_template(self, template: str, text: str) -> list[int]:
        """Token ids of a template, which spells out its special tokens, with ``text`` in the place of ``{text}``."""
        every = "|".join(map(re.escape, sorted(self.spelled, key=len, reverse=True)))
        pieces = re.split(f"({every})", template) if every else [template]
        return [
            i
            for piece in pieces
            if piece
            for i in ([self.spelled[piece]] if piece in self.spelled else self.encode_text(piece.replace("{text}", text)))
        ]

    def decode_text(self, ids: Sequence[int]) -> str:
        """Text of generated ids, up to the first end token."""
        return str(self.tokenizer.decode(self.written(ids), skip_special_tokens=True))

    @torch.no_grad()
    def encode_images(self, pixels: np.ndarray) -> Tensor:
        """Vocabulary ids int64 [batch, tokens] of uint8 pixels [batch, height, width, 3]."""
        x = torch.from_numpy(np.ascontiguousarray(pixels)).to(next(self.images.parameters()).device).movedim(-1, 1).float() / 127.5 - 1
        return self.images.get_code(x) + self.vocabulary.text_size

    @torch.no_grad()
    def decode_images(self, ids: Tensor) -> np.ndarray:
        """Pixels uint8 [batch, height, width, 3] of vocabulary ids [batch, tokens], so many images at once as have DECODED_PIXELS."""
        micro = max(1, DECODED_PIXELS // (ids.shape[1] * self.images.factor**2))
        parts = [self.images.decode_code(part - self.vocabulary.text_size, self.settings.grid) for part in ids.split(micro)]
        return ((torch.cat(parts).clamp(-1, 1) + 1) * 127.5).round().byte().movedim(1, -1).cpu().numpy()

    # ---- layout

    def prefix(self, prompt: Prompt, shown: Sequence[int] = (), without: Part | None = None) -> list[int]:
        """Ids in front of the generated part: ``<task> <soi> shown <eoi> <bos> text <eos>``, without an image ``<task> <bos> text <eos>``.

        ``shown``: vocabulary ids of the input image. Tasks that produce text alone end in the open dialogue instead of ``<eos>``, and
        t2t has no task token (MMaDA's ``mmu`` and ``lm``). ``without``: what guidance leaves out. Raises ValueError for a text that is
        too long.

        Where an image that is not there is spelled out blank, leaving out the text leaves out the image too, and ``<eos>`` fills the
        place of the text: what MMaDA-Parallel-M's code has as its unconditional prompt.
        """
        s = self.settings.specials
        answers, blank = prompt.task in TEXT_ONLY, self.settings.blank_image if prompt.task == "interleaved" else None
        text = self.encode_template(self.settings.dialogue, prompt.text) if answers else self.encode_text(prompt.text)
        self.check_length(prompt, text)
        if without == "text":
            text = [] if blank is None else [s.eos] * len(text)
        if blank is not None and (without or prompt.image is None):
            shown = [blank] * (self.settings.grid[0] * self.settings.grid[1])
        elif without == "image":
            shown = ()
        task = {"t2t": [], "i2t": [s.mmu], "t2i": [s.t2i], "edit": [s.t2i], "interleaved": [s.interleave]}[prompt.task]
        if prompt.task == "interleaved" and prompt.image is None and self.settings.text_only_task is not None:
            task = [self.settings.text_only_task]
        return [*task, *([s.soi, *shown, s.eoi] if shown else []), s.bos, *text, *([] if answers else [s.eos])]

    def check_length(self, prompt: Prompt, text: Sequence[int]) -> None:
        """Raise ValueError where the tokens of a prompt's text are more than the policy reads."""
        limit = self.settings.prompt_tokens
        if len(text) > limit:
            raise ValueError(f"prompt {prompt.id} has {len(text)} tokens, more than the {limit} this policy reads; shorten it")

    def tail(self, task: Task) -> Tail:
        """The generated part of a task."""
        s = self.settings
        image_tokens = 0 if task in TEXT_ONLY else s.grid[0] * s.grid[1]
        text_tokens = s.answer_tokens if task in TEXT_ONLY else s.text_tokens if task == "interleaved" else 0
        return tail(image_tokens, text_tokens, s.specials)

    def canvases(self, prompts: Sequence[Prompt], parts: Sequence[Part | None], shown: Sequence[Sequence[int]]) -> list[Canvas]:
        """The blank canvas of prompts of one task, once without each of ``parts`` (None: whole), all of one width.

        ``shown``: what ``self.shown(prompts)`` gives.
        """
        rows = [[self.prefix(p, ids, part) for p, ids in zip(prompts, shown, strict=True)] for part in parts]
        width = max(len(row) for prefixes in rows for row in prefixes)
        behind = self.tail(prompts[0].task)
        return [canvas(prefixes, behind, self.settings.specials.pad, width) for prefixes in rows]

    def canvas(self, prompts: Sequence[Prompt], shown: Sequence[Sequence[int]] | None = None) -> Canvas:
        """The blank canvas of prompts of one task; ``shown`` = what ``self.shown(prompts)`` gave, where it is known already."""
        return self.canvases(prompts, [None], self.shown(prompts) if shown is None else shown)[0]

    def shown(self, prompts: Sequence[Prompt], together: bool = False) -> list[list[int]]:
        """Vocabulary ids of each prompt's input image, empty where it has none; equal images are encoded once.

        One by one: in a batch the encoder rounds differently, and a bit near 0 would depend on a prompt's batch mates. ``together``: all
        in one batch, which is several times faster, for training on examples that come once.
        Raises ValueError for a task that this checkpoint does not do and for an image that is missing, unasked or not of its size.
        """
        for prompt in prompts:
            self._check_input(prompt)
        images = {p.image.tobytes(): p.image for p in prompts if p.image is not None}
        pixels = [np.stack(list(images.values()))] if together and images else [image[None] for image in images.values()]
        rows = [row for part in pixels for row in self.encode_images(part).tolist()]
        found = dict(zip(images, rows, strict=True))
        return [[] if p.image is None else found[p.image.tobytes()] for p in prompts]

    def _check_input(self, prompt: Prompt) -> None:
        if prompt.task not in self.settings.tasks:
            raise ValueError(f"prompt {prompt.id}: this policy does {', '.join(self.settings.tasks)}, not {prompt.task}")
        wanted, image = IMAGE_INPUT[prompt.task], prompt.image
        if wanted is not None and wanted != (image is not None):
            raise ValueError(f"prompt {prompt.id}: {prompt.task} {'needs an' if wanted else 'takes no'} input image")
        shape = (*self.image_size, 3)
        if image is not None and (image.shape != shape or image.dtype != np.uint8):
            given = f"{image.dtype} {list(image.shape)}"
            raise ValueError(f"prompt {prompt.id}: its image is {given}, this policy reads uint8 {list(shape)}; convert or resize it")

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of input and output images in pixels."""
        rows, columns = self.settings.grid
        return rows * self.images.factor, columns * self.images.factor

    def fill(self, segment: Segment) -> np.ndarray:
        """Behind the first end token of a text."""
        if segment.modality == "image":
            return np.zeros(len(segment.tokens), bool)
        ends = np.isin(segment.tokens, self.ends)
        return ends.cumsum() > ends

    def words(self, segment: Segment) -> np.ndarray:
        """Counted in what the tokens up to each one decode to."""
        ids = segment.tokens.tolist()
        counts = [len(self.decode_text(ids[: i + 1]).split()) for i in range(len(self.written(ids)))]
        return np.array(counts + [0] * (len(ids) - len(counts))) - 1
