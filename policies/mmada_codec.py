"""What the ``mmada`` family reads and writes as tokens: texts, pictures, and the layout of a prompt with its blank output."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from pararl.types import TASKS, Prompt, Segment, Task
from policies.image.magvitv2 import MAGVITv2
from policies.layout import Canvas, Specials, Vocabulary, canvas

TEXT_ONLY: tuple[Task, ...] = ("t2t", "i2t")
"""Tasks whose output is text alone."""
DECODED_PIXELS = 2**18
"""Pixels that are decoded at once: one image of 512 x 512, whose widest features of 128 channels take 134 MB, or 256 of 32 x 32."""
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
    specials: Specials = field(default_factory=Specials)


class MMadaCodec:
    """Tokenizer, image tokenizer and layout of the family, without the backbone."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, images: MAGVITv2, settings: MMadaSettings) -> None:
        self.tokenizer = tokenizer
        self.images = images.eval().requires_grad_(False)
        self.settings = settings
        specials = settings.specials
        others = {i for i in tokenizer.all_special_ids if i is not None} | set(asdict(specials).values())
        self.vocabulary = Vocabulary(len(tokenizer), images.codebook_size, specials, tuple(sorted(others - {specials.eos})))

    # ---- text and pixels

    def encode_text(self, text: str) -> list[int]:
        """Token ids of a text, without specials. Raises ValueError that names the words which a closed vocabulary does not have."""
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        unknown = self.tokenizer.unk_token_id
        if unknown is not None and unknown in ids:
            words = dict.fromkeys(w for w in text.split() if unknown in self.tokenizer.encode(w, add_special_tokens=False))
            raise ValueError(f"this policy's vocabulary has no {', '.join(map(repr, words))} (in {text!r}): use other words")
        return ids

    def decode_text(self, ids: Sequence[int]) -> str:
        """Text of generated ids, up to the first end-of-sequence token."""
        ids = list(ids)
        end = ids.index(self.settings.specials.eos) if self.settings.specials.eos in ids else len(ids)
        return str(self.tokenizer.decode(ids[:end]))

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

    def prefix(self, prompt: Prompt, shown: Sequence[int] = (), conditional: bool = True) -> list[int]:
        """Ids in front of the generated part: ``<task> <soi> shown <eoi> <bos> text <eos>``, without an image ``<task> <bos> text <eos>``.

        ``shown``: vocabulary ids of the input image. Tasks that produce text alone end in the open dialogue instead of ``<eos>``, and
        t2t has no task token (MMaDA's ``mmu`` and ``lm``). The unconditional prefix has no text. Raises ValueError for a text that is
        too long.
        """
        s = self.settings.specials
        answers = prompt.task in TEXT_ONLY
        text = self.encode_text(self.settings.dialogue.replace("{text}", prompt.text) if answers else prompt.text) if conditional else []
        if len(text) > self.settings.prompt_tokens:
            limit = self.settings.prompt_tokens
            raise ValueError(f"prompt {prompt.id} has {len(text)} tokens, more than the {limit} this policy reads; shorten it")
        task = {"t2t": [], "i2t": [s.mmu], "t2i": [s.t2i], "edit": [s.t2i], "interleaved": [s.interleave]}[prompt.task]
        image = [s.soi, *shown, s.eoi] if prompt.image is not None else []
        return [*task, *image, s.bos, *text, *([] if answers else [s.eos])]

    def canvas(
        self,
        prompts: Sequence[Prompt],
        conditional: bool = True,
        width: int | None = None,
        shown: Sequence[Sequence[int]] | None = None,
    ) -> Canvas:
        """The blank canvas of prompts of one task; ``shown`` = what ``self.shown(prompts)`` gave, where it is known already."""
        s, task = self.settings, prompts[0].task
        image_tokens = 0 if task in TEXT_ONLY else s.grid[0] * s.grid[1]
        text_tokens = s.answer_tokens if task in TEXT_ONLY else s.text_tokens if task == "interleaved" else 0
        given = self.shown(prompts) if shown is None else shown
        prefixes = [self.prefix(p, ids, conditional) for p, ids in zip(prompts, given, strict=True)]
        return canvas(prefixes, image_tokens, text_tokens, s.specials, width)

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
        ends = segment.tokens == (self.settings.specials.eos if segment.modality == "text" else -1)
        return ends.cumsum() > ends

    def words(self, segment: Segment) -> np.ndarray:
        """Counted in what the tokens up to each one decode to."""
        ids = segment.tokens.tolist()
        end = ids.index(self.settings.specials.eos) if self.settings.specials.eos in ids else len(ids)
        counts = [len(self.decode_text(ids[: i + 1]).split()) for i in range(end)]
        return np.array(counts + [0] * (len(ids) - end)) - 1
