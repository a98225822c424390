"""The likelihoods of the ``mmada`` family: ELBOs at draws, and the exact conditionals of the tokens committed at recorded steps."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pararl.options import Drawing, ImageRows
from pararl.types import MODALITIES, Modality, Rollout
from policies.base import Draws, DrawTokens, Policy, StepTokens
from policies.layout import Canvas, Span
from policies.likelihood.masked import elbo, hidden_sets, hidden_token_logprobs, mask_ratios
from policies.mmada_codec import MMadaCodec


class MMadaLikelihood(MMadaCodec, Policy):
    """What MMaDA's tokens are worth to it, with the head applied to the needed positions and rows only."""

    model: Any
    """A backbone whose call has two halves, ``hidden`` and ``head``."""
    text_bias: Tensor
    """float32 [text rows]: -inf at forbidden ones."""

    def rows(self, hidden: Tensor, modality: Modality) -> Tensor:
        """Logits over the rows of a modality; forbidden text rows at -inf."""
        logits = self.model.head(hidden, self.vocabulary.rows(modality))
        return logits + self.text_bias.to(logits) if modality == "text" else logits

    def hidden(self, ids: Tensor, attention: Tensor, spans: Sequence[Span]) -> list[Tensor]:
        """Last hidden states [batch, n, width] of the tokens of each span."""
        columns = torch.cat([torch.arange(ids.shape[1])[s.columns] for s in spans]).to(ids.device)
        found = self.model.hidden(ids, attention, columns)
        return list(found.split([len(s) for s in spans], 1))

    def offset(self, modality: Modality) -> int:
        return self.vocabulary.rows(modality).start

    def _filled(self, rollouts: Sequence[Rollout]) -> tuple[Canvas, dict[Modality, tuple[Tensor, Tensor, Tensor]]]:
        """The blank canvas of rollouts of one task, and per modality their tokens, commit steps and behaviour log-probs [batch, n]."""
        if len({r.prompt.task for r in rollouts}) != 1:
            raise ValueError("a likelihood batch holds rollouts of one task; split it by task")
        blank = self.canvas([r.prompt for r in rollouts]).to(self.device)
        out: dict[Modality, tuple[Tensor, Tensor, Tensor]] = {}
        for span in blank.spans:
            segments = [r.segment(span.modality) for r in rollouts]
            stacked = [np.stack([getattr(s, name) for s in segments]) for name in ("tokens", "commit_step", "logprob")]
            out[span.modality] = tuple(torch.from_numpy(x).to(self.device) for x in stacked)  # type: ignore[assignment]
        return blank, out

    def reveal(self, blank: Canvas, tokens: Mapping[Modality, Tensor], visible: Mapping[Modality, Tensor]) -> tuple[Tensor, Tensor]:
        """The ids of a canvas and its attention with ``tokens`` int64 [batch, n] of each span in place where they are ``visible`` (bool
        [batch, n]), and MASK where they are not."""
        ids = blank.ids.clone()
        for span in blank.spans:
            ids[:, span.columns] = tokens[span.modality].where(visible[span.modality], self.settings.specials.mask)
        return ids, blank.attention

    # ---- at draws

    def draws(self, rollouts: Sequence[Rollout], n: int, generator: torch.Generator, drawing: Drawing | None = None) -> Draws:
        how = drawing or Drawing()
        prompts = list(dict.fromkeys(r.prompt.id for r in rollouts))
        which = torch.tensor([prompts.index(r.prompt.id) for r in rollouts])
        masks: dict[Modality, Tensor] = {}
        counted: dict[Modality, Tensor] = {}
        weights: dict[Modality, Tensor] = {}
        clock = mask_ratios(n, len(prompts), 0.0, 1.0, generator)  # one for both modalities, as in training and in the sampler
        for seg in rollouts[0].segments:
            uniforms = torch.rand(n, len(prompts), len(seg.tokens), generator=generator)
            block = self._text_block(rollouts[0]) if seg.modality == "text" and how.text_masks == "block" else None
            found = hidden_sets(clock, uniforms, self._ratios(seg.modality, how), block)
            masks[seg.modality], counted[seg.modality], weights[seg.modality] = (x[:, which].to(self.device) for x in found)
        return Draws(masks, counted, weights, how.image_rows)

    def _ratios(self, modality: Modality, how: Drawing) -> tuple[float, float]:
        """Bounds of the mask ratios."""
        low, high = self.settings.image_ratio if modality == "image" else self.settings.text_ratio
        asked = how.image_ratio if modality == "image" else how.text_ratio
        return low if asked is None else asked, high

    def _text_block(self, rollout: Rollout) -> int:
        """Tokens of a block of the text sampler."""
        return self.settings.answer_block if rollout.segment("image") is None else self.settings.text_block

    def log_likelihood(self, rollouts: Sequence[Rollout], draws: Draws) -> Tensor:
        total = torch.zeros(len(rollouts), 2, device=self.device)
        for draw in draws:
            found = self.draw_tokens(rollouts, draw)
            absent = torch.zeros(len(rollouts), device=self.device)
            columns = [elbo(found[m].logprob, draw.weights[m][0]) if m in found else absent for m in MODALITIES]
            total = total + torch.stack(columns, -1)
        return total / len(draws)

    def draw_tokens(self, rollouts: Sequence[Rollout], draw: Draws) -> dict[Modality, DrawTokens]:
        blank, tokens = self._filled(rollouts)
        shown = self.reveal(blank, {m: x[0] for m, x in tokens.items()}, {m: ~draw.masks[m][0] for m in tokens})
        hidden = self.hidden(*shown, blank.spans)
        out: dict[Modality, DrawTokens] = {}
        for span, own in zip(blank.spans, hidden, strict=True):
            values, counted = tokens[span.modality][0], draw.counted[span.modality][0]
            out[span.modality] = DrawTokens(self._token_logprobs(own, span.modality, values, counted, draw.image_rows))
        return out

    def _token_logprobs(self, own: Tensor, modality: Modality, targets: Tensor, wanted: Tensor, image_rows: ImageRows = "codes") -> Tensor:
        if modality == "image" and image_rows == "all":
            return hidden_token_logprobs(own, self.model.head, targets, wanted, 0)
        return hidden_token_logprobs(own, lambda h: self.rows(h, modality), targets, wanted, self.offset(modality))

    # ---- at recorded steps

    def step_tokens(self, rollouts: Sequence[Rollout], steps: Sequence[Sequence[int]]) -> dict[Modality, StepTokens]:
        blank, tokens = self._filled(rollouts)
        batch, count = len(rollouts), len(steps[0])
        when = torch.tensor(steps, device=self.device).flatten()[:, None]  # [batch * step, 1]
        every = {m: tuple(x.repeat_interleave(count, 0) for x in record) for m, record in tokens.items()}
        copies = replace(blank, ids=blank.ids.repeat_interleave(count, 0), attention=blank.attention.repeat_interleave(count, 0))
        shown = self.reveal(copies, {m: x[0] for m, x in every.items()}, {m: x[1] < when for m, x in every.items()})
        hidden = self.hidden(*shown, blank.spans)
        out: dict[Modality, StepTokens] = {}
        for span, own in zip(blank.spans, hidden, strict=True):
            values, stamps, behaviour = every[span.modality]
            committed = stamps == when
            logp = self._token_logprobs(own, span.modality, values, committed)
            shape = (batch, count, len(span))
            out[span.modality] = StepTokens(logp.view(shape), committed.view(shape), (behaviour * committed).view(shape))
        return out
