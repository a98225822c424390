"""The ``showo`` family: text token by token, images denoised as a whole, both in one vocabulary and in one sequence.

Layouts of Show-o (``training/prompting_utils.py``), which are MMaDA's too; its sampler of images is MaskGIT. The release has no loop that
mixes both: here a text that ends in ``<|soi|>`` is followed by an image that sees the prompt, the text and itself. A text does not see
what stands behind it, so whatever is in front of an image is read once and not again at every step.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from pararl.options import Drawing, Sampling
from pararl.types import Modality, Output, Prompt, Rollout, Task
from policies.attention.masks import between, omni
from policies.backbones.showo import Showo
from policies.base import Draws, StepTokens
from policies.families.mmada import Branch, MMadaPolicy
from policies.layout import Canvas, Span, Tail
from policies.mmada_codec import TEXT_ONLY
from policies.sampling.context import Context, write
from policies.sampling.denoise import Logits, SegmentTrace, denoise


class ShowoPolicy(MMadaPolicy):
    """Show-o: causal text, denoised images. What its text is worth to it is exact; its images have the likelihoods of ``mmada``."""

    family = "showo"
    lora_targets = r".*\.layers\.\d+\.(self_attn\.(q_proj|k_proj|v_proj|dense)|mlp\.(fc1|fc2))"
    model_class: type[PreTrainedModel] = Showo

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
        """The image blocks of ids; see ``image_blocks``."""
        sp = self.settings.specials
        return image_blocks(ids, sp.soi, sp.eoi, sp.mmu)

    def hidden(self, ids: Tensor, attention: Tensor, spans: Sequence[Span]) -> list[Tensor]:
        """Last hidden states [batch, n, width] that tell the tokens of each span: of a text those one place before it."""
        mask = omni(self.blocks(ids), attention)
        every = self.model.hidden(ids, mask.dense()[:, 0], mask.positions())
        columns = [torch.arange(ids.shape[1])[s.columns] - int(s.modality == "text") for s in spans]
        return [every[:, c.to(ids.device)] for c in columns]

    def reveal(self, blank: Canvas, tokens: Mapping[Modality, Tensor], visible: Mapping[Modality, Tensor]) -> tuple[Tensor, Tensor]:
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
        _check_guidance(sampling)
        blank, branches = self._canvases(prompts, sampling)
        text, image = blank.span("text"), blank.span("image")
        words, tokens = len(text or ()), len(image or ())
        noise = torch.cat([self._chance(torch.Generator().manual_seed(seed), words, tokens, sampling) for seed in seeds])
        traces = []
        given: dict[Modality, Tensor] = {}
        if text:
            front = replace(blank, ids=blank.ids[:, : text.start], attention=blank.attention[:, : text.start])
            said, logprob = self._write(front, noise[:, :words], sampling.temperature)
            stamps = deal(self.counted(said), recorded, sampling.steps)
            traces.append(SegmentTrace("text", said, stamps, logprob, said.expand(sampling.steps, -1, -1)))
            given["text"] = said
        if image:
            whole = [self._filled_in(canvas, given) for canvas in (blank, *(b.canvas for b in branches))]
            wanted = {step for steps in recorded for step in steps}
            traces.append(self._paint(whole, branches, noise[:, words:], sampling, wanted))
        return traces

    @torch.no_grad()
    def mixed(self, prompt: Prompt, seed: int = 0, sampling: Sampling | None = None, images: int = 4) -> list[Output]:
        """Texts and images as the policy alternates them, each an output of its own, for a prompt of the task ``interleaved``.

        A text that ends in ``<|soi|>`` is followed by an image, which everything behind it sees; any other end is the end of all, and so
        is the text behind the last of at most ``images`` images. Raises what ``generate`` raises, and ValueError for another task and for
        a number of images below 0.
        """
        if images < 0:
            raise ValueError(f"at most {images} images: give 0 or more")
        if prompt.task != "interleaved":
            raise ValueError(f"prompt {prompt.id}: texts and images in turn are made of interleaved prompts, not of {prompt.task}")
        how = sampling or self.sampling
        _check_guidance(how)
        blank, branches = self._canvases([prompt], how)
        tail = self.tail("interleaved")
        words, picture = (len(span) for span in tail.spans)
        canvases = [blank, *(b.canvas for b in branches)]
        fronts = [replace(c, ids=c.ids[:, : c.prefix], attention=c.attention[:, : c.prefix], spans=()) for c in canvases]
        behind, first = tail.ids[words:], tail.spans[1].start - words
        generator = torch.Generator().manual_seed(seed)
        parts: list[Output] = []
        while True:
            noise = self._chance(generator, words, picture, how)
            ids = self._write(fronts[0], noise[:, :words], how.temperature)[0][0].tolist()
            said = self.written(ids)
            parts += [Output(text=self.decode_text(said))] if said else []
            opened = len(said) < words and ids[len(said)] == self.settings.specials.soi
            if not opened or not images:
                return parts
            images -= 1
            fronts = [extended(front, said) for front in fronts]
            place = fronts[0].ids.shape[1] + first
            whole = [extended(front, behind, (Span("image", place, place + picture),)) for front in fronts]
            tokens = self._paint(whole, branches, noise[:, words:], how, ()).tokens
            parts.append(Output(image=self.decode_images(tokens)[0]))
            fronts = [self._with_image(front, tokens) for front in fronts]

    def _chance(self, generator: torch.Generator, words: int, tokens: int, sampling: Sampling) -> Tensor:
        """All that one rollout draws, uniforms [1, words + more], from its own seed, so that its batch mates do not matter."""
        return torch.rand(1, words + 2 * sampling.steps * tokens, generator=generator).to(self.device)

    def _write(self, front: Canvas, noise: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Texts behind sequences: tokens and log-probabilities, see ``policies.sampling.context.write``."""
        context = Context(self.model.hidden, len(front.ids), self.device)
        hidden = context.read(front.ids, front.attention, self.blocks(front.ids))[:, -1]
        return write(context, hidden, lambda h: self.rows(h, "text"), noise, temperature, self.ends)

    def _paint(
        self, canvases: Sequence[Canvas], branches: Sequence[Branch], noise: Tensor, sampling: Sampling, wanted: Collection[int]
    ) -> SegmentTrace:
        """The image of canvases that lack nothing else, that of the prompts and those of guidance; ``noise`` [batch, 2 * steps * n]."""
        image = canvases[0].span("image")
        assert image is not None
        canvas = replace(canvases[0], spans=(image,))
        uniforms = noise.view(len(noise), 2, sampling.steps, len(image)).permute(1, 2, 0, 3)
        logits, mask = self._image_logits(canvases, branches, image), self.settings.specials.mask
        return denoise(logits, canvas, self.plans(canvas, sampling), uniforms, mask, [self.offset("image")], wanted)[0]

    def _with_image(self, front: Canvas, tokens: Tensor) -> Canvas:
        """A canvas of one row with a finished image, tokens [1, n], behind it."""
        sp = self.settings.specials
        return extended(front, (sp.soi, *tokens[0].tolist(), sp.eoi))

    def _filled_in(self, blank: Canvas, given: dict[Modality, Tensor]) -> Canvas:
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


def _check_guidance(sampling: Sampling) -> None:
    if sampling.text_guidance:
        raise ValueError("a text of Show-o is not guided: set text_guidance (rollout.text_guidance) to 0")


def extended(front: Canvas, ids: Sequence[int], spans: tuple[Span, ...] = ()) -> Canvas:
    """A canvas with the same ids behind each of its rows."""
    more = torch.tensor(list(ids), dtype=torch.int64, device=front.ids.device).expand(len(front.ids), -1)
    real = torch.ones_like(more, dtype=torch.bool)
    return replace(front, ids=torch.cat((front.ids, more), 1), attention=torch.cat((front.attention, real), 1), spans=spans)


def image_blocks(ids: Tensor, soi: int, eoi: int, mmu: int) -> Tensor:
    """Blocks int64 [batch, length] of ids, 0 = text: each image from its ``<|soi|>`` to its ``<|eoi|>``, and with it the ``<|mmu|>`` in
    front of one that is to be understood, as ``create_attention_mask_for_mmu`` has it."""
    found = between(ids, soi, eoi)
    return torch.where(ids == mmu, F.pad(found[:, 1:], (0, 1)), found)


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
