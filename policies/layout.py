"""Where the parts of prompts and outputs stand in a sequence: what all families share.

A family says its prefix, its tail and its blocks.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pararl.types import Prompt, Task
from policies.attention.masks import Full, Mask, omni
from policies.canvas import Canvas, Span, Tail, canvas
from policies.codec import TextCodec
from policies.image.codec import ImageCodec, LatentImages
from policies.sequences import Sequences, View
from policies.settings import IMAGE_INPUT, Part, Settings


@dataclass(frozen=True, slots=True)
class Shown:
    """An input image as a prompt shows it."""

    ids: tuple[int, ...] = ()
    """Vocabulary ids of its columns, or their placeholders; empty = there is no image."""
    latents: Tensor | None = None
    """float32 [1, channels, height, width] of an image of continuous tokens."""


class Layout(ABC):
    """Text codec, image codec and settings of a policy, and the sequences that are made of them."""

    def __init__(self, text: TextCodec, images: ImageCodec, settings: Settings) -> None:
        self.text, self.images, self.settings = text, images, settings

    # ---- what a family says

    @abstractmethod
    def prefix(self, prompt: Prompt, shown: Sequence[int] = (), without: Part | None = None) -> list[int]:
        """Ids in front of the generated part. ``shown``: those of the input image. ``without``: what guidance leaves out.

        Raises ValueError for a text that is too long.
        """

    @abstractmethod
    def tail(self, task: Task) -> Tail:
        """The generated part of a task, still blank."""

    @abstractmethod
    def blocks(self, ids: Tensor) -> Tensor | None:
        """The image blocks of ids, int64 [batch, length], 0 = text, where text is causal; None where every token sees every other."""

    @property
    def causal(self) -> bool:
        """Whether what stands in front does not see what stands behind it."""
        return self.blocks(torch.zeros(1, 1, dtype=torch.int64)) is not None

    def undescribed(self, prompt: Prompt, shown: Sequence[int]) -> list[int]:
        """The prefix of a training example whose description was dropped, which is what guidance compares with."""
        return self.prefix(prompt, shown, "text")

    # ---- prompts

    def check_length(self, prompt: Prompt, text: Sequence[int]) -> None:
        """Raise ValueError where the tokens of a prompt's text are more than the policy reads."""
        limit = self.settings.prompt_tokens
        if len(text) > limit:
            raise ValueError(f"prompt {prompt.id} has {len(text)} tokens, more than the {limit} this policy reads; shorten it")

    def check_input(self, prompt: Prompt) -> None:
        """Raise ValueError for a task that this checkpoint does not do and for an image that is missing, unasked or not of its size."""
        if prompt.task not in self.settings.tasks:
            raise ValueError(f"prompt {prompt.id}: this policy does {', '.join(self.settings.tasks)}, not {prompt.task}")
        wanted, image = IMAGE_INPUT[prompt.task], prompt.image
        if wanted is not None and wanted != (image is not None):
            raise ValueError(f"prompt {prompt.id}: {prompt.task} {'needs an' if wanted else 'takes no'} input image")
        shape = (*self.images.size, 3)
        if image is not None and (image.shape != shape or image.dtype != np.uint8):
            given = f"{image.dtype} {list(image.shape)}"
            raise ValueError(f"prompt {prompt.id}: its image is {given}, this policy reads uint8 {list(shape)}; convert or resize it")

    def shown(self, prompts: Sequence[Prompt], together: bool = False) -> list[Shown]:
        """Each prompt's input image as tokens; equal images are encoded once.

        One by one: in a batch the encoder rounds differently, and a bit near 0 would depend on a prompt's batch mates. ``together``: all
        in one batch, which is several times faster, for training on examples that come once. Raises what ``check_input`` raises.
        """
        for prompt in prompts:
            self.check_input(prompt)
        images = {p.image.tobytes(): p.image for p in prompts if p.image is not None}
        pixels = [np.stack(list(images.values()))] if together and images else [image[None] for image in images.values()]
        found = dict(zip(images, (self.as_shown(row[None]) for part in pixels for row in self.images.encode(part)), strict=True))
        return [Shown() if p.image is None else found[p.image.tobytes()] for p in prompts]

    def as_shown(self, tokens: Tensor) -> Shown:
        """An image of tokens [1, n] or [1, n, d] as a prompt shows it."""
        if isinstance(self.images, LatentImages):
            return Shown((self.settings.specials.mask,) * self.columns, self.images.latents(tokens))
        return Shown(tuple(tokens[0].tolist()))

    @property
    def columns(self) -> int:
        """Columns of an image: one for each token, and in front of continuous ones that of their time."""
        return self.settings.grid[0] * self.settings.grid[1] + int(not self.images.codes)

    # ---- sequences

    def canvases(self, prompts: Sequence[Prompt], parts: Sequence[Part | None], shown: Sequence[Shown]) -> list[Canvas]:
        """The blank canvas of prompts of one task, once without each of ``parts`` (None: whole), all of one width."""
        rows = [[self.prefix(p, image.ids, part) for p, image in zip(prompts, shown, strict=True)] for part in parts]
        width = max(len(row) for prefixes in rows for row in prefixes)
        task = prompts[0].task
        return [
            self.lay_out(task, prefixes, [Shown() if part == "image" else image for image in shown], width)
            for prefixes, part in zip(rows, parts, strict=True)
        ]

    def lay_out(self, task: Task, prefixes: Sequence[Sequence[int]], shown: Sequence[Shown], width: int | None = None) -> Canvas:
        """The blank canvas of prefixes of one task with the images that they show, padded on the left (to ``width`` columns)."""
        blank = canvas(prefixes, self.tail(task), self.settings.specials.pad, width)
        latents = [image.latents for image in shown if image.latents is not None]
        return replace(blank, latents=torch.cat(latents)) if latents else blank

    def canvas(self, prompts: Sequence[Prompt]) -> Canvas:
        """The blank canvas of prompts of one task."""
        return self.canvases(prompts, [None], self.shown(prompts))[0]

    def mask(self, ids: Tensor, real: Tensor) -> Mask:
        """Who sees whom in ids [batch, length] of which ``real`` bool [batch, length] are no padding."""
        blocks = self.blocks(ids)
        return Full(real) if blocks is None else omni(blocks, real)

    def filled(self, blank: Canvas, views: Mapping[Span, View]) -> tuple[Tensor, Tensor]:
        """Ids and real columns of a canvas, each [batch, length], with what stands in some of its segments."""
        ids, real = blank.ids.clone(), blank.attention
        for span, view in views.items():
            if view.ids is not None:
                ids[:, span.columns] = view.ids
            if view.real is not None:
                real = real.clone()
                real[:, span.columns] = view.real
        return ids, real

    def put(self, blank: Canvas, views: Mapping[Span, View]) -> Canvas:
        """A canvas in which some segments are there from now on, those in front of them being there."""
        ids, real = self.filled(blank, views)
        latents = blank.latents
        for span, view in views.items():
            if view.latents is not None:
                latents = behind_others(latents, self.number(ids, span) - 1, self.latents(view.latents))
        return replace(blank, ids=ids, attention=real, latents=latents)

    def sequences(self, blank: Canvas, views: Mapping[Span, View]) -> Sequences:
        """What the backbone reads of a canvas whose segments hold the ``views``."""
        ids, real = self.filled(blank, views)
        mask = self.mask(ids, real)
        latents = blank.latents
        times = None if latents is None else torch.ones(len(latents), device=ids.device)
        for span, view in views.items():
            if view.latents is not None and view.times is not None:
                before = self.number(ids, span) - 1
                latents = behind_others(latents, before, self.latents(view.latents))
                times = behind_others(times, before, view.times.float())
        return Sequences(ids, mask, latents, times)

    def latents(self, tokens: Tensor) -> Tensor:
        """The images [images, channels, height, width] of continuous tokens [images, n, d]."""
        assert isinstance(self.images, LatentImages)
        return self.images.latents(tokens)

    def number(self, ids: Tensor, span: Span) -> Tensor:
        """Which of the images of its row the image of a span is, int64 [batch], counted from 1."""
        blocks = self.blocks(ids)
        assert blocks is not None
        return blocks[:, span.start]

    def with_image(self, front: Canvas, tokens: Tensor) -> Canvas:
        """A canvas of one row with a finished image, tokens [1, n] or [1, n, d], behind it."""
        image, sp = self.as_shown(tokens), self.settings.specials
        more = extended(front, (sp.soi, *image.ids, sp.eoi))
        if image.latents is None:
            return more
        return replace(more, latents=image.latents if front.latents is None else torch.cat((front.latents, image.latents)))


def behind_others(others: Tensor | None, before: Tensor, last: Tensor) -> Tensor:
    """One value of each image of a batch in row-major order, when each row has one more.

    That is ``last`` [batch, ...], behind the ``before`` int64 [batch] images that it had.
    """
    if others is None:
        return last
    place = (before + 1).cumsum(0) - 1
    found = others.new_empty(len(others) + len(last), *others.shape[1:])
    given = torch.ones(len(found), dtype=torch.bool, device=found.device).index_fill(0, place, False)
    found[given], found[place] = others, last
    return found


def extended(front: Canvas, ids: Sequence[int], spans: tuple[Span, ...] = ()) -> Canvas:
    """A canvas with the same ids behind each of its rows."""
    more = torch.tensor(list(ids), dtype=torch.int64, device=front.ids.device).expand(len(front.ids), -1)
    real = torch.ones_like(more, dtype=torch.bool)
    return replace(front, ids=torch.cat((front.ids, more), 1), attention=torch.cat((front.attention, real), 1), spans=spans)
