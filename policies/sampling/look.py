"""How a denoising step sees its segments: in whole sequences, or behind what a causal backbone has read once."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from policies.canvas import Span, beside
from policies.heads.base import Scene
from policies.sampling.context import Context
from policies.sequences import Backbone, Sequences

Look = Callable[[Tensor, Sequence[Span], Sequence[int]], list[Tensor]]
"""(ids [batch, length], spans, branches of guidance by their place) -> per span last hidden states [rows, n, width]. Those of the prompts
come first, behind them those of each branch."""


def whole(scene: Scene, model: Backbone) -> Look:
    """Every token sees every other: branches share what is generated, and run with the prompts as one batch."""
    prefix = scene.blank.prefix

    def look(ids: Tensor, spans: Sequence[Span], used: Sequence[int]) -> list[Tensor]:
        branches = [scene.branches[i].canvas for i in used]
        # What is generated so far is put behind each branch's prompt: the branches' own canvases stay blank.
        rows = torch.cat([ids, *(torch.cat((branch.ids[:, :prefix], ids[:, prefix:]), 1) for branch in branches)])
        real = torch.cat([scene.blank.attention, *(branch.attention for branch in branches)])
        columns = torch.cat([span.places() for span in spans]).to(ids.device)
        found = model.hidden(Sequences(rows, scene.layout.mask(rows, real)), columns)
        return list(found.split([len(span) for span in spans], 1))

    return look


def behind(scene: Scene, model: Backbone, image: Span) -> Look:
    """What stands in front of the image is read once, that of guidance too. Only the image and the tokens around it are computed then."""
    start, stop = image.start - 1, image.stop + 1
    guiding = [branch.canvas for branch in scene.branches if branch.scales["image"]]
    fronts = beside([canvas.front(start) for canvas in (scene.blank, *guiding)])
    context = model.begin(scene.layout.sequences(fronts, {}))  # type: ignore[attr-defined]
    assert isinstance(context, Context)

    def look(ids: Tensor, spans: Sequence[Span], used: Sequence[int]) -> list[Tensor]:
        block = ids[:, start:stop].repeat(1 + len(guiding), 1)
        return [context.peek(block, blocks=torch.ones_like(block))[:, 1:-1]]

    return look
