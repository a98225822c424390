"""The ``mmada`` family: a masked-diffusion LLaDA backbone that denoises text and image tokens together."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from pararl.types import MODALITIES, TASKS, Modality, Output, Prompt, Rollout, Segment, Task
from policies.backbones.llada import MMadaModelLM
from policies.base import Draws, Policy, Sampling, StepTokens
from policies.image.magvitv2 import MAGVITv2
from policies.layout import Canvas, Span, Specials, Vocabulary, canvas
from policies.likelihood.masked import elbo, hidden_sets, hidden_token_logprobs, mask_ratios
from policies.sampling.denoise import Logits, SegmentPlan, SegmentTrace, denoise, image_plan, text_plan
from policies.sampling.schedules import shared_steps
from policies.weights import check_plain, no_progress_bars, read_model

POLICY_FILE = "policy.json"
TEXT_ONLY: tuple[Task, ...] = ("t2t", "i2t")
"""Tasks whose output is text alone."""
IMAGE_INPUT: dict[Task, bool | None] = {"t2t": False, "i2t": True, "t2i": False, "edit": True, "interleaved": None}
"""Whether a task reads an image; None = with or without."""


@dataclass(frozen=True, slots=True)
class MMadaSettings:
    """What a directory's ``policy.json`` says beside the weights."""

    grid: tuple[int, int] = (32, 32)
    """Image tokens, rows and columns."""
    prompt_tokens: int = 512
    """Longest prompt text in tokens."""
    text_tokens: int = 256
    """Generated text window of interleaved outputs, in tokens."""
    text_block: int = 64
    """Block of the text sampler there, in tokens."""
    answer_tokens: int = 512
    """Generated text window of tasks that produce text alone, in tokens."""
    answer_block: int = 128
    """Block of the text sampler there, in tokens."""
    dialogue: str = (
        "<|start_header_id|>user<|end_header_id|>\n{text}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n"  # as released
    )
    """How a question stands in front of its answer, special tokens spelled out; ``{text}`` is the prompt's text."""
    tasks: tuple[Task, ...] = TASKS
    """Tasks that this checkpoint was trained for."""
    image_ratio: tuple[float, float] = (0.6, 1.0)
    """Mask ratios at which image likelihoods are drawn (MaskGRPO: high ratios carry the signal)."""
    text_ratio: tuple[float, float] = (0.0, 1.0)
    """Mask ratios at which text likelihoods are drawn."""
    steps: int = 128
    """Denoising steps of a sample, where nobody says otherwise."""
    choice_temperature: float = 1.0
    """Likewise the Gumbel temperature of the image sampler's choices."""
    specials: Specials = field(default_factory=Specials)


class MMadaPolicy(Policy):
    """MMaDA: text and image tokens of one vocabulary, denoised together with bidirectional attention."""

    family = "mmada"
    # The head is called ff_out as well: only the ff_out inside a block may be wrapped.
    lora_targets = r".*\.blocks\.\d+\.(q_proj|k_proj|v_proj|attn_out|ff_proj|up_proj|ff_out)"

    def __init__(self, model: MMadaModelLM, tokenizer: PreTrainedTokenizerFast, images: MAGVITv2, settings: MMadaSettings) -> None:
        self.model: MMadaModelLM = model.eval()
        self.tokenizer = tokenizer
        self.images = images.eval().requires_grad_(False)
        self.settings = settings
        self.tasks = settings.tasks
        self.grid = settings.grid
        self.sampling = Sampling(steps=settings.steps, choice_temperature=settings.choice_temperature)
        specials = settings.specials
        others = {i for i in tokenizer.all_special_ids if i is not None} | set(asdict(specials).values())
        self.vocabulary = Vocabulary(len(tokenizer), images.codebook_size, specials, tuple(sorted(others - {specials.eos})))
        if self.vocabulary.rows("image").stop > model.config.embedding_size:
            raise ValueError(
                f"{len(tokenizer)} text ids and {images.codebook_size} codes do not fit {model.config.embedding_size} embedding rows"
            )
        bias = torch.zeros(len(tokenizer))
        bias[[i for i in self.vocabulary.forbidden if i < len(tokenizer)]] = -torch.inf
        self.text_bias = bias

    @classmethod
    def load(cls, directory: Path) -> "MMadaPolicy":
        """Read a directory written by ``save``. Raises ValueError where its weights are not exactly those of the model."""
        raw = json.loads((directory / POLICY_FILE).read_text())["settings"]
        values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in raw.items()}
        settings = MMadaSettings(**{**values, "specials": Specials(**raw["specials"])})
        tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
        return cls(read_model(MMadaModelLM, directory), tokenizer, read_model(MAGVITv2, directory / "image_tokenizer"), settings)

    def save(self, directory: Path) -> None:
        check_plain(self.model)
        with no_progress_bars():
            self.model.save_pretrained(directory)
            self.tokenizer.save_pretrained(directory)
            self.images.save_pretrained(directory / "image_tokenizer")
        (directory / POLICY_FILE).write_text(json.dumps({"family": self.family, "settings": asdict(self.settings)}, indent=1) + "\n")

    # ---- text and pixels

    def encode_text(self, text: str) -> list[int]:
        """Token ids of a text, without specials. Raises ValueError that names the words which a closed vocabulary does not have."""
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        unknown = self.tokenizer.unk_token_id
        if unknown is not None and unknown in ids:
            words = dict.fromkeys(w for w in text.split() if unknown in self.tokenizer.encode(w, add_special_tokens=False))
            raise ValueError(f"this policy's vocabulary has no {', '.join(map(repr, words))} (in {text!r}): use other words")
        return ids

    def decode_text(self, ids: Sequence[int]) -> str:
        """Text of generated ids, up to the first end-of-sequence token."""
        ids = list(ids)
        end = ids.index(self.settings.specials.eos) if self.settings.specials.eos in ids else len(ids)
        return str(self.tokenizer.decode(ids[:end]))

    @torch.no_grad()
    def encode_images(self, pixels: np.ndarray) -> Tensor:
        """Vocabulary ids int64 [batch, tokens] of uint8 pixels [batch, height, width, 3]."""
        x = torch.from_numpy(np.ascontiguousarray(pixels)).to(self.device).movedim(-1, 1).float() / 127.5 - 1
        return self.images.get_code(x) + self.vocabulary.text_size

    @torch.no_grad()
    def decode_images(self, ids: Tensor, micro: int = 256) -> np.ndarray:
        """Pixels uint8 [batch, height, width, 3] of vocabulary ids [batch, tokens]."""
        parts = [self.images.decode_code(part - self.vocabulary.text_size, self.settings.grid) for part in ids.split(micro)]
        return ((torch.cat(parts).clamp(-1, 1) + 1) * 127.5).round().byte().movedim(1, -1).cpu().numpy()

    # ---- layout

    def prefix(self, prompt: Prompt, shown: Sequence[int] = (), conditional: bool = True) -> list[int]:
        """Ids in front of the generated part: ``<task> <soi> shown <eoi> <bos> text <eos>``, without an image ``<task> <bos> text <eos>``.

        ``shown``: vocabulary ids of the input image. Tasks that produce text alone end in the open dialogue instead of ``<eos>``, and
        t2t has no task token (MMaDA's ``mmu`` and ``lm``). The unconditional prefix has no text. Raises ValueError for a text that is
        too long.
        """
        s = self.settings.specials
        answers = prompt.task in TEXT_ONLY
        text = self.encode_text(self.settings.dialogue.replace("{text}", prompt.text) if answers else prompt.text) if conditional else []
        if len(text) > self.settings.prompt_tokens:
            limit = self.settings.prompt_tokens
            raise ValueError(f"prompt {prompt.id} has {len(text)} tokens, more than the {limit} this policy reads; shorten it")
        task = {"t2t": [], "i2t": [s.mmu], "t2i": [s.t2i], "edit": [s.t2i], "interleaved": [s.interleave]}[prompt.task]
        image = [s.soi, *shown, s.eoi] if prompt.image is not None else []
        return [*task, *image, s.bos, *text, *([] if answers else [s.eos])]

    def canvas(
        self,
        prompts: Sequence[Prompt],
        conditional: bool = True,
        width: int | None = None,
        shown: Sequence[Sequence[int]] | None = None,
    ) -> Canvas:
        """The blank canvas of prompts of one task; ``shown`` = what ``self.shown(prompts)`` gave, where it is known already."""
        s, task = self.settings, prompts[0].task
        image_tokens = 0 if task in TEXT_ONLY else s.grid[0] * s.grid[1]
        text_tokens = s.answer_tokens if task in TEXT_ONLY else s.text_tokens if task == "interleaved" else 0
        given = self.shown(prompts) if shown is None else shown
        prefixes = [self.prefix(p, ids, conditional) for p, ids in zip(prompts, given, strict=True)]
        return canvas(prefixes, image_tokens, text_tokens, s.specials, width)

    def shown(self, prompts: Sequence[Prompt], together: bool = False) -> list[list[int]]:
        """Vocabulary ids of each prompt's input image, empty where it has none; equal images are encoded once.

        One by one: in a batch the encoder rounds differently, and a bit near 0 would depend on a prompt's batch mates. ``together``: all
        in one batch, which is several times faster, for training on examples that come once.
        Raises ValueError for a task that this checkpoint does not do and for an image that is missing, unasked or not of its size.
        """
        for prompt in prompts:
            self._check_input(prompt)
        images = {p.image.tobytes(): p.image for p in prompts if p.image is not None}
        pixels = [np.stack(list(images.values()))] if together and images else [image[None] for image in images.values()]
        rows = [row for part in pixels for row in self.encode_images(part).tolist()]
        found = dict(zip(images, rows, strict=True))
        return [[] if p.image is None else found[p.image.tobytes()] for p in prompts]

    def _check_input(self, prompt: Prompt) -> None:
        if prompt.task not in self.settings.tasks:
            raise ValueError(f"prompt {prompt.id}: this policy does {', '.join(self.settings.tasks)}, not {prompt.task}")
        wanted, image = IMAGE_INPUT[prompt.task], prompt.image
        if wanted is not None and wanted != (image is not None):
            raise ValueError(f"prompt {prompt.id}: {prompt.task} {'needs an' if wanted else 'takes no'} input image")
        shape = (*self.image_size, 3)
        if image is not None and (image.shape != shape or image.dtype != np.uint8):
            given = f"{image.dtype} {list(image.shape)}"
            raise ValueError(f"prompt {prompt.id}: its image is {given}, this policy reads uint8 {list(shape)}; convert or resize it")

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of input and output images in pixels."""
        rows, columns = self.settings.grid
        return rows * self.images.factor, columns * self.images.factor

    # ---- forward on the needed positions and rows

    def rows(self, hidden: Tensor, modality: Modality) -> Tensor:
        """Logits over the rows of a modality; forbidden text rows at -inf."""
        logits = self.model.head(hidden, self.vocabulary.rows(modality))
        return logits + self.text_bias.to(logits) if modality == "text" else logits

    def offset(self, modality: Modality) -> int:
        return self.vocabulary.rows(modality).start

    def logits(self, blank: Canvas, unconditional: Canvas | None, guidance: float) -> Logits:
        """The function that ``denoise`` calls; guidance runs both branches as one batch."""

        def call(ids: Tensor, spans: Sequence[Span]) -> list[tuple[Tensor, Tensor]]:
            if unconditional is None:
                hidden = self.model.hidden(ids, blank.attention)
                return [(x, x) for x in (self.rows(hidden[:, s.columns], s.modality) for s in spans)]
            free = unconditional.ids.clone()
            free[:, blank.spans[0].start :] = ids[:, blank.spans[0].start :]
            both = self.model.hidden(torch.cat((ids, free)), torch.cat((blank.attention, unconditional.attention)))
            out = []
            for s in spans:
                plain, without = self.rows(both[:, s.columns], s.modality).chunk(2)
                # Text is sampled without guidance, as in MMaDA-Parallel.
                out.append((plain, plain if s.modality == "text" else plain + guidance * (plain - without)))
            return out

        return call

    def plans(self, blank: Canvas, sampling: Sampling) -> list[SegmentPlan]:
        """One plan a span: MaskGIT for images, block-wise for text; both share the steps as ``sampling.decoding`` says."""
        joint = len(blank.spans) > 1
        plans = []
        for span in blank.spans:
            active = range(sampling.steps)
            if joint:
                active = shared_steps(sampling.steps, sampling.decoding)[MODALITIES.index(span.modality)]
            if span.modality == "image":
                plan = image_plan(span, len(active), len(active), sampling.temperature, sampling.choice_temperature)
            else:
                block = self.settings.text_block if joint else self.settings.answer_block
                plan = text_plan(span, len(active), block, sampling.temperature)
            plans.append(plan.within(active, sampling.steps))
        return plans

    @torch.no_grad()
    def generate(self, prompts: Sequence[Prompt], seeds: Sequence[int], sampling: Sampling, version: int = 0) -> list[Rollout]:
        done: dict[int, Rollout] = {}
        for task in dict.fromkeys(p.task for p in prompts):
            index = [i for i, p in enumerate(prompts) if p.task == task]
            batch = self._generate([prompts[i] for i in index], [seeds[i] for i in index], sampling, version)
            done.update(zip(index, batch, strict=True))
        return [done[i] for i in range(len(prompts))]

    def _generate(self, prompts: list[Prompt], seeds: list[int], sampling: Sampling, version: int) -> list[Rollout]:
        shown = self.shown(prompts)
        blank = self._to_device(self.canvas(prompts, shown=shown))
        guided = sampling.guidance and blank.span("image") is not None
        unconditional = self._to_device(self.canvas(prompts, False, self._prefix_width(blank), shown)) if guided else None
        plans = self.plans(blank, sampling)
        noise = torch.stack([self._noise(seed, sampling.steps, sum(len(p.span) for p in plans)) for seed in seeds], dim=2).to(self.device)
        offsets = [self.offset(p.span.modality) for p in plans]
        traces = denoise(self.logits(blank, unconditional, sampling.guidance), blank, plans, noise, self.settings.specials.mask, offsets)
        recorded, decoded = zip(*(recorded_steps(prompt, sampling) for prompt in prompts), strict=True)
        outputs = self._outputs(traces, None)
        guesses = self._guesses(traces, recorded, decoded)
        return [
            Rollout(
                prompt=prompt,
                index=0,
                seed=seeds[i],
                version=version,
                steps=sampling.steps,
                recorded=recorded[i],
                segments=tuple(segment(trace, i, recorded[i]) for trace in traces),
                output=outputs[i],
                guesses=guesses[i],
            )
            for i, prompt in enumerate(prompts)
        ]

    def _guesses(
        self, traces: Sequence[SegmentTrace], recorded: Sequence[tuple[int, ...]], decoded: Sequence[tuple[int, ...]]
    ) -> list[tuple[Output | None, ...]]:
        """Per row its guesses at the recorded steps, None where not decoded; an empty tuple where none is wanted at all."""
        if not decoded[0]:
            return [()] * len(decoded)
        columns = [self._outputs(traces, [row[k] for row in decoded]) for k in range(len(decoded[0]))]
        found = [dict(zip(row, outputs, strict=True)) for row, *outputs in zip(decoded, *columns, strict=True)]
        return [tuple(by_step.get(step) for step in steps) for steps, by_step in zip(recorded, found, strict=True)]

    def _prefix_width(self, blank: Canvas) -> int:
        return blank.spans[0].start - 1

    def _to_device(self, c: Canvas) -> Canvas:
        return Canvas(c.ids.to(self.device), c.attention.to(self.device), c.spans)

    @staticmethod
    def _noise(seed: int, steps: int, tokens: int) -> Tensor:
        """Uniforms [2, steps, tokens] of one rollout: from its own seed, so that its batch mates do not matter."""
        return torch.rand(2, steps, tokens, generator=torch.Generator().manual_seed(seed))

    def _outputs(self, traces: Sequence[SegmentTrace], steps: Sequence[int] | None) -> list[Output]:
        """Decoded outputs, final (None) or the guess of each row at its given step."""
        parts: dict[str, list] = {}
        for trace in traces:
            batch = len(trace.tokens)
            tokens = trace.tokens if steps is None else trace.guesses[torch.tensor(steps), torch.arange(batch)]
            if trace.modality == "image":
                parts["image"] = list(self.decode_images(tokens))
            else:
                parts["text"] = [self.decode_text(row) for row in tokens.tolist()]
        count = len(traces[0].tokens)
        return [Output(**{name: values[i] for name, values in parts.items()}) for i in range(count)]

    # ---- likelihoods

    def _filled(self, rollouts: Sequence[Rollout]) -> tuple[Canvas, dict[Modality, tuple[Tensor, Tensor, Tensor]]]:
        """The blank canvas of rollouts of one task, and per modality their tokens, commit steps and behaviour log-probs [batch, n]."""
        if len({r.prompt.task for r in rollouts}) != 1:
            raise ValueError("a likelihood batch holds rollouts of one task; split it by task")
        blank = self._to_device(self.canvas([r.prompt for r in rollouts]))
        out: dict[Modality, tuple[Tensor, Tensor, Tensor]] = {}
        for span in blank.spans:
            segments = [r.segment(span.modality) for r in rollouts]
            stacked = [np.stack([getattr(s, name) for s in segments]) for name in ("tokens", "commit_step", "logprob")]
            out[span.modality] = tuple(torch.from_numpy(x).to(self.device) for x in stacked)  # type: ignore[assignment]
        return blank, out

    def draws(self, rollouts: Sequence[Rollout], n: int, generator: torch.Generator) -> Draws:
        prompts = list(dict.fromkeys(r.prompt.id for r in rollouts))
        which = torch.tensor([prompts.index(r.prompt.id) for r in rollouts])
        masks: dict[Modality, Tensor] = {}
        weights: dict[Modality, Tensor] = {}
        clock = mask_ratios(n, len(prompts), 0.0, 1.0, generator)  # one for both modalities, as in training and in the sampler
        for seg in rollouts[0].segments:
            low, high = self.settings.image_ratio if seg.modality == "image" else self.settings.text_ratio
            ratios = low + (high - low) * clock
            uniforms = torch.rand(n, len(prompts), len(seg.tokens), generator=generator)
            masks_of, weights_of = hidden_sets(ratios, uniforms)
            masks[seg.modality], weights[seg.modality] = masks_of[:, which].to(self.device), weights_of[:, which].to(self.device)
        return Draws(masks, weights)

    def log_likelihood(self, rollouts: Sequence[Rollout], draws: Draws) -> Tensor:
        blank, tokens = self._filled(rollouts)
        total = torch.zeros(len(rollouts), 2, device=self.device)
        for draw in draws:
            ids = blank.ids.clone()
            for span in blank.spans:
                ids[:, span.columns] = tokens[span.modality][0].masked_fill(draw.masks[span.modality][0], self.settings.specials.mask)
            hidden = self.model.hidden(ids, blank.attention)
            columns = []
            for modality in MODALITIES:
                place = blank.span(modality)
                if place is None:
                    columns.append(torch.zeros(len(rollouts), device=self.device))
                    continue
                logp = self._token_logprobs(hidden, place, tokens[modality][0], draw.masks[modality][0])
                columns.append(elbo(logp, draw.weights[modality][0]))
            total = total + torch.stack(columns, -1)
        return total / len(draws)

    def _token_logprobs(self, hidden: Tensor, span: Span, targets: Tensor, wanted: Tensor) -> Tensor:
        modality = span.modality
        return hidden_token_logprobs(hidden[:, span.columns], lambda h: self.rows(h, modality), targets, wanted, self.offset(modality))

    def step_tokens(self, rollouts: Sequence[Rollout], steps: Sequence[Sequence[int]]) -> dict[Modality, StepTokens]:
        blank, tokens = self._filled(rollouts)
        batch, count = len(rollouts), len(steps[0])
        when = torch.tensor(steps, device=self.device).flatten()[:, None]  # [batch * step, 1]
        ids = blank.ids.repeat_interleave(count, 0)
        for span in blank.spans:
            values, stamps, _ = (x.repeat_interleave(count, 0) for x in tokens[span.modality])
            ids[:, span.columns] = torch.where(stamps < when, values, self.settings.specials.mask)
        hidden = self.model.hidden(ids, blank.attention.repeat_interleave(count, 0))
        out: dict[Modality, StepTokens] = {}
        for span in blank.spans:
            values, stamps, behaviour = (x.repeat_interleave(count, 0) for x in tokens[span.modality])
            committed = stamps == when
            logp = self._token_logprobs(hidden, span, values, committed)
            shape = (batch, count, len(span))
            out[span.modality] = StepTokens(logp.view(shape), committed.view(shape), (behaviour * committed).view(shape))
        return out

    def fill(self, segment: Segment) -> np.ndarray:
        """Behind the first end token of a text."""
        ends = segment.tokens == (self.settings.specials.eos if segment.modality == "text" else -1)
        return ends.cumsum() > ends

    def words(self, segment: Segment) -> np.ndarray:
        """Counted in what the tokens up to each one decode to."""
        ids = segment.tokens.tolist()
        end = ids.index(self.settings.specials.eos) if self.settings.specials.eos in ids else len(ids)
        counts = [len(self.decode_text(ids[: i + 1]).split()) for i in range(end)]
        return np.array(counts + [0] * (len(ids) - end)) - 1

    @torch.no_grad()
    def canary(self) -> Tensor:
        task = "t2i" if "t2i" in self.settings.tasks else self.settings.tasks[0]
        black = np.zeros((*self.image_size, 3), np.uint8) if IMAGE_INPUT[task] else None
        blank = self._to_device(self.canvas([Prompt("canary", task, "", image=black)]))
        span = blank.spans[0]
        hidden = self.model.hidden(blank.ids, blank.attention)[:, span.columns]
        return self.model.head(hidden, self.vocabulary.rows(span.modality)).float().cpu()


def recorded_steps(prompt: Prompt, sampling: Sampling) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The random subset of steps whose guesses are kept, and the subset of these that is decoded: functions of the prompt and
    ``sampling.round``. Raises ValueError for more than there are."""
    wanted = sampling.recorded if sampling.guesses is None else sampling.guesses
    if not wanted <= sampling.recorded <= sampling.steps:
        raise ValueError(f"{wanted} decoded of {sampling.recorded} recorded of {sampling.steps} steps: there are not that many")
    rng = np.random.default_rng(int.from_bytes(hashlib.blake2b(f"{prompt.id}|{sampling.round}".encode(), digest_size=8).digest()))
    recorded = sorted(rng.choice(sampling.steps, sampling.recorded, replace=False).tolist())
    return tuple(recorded), tuple(sorted(rng.choice(recorded, wanted, replace=False).tolist() if wanted else []))


def segment(trace: SegmentTrace, row: int, recorded: Sequence[int]) -> Segment:
    """The record of one row of a trace."""
    return Segment(
        modality=trace.modality,
        tokens=trace.tokens[row].cpu().numpy(),
        commit_step=trace.commit_step[row].to(torch.int16).cpu().numpy(),
        logprob=trace.logprob[row].float().cpu().numpy(),
        guesses=trace.guesses[list(recorded), row].cpu().numpy(),
    )
