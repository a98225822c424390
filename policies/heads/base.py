"""What a policy asks of a head."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Protocol

import torch
from torch import Tensor

from pararl.options import Drawing, Sampling
from pararl.types import Latents, Modality, Segment
from policies.batch import Batch
from policies.canvas import Canvas, Span
from policies.layout import Layout
from policies.records import Draws, DrawTokens, StepTokens
from policies.sequences import Seen, View


class Trace(Protocol):
    """What happened to one segment of a batch while it was sampled."""

    @property
    def modality(self) -> Modality: ...

    @property
    def tokens(self) -> Tensor:
        """[batch, n] ids, or [batch, n, d] continuous tokens."""

    @property
    def guesses(self) -> Tensor:
        """[steps, batch, n] or [steps, batch, n, d]: what the sampler would return after each step."""

    def record(self, row: int, recorded: Sequence[int]) -> Segment | Latents:
        """What a rollout keeps of one row."""


@dataclass(frozen=True, slots=True)
class Branch:
    """A forward of classifier-free guidance: the same outputs behind prompts of which a part is left out."""

    canvas: Canvas
    scales: Mapping[Modality, float]
    """By modality the scale s of ``logits + s (logits - those of the branch)``."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What a sampler starts from: the canvas of the prompts, and the branches of guidance."""

    layout: Layout
    blank: Canvas
    branches: tuple[Branch, ...] = ()

    @property
    def canvases(self) -> list[Canvas]:
        """That of the prompts first."""
        return [self.blank, *(branch.canvas for branch in self.branches)]

    def changed(self, change: Callable[[Canvas], Canvas]) -> "Scene":
        """With every canvas changed alike."""
        branches = tuple(replace(branch, canvas=change(branch.canvas)) for branch in self.branches)
        return replace(self, blank=change(self.blank), branches=branches)


@dataclass(frozen=True, slots=True)
class Lesson:
    """What stands in a segment while its policy is trained, and the loss of what it makes of it."""

    view: View
    loss: Callable[[Seen], Tensor]


class Head(Protocol):
    """One way of sampling and of measuring. Spans that share a head are sampled together."""

    @property
    def whole(self) -> bool:
        """Whether it reads the hidden states of whole sequences, not of ``columns`` alone."""

    @property
    def normal(self) -> bool:
        """Whether its chance is normal. Normals are drawn before uniforms, so that a seed keeps its meaning from version to version."""

    @property
    def by_step(self) -> bool:
        """Whether what stands in a sequence differs from one recorded step to the next."""

    # ---- sampling

    def chance(self, generator: torch.Generator, spans: Sequence[Span], sampling: Sampling) -> Tensor:
        """All that one rollout draws for these spans: from its own seed, so that its batch mates do not matter."""

    def sample(
        self,
        scene: Scene,
        spans: Sequence[Span],
        chance: Sequence[Tensor],
        sampling: Sampling,
        recorded: Sequence[tuple[int, ...]],
    ) -> Sequence[Trace]:
        """What happens to the spans, whose guesses at the ``recorded`` steps of each row matter; ``chance``: of each row.

        The canvases lack nothing in front of the spans.
        """

    def view(self, tokens: Tensor) -> View:
        """What stands in a segment that is finished, tokens [batch, n]."""

    # ---- likelihoods

    def columns(self, span: Span) -> Tensor:
        """The columns int64 [n] whose hidden states tell the tokens of a span."""

    def draws(self, batch: Batch, modalities: Sequence[Modality], which: Tensor, n: int, generator: torch.Generator, how: Drawing) -> Draws:
        """The shared randomness of ``n`` draws of all tokens of its modalities. ``which`` int64 [batch]: the prompt of each rollout, of
        which all get the same."""

    def at_draw(self, batch: Batch, place: int, draw: Draws) -> View:
        """What stands in the segments at a place of the output at a draw."""

    def draw_tokens(self, seen: Seen, batch: Batch, place: int, draw: Draws) -> DrawTokens:
        """What the draw tells of their tokens."""

    def at_steps(self, batch: Batch, place: int, steps: Tensor) -> View:
        """What stands there in front of each of ``steps`` int64 [batch, copies], [batch * copies, n]."""

    def step_tokens(self, seen: Seen, batch: Batch, place: int, steps: Tensor, copies: int) -> StepTokens:
        """The conditionals of what was committed at ``steps`` int64 [batch, step]. The forward had ``copies`` of each rollout: one where
        nothing in it changes by step, else one for each step."""

    # ---- training, and proof of an adapter

    def lessons(self, clean: dict[Span, Tensor], generator: torch.Generator) -> dict[Span, Lesson]:
        """How segments of clean tokens [batch, n] are taught."""

    def canary_view(self, span: Span, device: torch.device) -> View:
        """What stands in one row of a span before anything is known."""

    def canary(self, seen: Seen, span: Span) -> Tensor:
        """Numbers that an adapter changes."""


Stage = tuple[Head, tuple[Span, ...]]
"""Spans that are sampled together, and the head that does it."""


def drawn(stages: Sequence[Stage], generator: torch.Generator, sampling: Sampling) -> list[Tensor]:
    """The chance of each stage of one rollout."""
    found: dict[int, Tensor] = {}
    for i in sorted(range(len(stages)), key=lambda i: not stages[i][0].normal):
        head, spans = stages[i]
        found[i] = head.chance(generator, spans, sampling)
    return [found[i] for i in range(len(stages))]


def stages(heads: Mapping[Modality, Head], canvas: Canvas, causal: bool) -> list[Stage]:
    """The spans of a canvas as they are sampled: neighbours of one head together, those of a causal sequence one by one."""
    if causal:
        return [(heads[span.modality], (span,)) for span in canvas.spans]
    return [(head, tuple(spans)) for head, spans in groupby(canvas.spans, lambda span: heads[span.modality])]


def passes(heads: Mapping[Modality, Head], canvas: Canvas, causal: bool) -> list[list[Span]]:
    """The spans of a canvas by the forward that tells what they are worth.

    What is denoised is half hidden in its own forward. So whatever was sampled behind it is told by the next, which shows it finished.
    """
    found: list[list[Span]] = []
    for _, spans in stages(heads, canvas, causal):
        if not found or any(heads[span.modality].by_step for span in found[-1]):
            found.append([])
        found[-1] += spans
    return found
