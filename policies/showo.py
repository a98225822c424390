"""The ``showo`` family: text token by token, images denoised as a whole, both in one vocabulary and in one sequence.

Layouts of Show-o (``training/prompting_utils.py``), which are MMaDA's too; its sampler of images is MaskGIT. The release has no loop that
mixes both: here a text that ends in ``<|soi|>`` is followed by an image that sees the prompt, the text and itself. A text does not see
what stands behind it, so whatever is in front of an image is read once and not again at every step.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pararl.types import Modality, Prompt, Rollout, Task
from policies.attention.omni import between, omni
from policies.backbones.showo import Showo
from policies.base import Drawing, Draws, Sampling, StepTokens
from policies.layout import Canvas, Span, Tail
from policies.mmada import Branch, MMadaPolicy
from policies.mmada_codec import TEXT_ONLY
from policies.sampling.context import Context, write
from policies.sampling.denoise import Logits, SegmentTrace, denoise


class ShowoPolicy(MMadaPolicy):
    """Show-o: causal text, denoised images. What its text is worth to it is exact; its images have the likelihoods of ``mmada``."""

    family = "showo"
    lora_targets = r".*\.layers\.\d+\.(self_attn\.(q_proj|k_proj|v_proj|dense)|mlp\.(fc1|fc2))"
    model_class = Showo  # type: ignore[assignment]
    model: Showo  # type: ignore[assignment]

    @property
    def ends(self) -> tuple[int, ...]:
        """The end of a text, and the start of an image."""
        return self.settings.specials.eos, self.settings.specials.soi

    # ---- layout

    def tail(self, task: Task) -> Tail:
        """``text <soi> image <eoi>``, of which an answer has the text alone and an image asked for alone no text."""
        s, sp = self.settings, self.settings.specials
        words = s.answer_tokens if task in TEXT_ONLY else s.text_tokens if task == "interleaved" else 0
        spans = [Span("text", 0, words)] if words else []
        ids = [sp.pad] * words
        if task not in TEXT_ONLY:
            tokens = s.grid[0] * s.grid[1]
            spans.append(Span("image", words + 1, words + 1 + tokens))
            ids += [sp.soi, *[sp.mask] * tokens, sp.eoi]
        return Tail(tuple(ids), tuple(spans))

    def blocks(self, ids: Tensor) -> Tensor:
        """The image blocks of ids, int64 [batch, length]: from ``<soi>`` to ``<eoi>``, and the ``<mmu>`` in front of an input image."""
        sp = self.settings.specials
        found = between(ids, sp.soi, sp.eoi)
        follows = torch.nn.functional.pad(found[:, 1:], (0, 1))
        return torch.where(ids == sp.mmu, follows, found)

    def hidden(self, ids: Tensor, attention: Tensor, spans: Sequence[Span]) -> list[Tensor]:
        """Last hidden states [batch, n, width] that tell the tokens of each span: of a text those one place before it."""
        mask = omni(self.blocks(ids), attention)
        every = self.model.hidden(ids, mask.dense()[:, 0], mask.positions())
        columns = [torch.arange(ids.shape[1])[s.columns] - int(s.modality == "text") for s in spans]
        return [every[:, c.to(ids.device)] for c in columns]

    def reveal(self, blank: Canvas, tokens: dict[Modality, Tensor], visible: dict[Modality, Tensor]) -> tuple[Tensor, Tensor]:
        """A text is there as a whole, up to its end token, which like all behind it is padding: the image opens with one of its own."""
        image = [s for s in blank.spans if s.modality == "image"]
        ids, attention = super().reveal(replace(blank, spans=tuple(image)), tokens, visible)
        for span in blank.spans:
            if span.modality == "text":
                said = self._said(tokens["text"])
                ids[:, span.columns] = tokens["text"].where(said, self.settings.specials.pad)
                attention = attention.clone()
                attention[:, span.columns] = said
        return ids, attention

    def _said(self, tokens: Tensor) -> Tensor:
        """Bool [batch, n]: the tokens in front of the first end token."""
        return torch.isin(tokens, torch.tensor(self.ends, device=tokens.device)).cumsum(-1) == 0

    def counted(self, tokens: Tensor) -> Tensor:
        """Bool [batch, n]: the same and the first end token, which the policy says as well."""
        said = self._said(tokens)
        return torch.cat((torch.ones_like(said[:, :1]), said[:, :-1]), 1)

    # ---- sampling

    def _traces(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], sampling: Sampling, recorded: Sequence[tuple[int, ...]]
    ) -> list[SegmentTrace]:
        if sampling.text_guidance:
            raise ValueError("a text of Show-o is not guided: set text_guidance (rollout.text_guidance) to 0")
        blank, branches = self._canvases(prompts, sampling)
        text, image = blank.span("text"), blank.span("image")
        counts = len(text or ()), len(image or ())
        noise = torch.stack([self._uniforms(seed, sampling.steps, *counts) for seed in seeds]).to(self.device)
        traces = []
        given: dict[Modality, Tensor] = {}
        if text:
            context = Context(self.model.hidden, len(prompts), self.device)
            front = blank.ids[:, : text.start]
            hidden = context.read(front, blank.attention[:, : text.start], self.blocks(front))[:, -1]
            uniforms = noise[:, : counts[0]]
            tokens, logprob = write(context, hidden, lambda h: self.rows(h, "text"), uniforms, sampling.temperature, self.ends)
            stamps = deal(self.counted(tokens), recorded, sampling.steps)
            traces.append(SegmentTrace("text", tokens, stamps, logprob, tokens.expand(sampling.steps, -1, -1)))
            given["text"] = tokens
        if image:
            whole = [self._front(canvas, given) for canvas in (blank, *(b.canvas for b in branches))]
            canvas = replace(whole[0], spans=(image,))
            uniforms = noise[:, counts[0] :].view(len(prompts), 2, sampling.steps, counts[1]).permute(1, 2, 0, 3)
            wanted = {step for steps in recorded for step in steps}
            logits, offset = self._image_logits(whole, branches, image), self.offset("image")
            traces += denoise(logits, canvas, self.plans(canvas, sampling), uniforms, self.settings.specials.mask, [offset], wanted)
        return traces

    @staticmethod
    def _uniforms(seed: int, steps: int, words: int, tokens: int) -> Tensor:
        """All that one rollout draws, from its own seed: uniforms [words + 2 * steps * tokens]."""
        return torch.rand(words + 2 * steps * tokens, generator=torch.Generator().manual_seed(seed))

    def _front(self, blank: Canvas, given: dict[Modality, Tensor]) -> Canvas:
        """A canvas with the text that was written, its image still MASK."""
        if not given:
            return blank
        spans = tuple(s for s in blank.spans if s.modality == "text")
        ids, attention = self.reveal(replace(blank, spans=spans), given, {})
        return replace(blank, ids=ids, attention=attention)

    def _image_logits(self, canvases: Sequence[Canvas], branches: Sequence[Branch], image: Span) -> Logits:
        """The function that ``denoise`` calls: only the image is computed, behind prompts (and those of guidance) that were read once."""
        start, stop = image.start - 1, image.stop + 1
        ids = torch.cat([c.ids for c in canvases])
        context = Context(self.model.hidden, len(ids), self.device)
        front = ids[:, :start]
        context.read(front, torch.cat([c.attention for c in canvases])[:, :start], self.blocks(front))

        def call(now: Tensor, spans: Sequence[Span]) -> list[tuple[Tensor, Tensor]]:
            block = now[:, start:stop].repeat(len(canvases), 1)
            hidden = context.peek(block, blocks=torch.ones_like(block))[:, 1:-1]
            return [self.guided(hidden, "image", branches)]

        return call

    # ---- likelihoods

    def draws(self, rollouts: Sequence[Rollout], n: int, generator: torch.Generator, drawing: Drawing | None = None) -> Draws:
        """Masks of the images. The text's likelihood is exact: every draw has all of it."""
        draws = super().draws(rollouts, n, generator, drawing)
        if "text" in draws.masks:
            tokens = torch.stack([torch.from_numpy(s.tokens) for r in rollouts if (s := r.segment("text"))]).to(self.device)
            counted = self.counted(tokens)
            draws.masks["text"] = torch.zeros_like(counted).expand(n, -1, -1)
            draws.counted["text"] = counted.expand(n, -1, -1)
            draws.weights["text"] = (counted.shape[1] / counted.sum(1)).expand(n, -1)
        return draws

    def step_tokens(self, rollouts: Sequence[Rollout], steps: Sequence[Sequence[int]]) -> dict[Modality, StepTokens]:
        if rollouts[0].segment("image") is not None:
            return super().step_tokens(rollouts, steps)
        blank, tokens = self._filled(rollouts)
        values, stamps, behaviour = tokens["text"]
        hidden = self.hidden(*self.reveal(blank, {"text": values}, {}), blank.spans)
        logp = self._token_logprobs(hidden[0], "text", values, self.counted(values))
        committed = stamps[:, None] == torch.tensor(steps, device=self.device)[..., None]
        return {"text": StepTokens(logp[:, None] * committed, committed, behaviour[:, None] * committed)}


def deal(counted: Tensor, recorded: Sequence[tuple[int, ...]], steps: int) -> Tensor:
    """The step at which each token of a text counts, int64 [batch, n]; -1 for those that do not count.

    A causal text has no steps of denoising, and one forward tells what all of its tokens are worth: they are dealt in order over the
    ``recorded`` steps of their row, over all ``steps`` where none is recorded, so that whoever learns from those steps learns from all of
    the text.
    """
    length = counted.sum(1, keepdim=True)
    hands = torch.tensor([rows or tuple(range(steps)) for rows in recorded], device=counted.device)
    share = (counted.cumsum(1) - 1) * hands.shape[1] // length
    return torch.where(counted, hands.gather(1, share.clamp_max(hands.shape[1] - 1)), -1)
