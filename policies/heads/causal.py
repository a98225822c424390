"""Token by token: a text is read and written from left to right, and its likelihood is exact."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pararl.options import Drawing, Sampling
from pararl.types import Modality
from policies.batch import Batch
from policies.canvas import Canvas, Span
from policies.heads.base import Lesson, Scene
from policies.heads.tokens import TokenLogits
from policies.records import Draws, DrawTokens, StepTokens
from policies.sampling.context import Growing, write
from policies.sampling.denoise import SegmentTrace
from policies.sequences import Seen, View


class CausalHead:
    """A text of a causal backbone, which ends in one of several tokens; what stands behind the end is padding."""

    whole = False
    normal = False
    by_step = False

    def __init__(self, tokens: TokenLogits, ends: Sequence[int], pad: int) -> None:
        self.tokens, self.ends, self.pad = tokens, tuple(ends), pad

    def said(self, tokens: Tensor) -> Tensor:
        """Bool [batch, n]: the tokens in front of the first end token."""
        return torch.isin(tokens, torch.tensor(self.ends, device=tokens.device)).cumsum(-1) == 0

    def counted(self, tokens: Tensor) -> Tensor:
        """Bool [batch, n]: the same and the first end token, which the policy says as well."""
        said = self.said(tokens)
        return torch.cat((torch.ones_like(said[:, :1]), said[:, :-1]), 1)

    def view(self, tokens: Tensor) -> View:
        """The whole text, up to its end token. That token and all behind it are padding, because an image opens with a token of its own."""
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
        """One text. Guidance is not for texts that are written token by token. Raises ValueError where it is asked for."""
        check_guidance(sampling)
        (span,) = spans
        noise = torch.stack(list(chance)).to(scene.blank.ids.device)
        said, logprob = self.write(scene, scene.blank.front(span.start), noise, sampling.temperature)
        stamps = deal(self.counted(said), recorded, sampling.steps)
        return [SegmentTrace(span.modality, said, stamps, logprob, said.expand(sampling.steps, -1, -1))]

    def write(self, scene: Scene, front: Canvas, noise: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Texts behind sequences: tokens and log-probabilities [batch, n], see ``policies.sampling.context.write``."""
        model: Growing = self.tokens.model  # type: ignore[assignment]
        reader = model.begin(scene.layout.sequences(front, {}))
        return write(reader, reader.last[:, -1], lambda h: self.tokens.rows(h, "text"), noise, temperature, self.ends)

    # ---- likelihoods

    def columns(self, span: Span) -> Tensor:
        """Those one place before: what was read up to there tells the next token."""
        return span.places() - 1

    def draws(self, batch: Batch, modalities: Sequence[Modality], which: Tensor, n: int, generator: torch.Generator, how: Drawing) -> Draws:
        """Nothing is drawn: every draw has all of a text."""
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
        """The same, each at the step that it was dealt to: one copy of a text tells them all."""
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
        return self.view(torch.full((1, len(span)), self.ends[0], device=device))

    def canary(self, seen: Seen, span: Span) -> Tensor:
        """Logits of the first token."""
        return self.tokens.model.head(seen.hidden[:, 0], self.tokens.vocabulary.rows(span.modality))


def check_guidance(sampling: Sampling) -> None:
    """Raise ValueError where the text of a causal head is to be guided."""
    if sampling.text_guidance:
        raise ValueError("a text that is written token by token is not guided: set text_guidance (rollout.text_guidance) to 0")


def deal(counted: Tensor, recorded: Sequence[tuple[int, ...]], steps: int) -> Tensor:
    """The step at which each token of a text counts, int64 [batch, n]; -1 for those that do not count.

    A causal text has no steps of denoising, and one forward gives the likelihood of all its tokens. So they are dealt in order over the
    ``recorded`` steps of their row, or over all ``steps`` where none is recorded: an arm that learns from those steps learns from the whole
    text.
    """
    length = counted.sum(1, keepdim=True)
    hands = torch.tensor([rows or tuple(range(steps)) for rows in recorded], device=counted.device)
    share = (counted.cumsum(1) - 1) * hands.shape[1] // length
    return torch.where(counted, hands.gather(1, share), -1)
