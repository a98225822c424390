"""What the ``showo2`` family reads and writes: texts as tokens, pictures as latents, and the layout of a prompt with its blank output.

An image has no ids: ``<|image_pad|>`` holds its columns, the first of which is that of its time, and its latents go beside the ids. Facts:
showlab/Show-o, ``show-o2/models/misc.py`` and ``inference_*.py``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pararl.types import Prompt, Task
from policies.backbones.showo2 import Showo2
from policies.backbones.showo2_state import first_columns, patched, unpatched
from policies.families.showo import ShowoPolicy, extended
from policies.image.latents import read_vae
from policies.layout import Canvas, Span, Specials, Tail
from policies.mmada_codec import DECODED_PIXELS, TEXT_ONLY, MMadaSettings, Part


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
class Showo2Settings(MMadaSettings):
    """What a directory's ``policy.json`` says beside the weights."""

    grid: tuple[int, int] = (27, 27)
    """Patches of latents, rows and columns."""
    dialogue: str = "{text}<|im_end|>\n<|im_start|>assistant\n"
    """How a question, or a request for text and image, stands in front of what is answered; an input image in the place of ``{image}``, or
    else in front. As upstream, ``{text}`` is tokenized apart from what is around it."""
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


class Showo2Codec(ShowoPolicy):
    """Tokenizer, VAE and layout of the family."""

    settings_class = Showo2Settings
    model_class: type[PreTrainedModel] = Showo2
    settings: Showo2Settings
    images: Any
    """A VAE: ``encode``, ``decode`` and ``factor``."""

    def __init__(self, model: PreTrainedModel, *parts: Any) -> None:
        super().__init__(model, *parts)
        self.sampling = replace(self.sampling, flow_noise=self.settings.flow_noise)

    @staticmethod
    def read_images(directory: Path) -> Any:
        return read_vae(directory)

    @staticmethod
    def image_kinds(images: Any, config: Any) -> tuple[str, int, int]:
        return "channels", images.channels, config.image_latent_dim

    @property
    def codes(self) -> int:
        return 0

    @property
    def columns(self) -> int:
        """Columns of an image: one for its time, one for each patch."""
        return 1 + self.settings.grid[0] * self.settings.grid[1]

    @property
    def image_size(self) -> tuple[int, int]:
        rows, columns = self.settings.grid
        pixels = self.images.factor * self.model.config.patch_size
        return rows * pixels, columns * pixels

    def prefix(self, prompt: Prompt, shown: Sequence[int] = (), without: Part | None = None) -> list[int]:
        """Ids in front of the generated part: ``<bos> <soi> shown <eoi> text``, the text of a request for an image alone as it is, that of
        others in the dialogue. Raises ValueError for a text that is too long."""
        sp = self.settings.specials
        front, _, behind = ("" if prompt.task in ("t2i", "edit") else self.settings.dialogue).rpartition("{image}")
        before, _, after = (behind or "{text}").partition("{text}")
        head = self.encode_template(front, "")
        text = [*self.encode_template(before, ""), *self.encode_text(prompt.text), *self.encode_template(after, "")]
        self.check_length(prompt, [*head, *text])
        if without == "text":
            head, text = [], []
        seen = [] if without == "image" or not shown else [sp.soi, *shown, sp.eoi]
        return [sp.bos, *head, *seen, *text]

    def tail(self, task: Task) -> Tail:
        """``text <soi> image <eoi>``, of which an answer has the text alone and an image asked for alone no text."""
        s, sp = self.settings, self.settings.specials
        words = s.answer_tokens if task in TEXT_ONLY else s.text_tokens if task == "interleaved" else 0
        spans = [Span("text", 0, words)] if words else []
        ids = [sp.pad] * words
        if task not in TEXT_ONLY:
            spans.append(Span("image", words + 2, words + 1 + self.columns))  # behind <soi> and the column of its time
            ids += [sp.soi, *[sp.mask] * self.columns, sp.eoi]
        return Tail(tuple(ids), tuple(spans))

    def blocks(self, ids: Tensor) -> Tensor:
        """The image blocks of ids, int64 [batch, length]: each run of ``<|image_pad|>``."""
        inside = (ids == self.settings.specials.mask).long()
        return first_columns(inside).cumsum(1) * inside

    def shown(self, prompts: Sequence[Prompt], together: bool = False) -> list[list[int]]:
        for prompt in prompts:
            self._check_input(prompt)
        return [[] if p.image is None else [self.settings.specials.mask] * self.columns for p in prompts]

    def canvases(self, prompts: Sequence[Prompt], parts: Sequence[Part | None], shown: Sequence[Sequence[int]]) -> list[Canvas]:
        """The blank canvases with the latents of the input images beside their ids."""
        found = super().canvases(prompts, parts, shown)
        # One by one, so that a prompt's latents do not depend on its batch mates.
        images = [self.encode_images(p.image[None]) for p in prompts if p.image is not None]
        latents = self._grid(torch.cat(images)) if images else None
        return [replace(c, latents=None if part == "image" else latents) for c, part in zip(found, parts, strict=True)]

    @torch.no_grad()
    def encode_images(self, pixels: np.ndarray) -> Tensor:
        """Continuous tokens float32 [batch, n, d] of uint8 pixels [batch, height, width, 3]."""
        x = torch.from_numpy(np.ascontiguousarray(pixels)).to(next(self.images.parameters()).device).movedim(-1, 1).float() / 127.5 - 1
        return patched(self.images.encode(x), self.model.config.patch_size)

    @torch.no_grad()
    def decode_images(self, ids: Tensor) -> np.ndarray:
        """Pixels uint8 [batch, height, width, 3] of continuous tokens [batch, n, d], image by image where they are large."""
        micro = max(1, DECODED_PIXELS // (self.image_size[0] * self.image_size[1]))
        parts = [self.images.decode(self._grid(part)) for part in ids.split(micro)]
        return ((torch.cat(parts).clamp(-1, 1) + 1) * 127.5).round().byte().movedim(1, -1).cpu().numpy()

    def _grid(self, tokens: Tensor) -> Tensor:
        """Latents [batch, channels, height, width] of tokens [batch, n, d]."""
        return unpatched(tokens, self.model.config.patch_size, self.settings.grid)

    def _with_image(self, front: Canvas, tokens: Tensor) -> Canvas:
        sp = self.settings.specials
        latents = self._grid(tokens)
        more = extended(front, (sp.soi, *[sp.mask] * self.columns, sp.eoi))
        return replace(more, latents=latents if front.latents is None else torch.cat((front.latents, latents)))
