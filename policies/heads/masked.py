"""Masked diffusion: tokens are hidden behind MASK and denoised step by step, those of one modality or those of both at the same steps."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pararl.options import Drawing, Sampling
from pararl.steps import stretch
from pararl.types import Modality
from policies.batch import Batch
from policies.canvas import Span
from policies.heads.base import Branch, Lesson, Scene
from policies.heads.tokens import TokenLogits
from policies.likelihood.masked import hidden_sets, mask_ratios
from policies.records import Draws, DrawTokens, StepTokens
from policies.sampling.denoise import (
    Logits,
    SegmentPlan,
    SegmentTrace,
    denoise,
    emerge_plan,
    image_plan,
    late_image_plan,
    text_plan,
)
from policies.sampling.guidance import guided
from policies.sampling.look import Look, behind, whole
from policies.sequences import Seen, View
from policies.settings import Settings


class MaskedHead:
    """Denoised tokens of a vocabulary; their likelihoods are ELBOs at draws, and the exact conditionals at recorded steps."""

    whole = False
    normal = False
    by_step = True

    def __init__(self, tokens: TokenLogits, settings: Settings) -> None:
        self.tokens, self.settings = tokens, settings
        self.mask_id = settings.specials.mask

    # ---- sampling

    def chance(self, generator: torch.Generator, spans: Sequence[Span], sampling: Sampling) -> Tensor:
        """Uniforms [2, steps, n] of all spans, one behind the other: for draws, and for what is committed."""
        return torch.rand(2, sampling.steps, sum(map(len, spans)), generator=generator)

    def sample(
        self,
        scene: Scene,
        spans: Sequence[Span],
        chance: Sequence[Tensor],
        sampling: Sampling,
        recorded: Sequence[tuple[int, ...]],
    ) -> list[SegmentTrace]:
        """Spans are denoised together; of a causal sequence, one image behind what was read once."""
        plans = self.plans(spans, sampling)
        noise = torch.stack(list(chance), dim=2).to(scene.blank.ids.device)
        # At the other steps only positions that may be committed need logits.
        wanted = {step for steps in recorded for step in steps}
        look = behind(scene, self.tokens.model, *spans) if scene.layout.causal else whole(scene, self.tokens.model)
        logits = self.logits(look, scene.branches)
        offsets = [self.tokens.offset(span.modality) for span in spans]
        return denoise(logits, scene.blank.ids, plans, noise, self.mask_id, offsets, wanted)

    def logits(self, look: Look, branches: Sequence[Branch]) -> Logits:
        """The function that ``denoise`` calls: plain and guided logits, from the branches of guidance that its spans need."""

        def call(ids: Tensor, spans: Sequence[Span]) -> list[tuple[Tensor, Tensor]]:
            used = [i for i, b in enumerate(branches) if any(b.scales[s.modality] for s in spans)]
            found = look(ids, spans, used)
            return [self.guided(hidden, s.modality, [branches[i] for i in used]) for s, hidden in zip(spans, found, strict=True)]

        return call

    def guided(self, hidden: Tensor, modality: Modality, branches: Sequence[Branch]) -> tuple[Tensor, Tensor]:
        """Plain and guided logits [batch, n, rows] of the last hidden states of prompts and behind them those of their branches."""
        first, *others = hidden.chunk(1 + len(branches))
        plain = self.tokens.rows(first, modality)
        scales = [branch.scales[modality] for branch in branches]
        return plain, guided(plain, ((s, self.tokens.rows(h, modality)) for s, h in zip(scales, others, strict=True) if s))

    def plans(self, spans: Sequence[Span], sampling: Sampling) -> list[SegmentPlan]:
        """One plan a span: MaskGIT or emerge for images, block-wise for text; both share the steps as ``sampling.decoding`` says.

        Raises ValueError for emerge with the released decoding, which says itself how much of an image comes when.
        """
        joint = len(spans) > 1
        late, emerge = joint and sampling.decoding == "released", sampling.image_sampler == "emerge"
        if late and emerge:
            raise ValueError("the emerge sampler does not go with the released decoding: take image_sampler maskgit or another decoding")
        plans = []
        for span in spans:
            active, updates = stretch(span.modality, joint, sampling.steps, sampling.decoding, sampling.image_steps)
            if span.modality == "image":
                if emerge:
                    plan = emerge_plan(span, updates, len(active), sampling.temperature)
                else:
                    make = late_image_plan if late else image_plan
                    plan = make(span, updates, len(active), sampling.temperature, sampling.choice_temperature)
            else:
                block = len(span) if late else self.settings.text_block if joint else self.settings.answer_block
                plan = text_plan(span, len(active), block, sampling.temperature)
            plans.append(plan.within(active, sampling.steps))
        return plans

    def view(self, tokens: Tensor) -> View:
        """All of it."""
        return View(tokens)

    # ---- likelihoods

    def columns(self, span: Span) -> Tensor:
        """Its own."""
        return span.places()

    def draws(self, batch: Batch, modalities: Sequence[Modality], which: Tensor, n: int, generator: torch.Generator, how: Drawing) -> Draws:
        """Masks at ratios of one clock for all modalities, as in training and in the sampler."""
        prompts = int(which.max()) + 1
        masks: dict[Modality, Tensor] = {}
        counted: dict[Modality, Tensor] = {}
        weights: dict[Modality, Tensor] = {}
        # One draw a prompt, not a rollout: differences between rollouts of a prompt then hold no noise of the masks (VRPO, docs/papers.md).
        clock = mask_ratios(n, prompts, 0.0, 1.0, generator)
        for modality in modalities:
            uniforms = torch.rand(n, prompts, batch.length(modality), generator=generator)
            block = self._text_block(batch) if modality == "text" and how.text_masks == "block" else None
            found = hidden_sets(clock, uniforms, self._ratios(modality, how), block)
            masks[modality], counted[modality], weights[modality] = (x[:, which].to(batch.device) for x in found)
        return Draws(masks, counted, weights, how.image_rows)

    def _ratios(self, modality: Modality, how: Drawing) -> tuple[float, float]:
        """Bounds of the mask ratios."""
        low, high = self.settings.image_ratio if modality == "image" else self.settings.text_ratio
        asked = how.image_ratio if modality == "image" else how.text_ratio
        return low if asked is None else asked, high

    def _text_block(self, batch: Batch) -> int:
        """Tokens of a block of the text sampler. Raises ValueError for several texts, whose blocks are decoded side by side."""
        if len(batch.places("text")) > 1:
            raise ValueError("masks in blocks are for outputs of one text: set learner.text_masks to random")
        return self.settings.answer_block if batch[0].segment("image") is None else self.settings.text_block

    def at_draw(self, batch: Batch, place: int, draw: Draws) -> View:
        """The tokens that the draw does not hide."""
        return self._shown(batch.stacked(place, "tokens"), ~draw.masks[batch.modality(place)][0, :, batch.part(place)])

    def _shown(self, tokens: Tensor, visible: Tensor) -> View:
        return View(tokens.where(visible, self.mask_id))

    def draw_tokens(self, seen: Seen, batch: Batch, place: int, draw: Draws) -> DrawTokens:
        """Log-probabilities of the counted tokens."""
        modality = batch.modality(place)
        counted = draw.counted[modality][0, :, batch.part(place)]
        return DrawTokens(self.tokens.logprobs(seen.hidden, modality, batch.stacked(place, "tokens"), counted, draw.image_rows))

    def at_steps(self, batch: Batch, place: int, steps: Tensor) -> View:
        """The tokens that were committed before each step."""
        tokens, stamps = (batch.stacked(place, name).repeat_interleave(steps.shape[1], 0) for name in ("tokens", "commit_step"))
        return self._shown(tokens, stamps < steps.view(-1, 1))

    def step_tokens(self, seen: Seen, batch: Batch, place: int, steps: Tensor, copies: int) -> StepTokens:
        """Log-probabilities of the tokens committed at each step, given what was committed before it."""
        names = ("tokens", "commit_step", "logprob")
        tokens, stamps, behaviour = (batch.stacked(place, name).repeat_interleave(copies, 0) for name in names)
        committed = stamps == steps.view(-1, 1)
        found = self.tokens.logprobs(seen.hidden, batch.modality(place), tokens, committed)
        shape = (len(batch), copies, -1)
        return StepTokens(found.view(shape), committed.view(shape), (behaviour * committed).view(shape))

    # ---- training, and proof of an adapter

    def lessons(self, clean: dict[Span, Tensor], generator: torch.Generator) -> dict[Span, Lesson]:
        """Cross-entropy over hidden tokens. Image: their mean. Text: weighed by 1 / t, per token of the window (MMaDA-Parallel Eq. 2)."""
        image_ratio, text_ratio = noise_levels(len(next(iter(clean.values()))), generator)
        return {
            span: self._lesson(span, tokens, image_ratio if span.modality == "image" else text_ratio, generator)
            for span, tokens in clean.items()
        }

    def _lesson(self, span: Span, tokens: Tensor, ratio: Tensor, generator: torch.Generator) -> Lesson:
        hide = (torch.rand(tokens.shape, generator=generator) < ratio[:, None]).to(tokens.device)

        def loss(seen: Seen) -> Tensor:
            logp = self.tokens.logprobs(seen.hidden, span.modality, tokens, hide)
            if span.modality == "image":
                return -logp.sum() / hide.sum().clamp_min(1)
            return -(logp.sum(-1) / ratio.to(logp)).mean() / len(span)

        return Lesson(self._shown(tokens, ~hide), loss)

    def canary_view(self, span: Span, device: torch.device) -> View:
        """All of it hidden."""
        return View(torch.full((1, len(span)), self.mask_id, device=device))

    def canary(self, seen: Seen, span: Span) -> Tensor:
        """Logits of all tokens."""
        return self.tokens.model.head(seen.hidden, self.tokens.vocabulary.rows(span.modality))


def noise_levels(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mask ratios [batch] of image and text tokens at one shared time u ~ U(0, 1): cos(pi u / 2) and 1 - u.

    One clock for both modalities is what the parallel sampler runs on: image and text reach their ends together. Times are stratified
    over the batch, one in each ``1 / batch`` of (0, 1], which takes most of the variance out of a batch's loss (Kingma et al. 2021,
    arXiv 2107.00630, appendix I.1).
    """
    u = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
    return torch.cos(u * math.pi / 2), (1 - u).clamp_min(1e-3)
