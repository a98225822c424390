"""Token by token: a text or an image is read and written from left to right, and its likelihood is exact."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from pararl.options import Drawing, Sampling
from pararl.types import Modality
from policies.batch import Batch
from policies.canvas import Canvas, Span, beside
from policies.heads.base import Lesson, Scene
from policies.heads.tokens import TokenLogits
from policies.layout import Layout
from policies.records import Draws, DrawTokens, StepTokens
from policies.sampling.context import Growing, write
from policies.sampling.denoise import SegmentTrace
from policies.sequences import Seen, View


class CausalHead:
    """Tokens of a causal backbone: a text, which ends in one of several tokens, behind which there is padding; or an image, in which no
    token ends anything, so that it always has all of its tokens."""

    whole = False
    normal = False
    by_step = False

    def __init__(self, tokens: TokenLogits, ends: Sequence[int], pad: int) -> None:
        """``ends``: none for images."""
        self.tokens, self.ends, self.pad = tokens, tuple(ends), pad

    def said(self, tokens: Tensor) -> Tensor:
        """Bool [batch, n]: the tokens in front of the first end token."""
        ends = torch.tensor(self.ends, dtype=tokens.dtype, device=tokens.device)
        return torch.isin(tokens, ends).cumsum(-1) == 0

    def counted(self, tokens: Tensor) -> Tensor:
        """Bool [batch, n]: the same and the first end token, which the policy says as well."""
        said = self.said(tokens)
        return torch.cat((torch.ones_like(said[:, :1]), said[:, :-1]), 1)

    def view(self, tokens: Tensor) -> View:
        """All of it, up to its end token. That token and all behind it are padding, because an image opens with a token of its own."""
        said = self.said(tokens)
        return View(tokens.where(said, self.pad), said)

    # ---- sampling

    def chance(self, generator: torch.Generator, spans: Sequence[Span], sampling: Sampling) -> Tensor:
        """One uniform a token, [n]."""
        return torch.rand(sum(map(len, spans)), generator=generator)

    def sample(
        self,
        scene: Scene,
        spans: Sequence[Span],
        chance: Sequence[Tensor],
        sampling: Sampling,
        recorded: Sequence[tuple[int, ...]],
    ) -> list[SegmentTrace]:
        """One text or image. Guidance is not for texts that are written token by token. Raises ValueError where it is asked for."""
        (span,) = spans
        if span.modality == "text":
            check_guidance(sampling)
        guiding = [branch for branch in scene.branches if branch.scales[span.modality]]
        fronts = beside([canvas.front(span.start) for canvas in (scene.blank, *(branch.canvas for branch in guiding))])
        noise = torch.stack(list(chance)).to(scene.blank.ids.device)
        scales = [branch.scales[span.modality] for branch in guiding]
        said, logprob = self.write(scene.layout, fronts, span.modality, noise, sampling.temperature, scales)
        stamps = deal(self.counted(said), recorded, sampling.steps)
        return [SegmentTrace(span.modality, said, stamps, logprob, said.expand(sampling.steps, -1, -1))]

    def write(
        self, layout: Layout, fronts: Canvas, modality: Modality, noise: Tensor, temperature: float, scales: Sequence[float] = ()
    ) -> tuple[Tensor, Tensor]:
        """Texts or images behind sequences, which those of each branch of guidance follow, with its scale: tokens and log-probabilities
        [batch, n], see ``policies.sampling.context.write``."""
        model: Growing = self.tokens.model  # type: ignore[assignment]
        reader, first = model.begin(layout.sequences(fronts, {})), self.tokens.offset(modality)
        rows = partial(self.tokens.rows, modality=modality)
        return write(reader, reader.last[:, -1], rows, noise, temperature, self.ends, first, scales)

    # ---- likelihoods

    def columns(self, span: Span) -> Tensor:
        """Those one place before: what was read up to there tells the next token."""
        return span.places() - 1

    def draws(self, batch: Batch, modalities: Sequence[Modality], which: Tensor, n: int, generator: torch.Generator, how: Drawing) -> Draws:
        """Nothing is drawn: every draw has all tokens."""
        masks: dict[Modality, Tensor] = {}
        counts: dict[Modality, Tensor] = {}
        weights: dict[Modality, Tensor] = {}
        for modality in modalities:
            counted = torch.cat([self.counted(batch.stacked(place, "tokens")) for place in batch.places(modality)], 1)
            masks[modality] = torch.zeros_like(counted).expand(n, -1, -1)
            counts[modality] = counted.expand(n, -1, -1)
            weights[modality] = (counted.shape[1] / counted.sum(1)).expand(n, -1)
        return Draws(masks, counts, weights, how.image_rows)

    def at_draw(self, batch: Batch, place: int, draw: Draws) -> View:
        return self.view(batch.stacked(place, "tokens"))

    def draw_tokens(self, seen: Seen, batch: Batch, place: int, draw: Draws) -> DrawTokens:
        """Log-probabilities of all tokens that count."""
        return DrawTokens(self._logprobs(seen.hidden, batch, place))

    def at_steps(self, batch: Batch, place: int, steps: Tensor) -> View:
        return self.view(batch.stacked(place, "tokens").repeat_interleave(steps.shape[1], 0))

    def step_tokens(self, seen: Seen, batch: Batch, place: int, steps: Tensor, copies: int) -> StepTokens:
        """The same, each at the step that it was dealt to: one copy of a rollout tells them all."""
        stamps, behaviour = (batch.stacked(place, name)[:, None] for name in ("commit_step", "logprob"))
        committed = stamps == steps[..., None]
        found = self._logprobs(seen.hidden[::copies], batch, place)[:, None]
        return StepTokens(found * committed, committed, behaviour * committed)

    def _logprobs(self, hidden: Tensor, batch: Batch, place: int) -> Tensor:
        tokens = batch.stacked(place, "tokens")
        return self.tokens.logprobs(hidden, batch.modality(place), tokens, self.counted(tokens))

    # ---- training, and proof of an adapter

    def lessons(self, clean: dict[Span, Tensor], generator: torch.Generator) -> dict[Span, Lesson]:
        """Mean cross-entropy of the next token, end token included."""
        return {span: self._lesson(span, tokens) for span, tokens in clean.items()}

    def _lesson(self, span: Span, tokens: Tensor) -> Lesson:
        counted = self.counted(tokens)

        def loss(seen: Seen) -> Tensor:
            return -self.tokens.logprobs(seen.hidden, span.modality, tokens, counted).sum() / counted.sum()

        return Lesson(self.view(tokens), loss)

    def canary_view(self, span: Span, device: torch.device) -> View:
        """Nothing is said yet."""
        return self.view(torch.full((1, len(span)), self.ends[0] if self.ends else self.pad, device=device))

    def canary(self, seen: Seen, span: Span) -> Tensor:
        """Logits of the first token."""
        return self.tokens.model.head(seen.hidden[:, 0], self.tokens.vocabulary.rows(span.modality))


def check_guidance(sampling: Sampling) -> None:
    """Raise ValueError where the text of a causal head is to be guided."""
    if sampling.text_guidance:
        raise ValueError("a text that is written token by token is not guided: set text_guidance (rollout.text_guidance) to 0")


def deal(counted: Tensor, recorded: Sequence[tuple[int, ...]], steps: int) -> Tensor:
    """The step at which each token counts, int64 [batch, n]; -1 for those that do not count.

    What is written token by token has no steps of denoising, and one forward gives the likelihood of all its tokens. So they are dealt in
    order over the ``recorded`` steps of their row, or over all ``steps`` where none is recorded: an arm that learns from those steps learns
    from all of it.
    """
    length = counted.sum(1, keepdim=True)
    hands = torch.tensor([rows or tuple(range(steps)) for rows in recorded], device=counted.device)
    share = (counted.cumsum(1) - 1) * hands.shape[1] // length
    return torch.where(counted, hands.gather(1, share), -1)
