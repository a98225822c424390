"""The ``mmada`` family: a masked-diffusion LLaDA backbone that denoises text and image tokens together."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from pararl.files import atomic_files
from pararl.options import Sampling
from pararl.steps import stretch
from pararl.types import Modality, Output, Prompt, Rollout, Segment
from policies.backbones.llada import MMadaModelLM
from policies.image.base import ImageTokenizer
from policies.layout import Canvas, Span
from policies.mmada_codec import IMAGE_INPUT, MMadaSettings, Part
from policies.mmada_likelihood import MMadaLikelihood
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
from policies.sources import POLICY_FILE, Parts
from policies.text import read_tokenizer
from policies.weights import check_plain, no_progress_bars, read_model


@dataclass(frozen=True, slots=True)
class Branch:
    """A forward of classifier-free guidance: the same outputs behind prompts of which a part is left out."""

    canvas: Canvas
    scales: Mapping[Modality, float]
    """By modality the scale s of ``logits + s (logits - those of the branch)``."""


class MMadaPolicy(MMadaLikelihood):
    """MMaDA: text and image tokens of one vocabulary, denoised together with bidirectional attention."""

    family = "mmada"
    # The head is called ff_out as well: only the ff_out inside a block may be wrapped.
    lora_targets = r".*\.blocks\.\d+\.(q_proj|k_proj|v_proj|attn_out|ff_proj|up_proj|ff_out)"

    model_class: type[PreTrainedModel] = MMadaModelLM

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, images: ImageTokenizer, settings: MMadaSettings) -> None:
        super().__init__(tokenizer, images, settings)
        self.model = model.eval()
        self.tasks = settings.tasks
        self.grid = settings.grid
        self.sampling = Sampling(steps=settings.steps, choice_temperature=settings.choice_temperature)
        if self.vocabulary.rows("image").stop > model.config.embedding_size:
            raise ValueError(f"{len(tokenizer)} text ids and {self.codes} codes do not fit {model.config.embedding_size} embedding rows")
        bias = torch.zeros(len(tokenizer))
        bias[[i for i in self.vocabulary.forbidden if i < len(tokenizer)]] = -torch.inf
        self.text_bias = bias

    @classmethod
    def load(cls, parts: Parts) -> Self:
        """Read a policy from where its parts lie. Raises ValueError where weights are not exactly those of the model, and where the
        text or the image tokenizer is another one than the backbone's."""
        settings = cls.settings_class.read(parts.settings)
        released, text = parts.text_size is not None, parts.text or parts.backbone
        model = read_model(cls.model_class, parts.backbone, released, dtype=parts.dtype, device_map=parts.device_map)
        tokenizer = read_tokenizer(text, parts.added)
        if parts.text_size not in (None, len(tokenizer)):
            raise ValueError(
                f"the text tokenizer in {text} has {len(tokenizer)} ids, that of the release {parts.text_size}: the image codes "
                "and special tokens, whose rows begin behind its words, would be others"
            )
        images = cls.read_images(parts.images)
        # A directory of ours holds both; with a release the image tokenizer comes from somewhere else.
        what, has, wants = cls.image_kinds(images, model.config)
        if released and has != wants:
            raise ValueError(
                f"the image tokenizer in {parts.images} has {has} {what}, the backbone in {parts.backbone} was trained on {wants}: name "
                "the one that it was trained with (image_tokenizer=)"
            )
        policy = cls(model, tokenizer, images, settings)
        cast(nn.Module, policy.images).to(policy.device)
        return policy

    def save(self, directory: Path) -> None:
        check_plain(self.model)
        # Files that other stages of a pretraining left in the directory stay.
        with no_progress_bars(), atomic_files(directory, last=POLICY_FILE) as part:
            self.model.save_pretrained(part)
            self.tokenizer.save_pretrained(part)
            self.images.save_pretrained(part / "image_tokenizer")
            (part / POLICY_FILE).write_text(json.dumps({"family": self.family, "settings": asdict(self.settings)}, indent=1) + "\n")

    # ---- sampling

    def logits(self, blank: Canvas, branches: Sequence["Branch"] = ()) -> Logits:
        """The function that ``denoise`` calls; the branches of guidance that its spans need run with the prompt itself as one batch."""

        def call(ids: Tensor, spans: Sequence[Span]) -> list[tuple[Tensor, Tensor]]:
            used = [b for b in branches if any(b.scales[s.modality] for s in spans)]
            rows = [ids, *(torch.cat((b.canvas.ids[:, : blank.prefix], ids[:, blank.prefix :]), 1) for b in used)]
            attention = torch.cat([blank.attention, *(b.canvas.attention for b in used)])
            found = self.hidden(torch.cat(rows), attention, spans)
            return [self.guided(hidden, s.modality, used) for s, hidden in zip(spans, found, strict=True)]

        return call

    def guided(self, hidden: Tensor, modality: Modality, branches: Sequence["Branch"]) -> tuple[Tensor, Tensor]:
        """Plain and guided logits [batch, n, rows] of the last hidden states of prompts and behind them those of their branches."""
        plain, *others = hidden.chunk(1 + len(branches))
        plain = guided = self.rows(plain, modality)
        for branch, without in zip(branches, others, strict=True):
            if branch.scales[modality]:
                # Forbidden rows are at -inf in both branches, which have no difference there.
                gap = (plain - self.rows(without, modality)).masked_fill_(plain.isneginf(), 0.0)
                guided = guided + branch.scales[modality] * gap
        return plain, guided

    def plans(self, blank: Canvas, sampling: Sampling) -> list[SegmentPlan]:
        """One plan a span: MaskGIT or emerge for images, block-wise for text; both share the steps as ``sampling.decoding`` says.

        Raises ValueError for emerge with the released decoding, which says itself how much of an image comes when.
        """
        joint = len(blank.spans) > 1
        late, emerge = joint and sampling.decoding == "released", sampling.image_sampler == "emerge"
        if late and emerge:
            raise ValueError("the emerge sampler does not go with the released decoding: take image_sampler maskgit or another decoding")
        plans = []
        for span in blank.spans:
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

    @torch.no_grad()
    def generate(self, prompts: Sequence[Prompt], seeds: Sequence[int], sampling: Sampling, version: int = 0) -> list[Rollout]:
        done: dict[int, Rollout] = {}
        for task in dict.fromkeys(p.task for p in prompts):
            index = [i for i, p in enumerate(prompts) if p.task == task]
            batch = self._generate([prompts[i] for i in index], [seeds[i] for i in index], sampling, version)
            done.update(zip(index, batch, strict=True))
        return [done[i] for i in range(len(prompts))]

    def _generate(self, prompts: list[Prompt], seeds: list[int], sampling: Sampling, version: int) -> list[Rollout]:
        recorded, decoded = zip(*(recorded_steps(prompt, sampling) for prompt in prompts), strict=True)
        traces = self._traces(prompts, seeds, sampling, recorded)
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
                segments=tuple(self.segment(trace, i, recorded[i]) for trace in traces),
                output=outputs[i],
                guesses=guesses[i],
            )
            for i, prompt in enumerate(prompts)
        ]

    def _traces(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], sampling: Sampling, recorded: Sequence[tuple[int, ...]]
    ) -> list[SegmentTrace]:
        """What happens to the segments of prompts of one task, whose guesses at their ``recorded`` steps matter."""
        blank, branches = self._canvases(prompts, sampling)
        plans = self.plans(blank, sampling)
        noise = torch.stack([self._noise(seed, sampling.steps, sum(len(p.span) for p in plans)) for seed in seeds], dim=2).to(self.device)
        offsets = [self.offset(p.span.modality) for p in plans]
        wanted = {step for steps in recorded for step in steps}
        return denoise(self.logits(blank, branches), blank, plans, noise, self.settings.specials.mask, offsets, wanted)

    def _guesses(
        self, traces: Sequence[SegmentTrace], recorded: Sequence[tuple[int, ...]], decoded: Sequence[tuple[int, ...]]
    ) -> list[tuple[Output | None, ...]]:
        """Per row its guesses at the recorded steps, None where not decoded; an empty tuple where none is wanted at all."""
        if not decoded[0]:
            return [()] * len(decoded)
        columns = [self._outputs(traces, [row[k] for row in decoded]) for k in range(len(decoded[0]))]
        found = [dict(zip(row, outputs, strict=True)) for row, *outputs in zip(decoded, *columns, strict=True)]
        return [tuple(by_step.get(step) for step in steps) for steps, by_step in zip(recorded, found, strict=True)]

    def _canvases(self, prompts: Sequence[Prompt], sampling: Sampling) -> tuple[Canvas, list["Branch"]]:
        """The blank canvas of prompts of one task, and the branches of guidance."""
        makes = {s.modality for s in self.tail(prompts[0].task).spans}
        scales: dict[Part, dict[Modality, float]] = {}
        # Answers in text alone are not guided.
        if "image" in makes and (sampling.guidance or ("text" in makes and sampling.text_guidance)):
            scales["text"] = {"image": sampling.guidance, "text": sampling.text_guidance}
        if "image" in makes and sampling.input_guidance and any(p.image is not None for p in prompts):
            scales["image"] = {"image": sampling.input_guidance, "text": 0.0}
        blank, *without = self.canvases(prompts, [None, *scales], self.shown(prompts))
        branches = [Branch(c.to(self.device), scale) for c, scale in zip(without, scales.values(), strict=True)]
        return blank.to(self.device), branches

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

    @staticmethod
    def segment(trace: SegmentTrace, row: int, recorded: Sequence[int]) -> Segment:
        """The record of one row of a trace."""
        return Segment(
            modality=trace.modality,
            tokens=trace.tokens[row].cpu().numpy(),
            commit_step=trace.commit_step[row].to(torch.int16).cpu().numpy(),
            logprob=trace.logprob[row].float().cpu().numpy(),
            guesses=trace.guesses[list(recorded), row].cpu().numpy(),
        )

    @torch.no_grad()
    def canary(self) -> Tensor:
        task = "t2i" if "t2i" in self.settings.tasks else self.settings.tasks[0]
        black = np.zeros((*self.image_size, 3), np.uint8) if IMAGE_INPUT[task] else None
        blank = self.canvas([Prompt("canary", task, "", image=black)]).to(self.device)
        span = blank.spans[0]
        hidden = self.hidden(blank.ids, blank.attention, [span])[0]
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
