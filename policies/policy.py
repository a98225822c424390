"""A policy: a layout, a text head and an image head over a backbone. It samples, and tells what samples are worth to it."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pararl.files import atomic_files
from pararl.options import Drawing, Sampling
from pararl.types import MODALITIES, Latents, Modality, Output, Prompt, Rollout, Segment, Task
from policies.backbones.layers import told
from policies.batch import Batch
from policies.canvas import Canvas, Span
from policies.heads.base import Head, passes, stages
from policies.heads.tokens import TokenLogits
from policies.layout import Layout
from policies.likelihood.masked import elbo
from policies.records import Draws, DrawTokens, StepTokens
from policies.sampling.sampler import Sampler
from policies.sequences import Seen, View, device_of
from policies.settings import IMAGE_INPUT, Settings
from policies.sources import POLICY_FILE
from policies.weights import check_plain, no_progress_bars


class Policy:
    """One unified model.

    Likelihoods are guidance-free, over the vocabulary rows of the modality, in nats, and normalised per modality by its number of tokens.
    Methods that take rollouts take them as they are, or as ``prepare`` has laid them out.
    """

    model: Any
    """The backbone, an ordinary torch module: ``model(input_ids)`` gives its logits. Adapters are injected into it."""

    def __init__(
        self,
        family: str,
        model: Any,
        layout: Layout,
        *,
        tokens: TokenLogits,
        text: Head,
        image: Head,
        lora_targets: str,
        lora_parameters: tuple[str, ...] = (),
        flow_noise: float = 0.0,
    ) -> None:
        """``text`` and ``image`` may be one head, which then samples both together. ``lora_targets``: regular expression of the linear
        layers that an adapter wraps; ``lora_parameters``: names of parameters without a layer of their own, such as fused experts.
        ``flow_noise``: of the sampler of continuous images, where nobody says otherwise.

        Raises ValueError where the vocabulary does not fit the backbone.
        """
        self.family, self.model, self.layout = family, model.eval(), layout
        self.lora_targets, self.lora_parameters = lora_targets, lora_parameters
        self.tokens = tokens
        """Logits of the vocabulary by modality."""
        self.heads: Mapping[Modality, Head] = {"text": text, "image": image}
        self.sampler = Sampler(layout, self.heads, self.model)
        vocabulary = layout.text.vocabulary
        if vocabulary.rows("image").stop > model.config.embedding_size:
            raise ValueError(
                f"{vocabulary.text_size} text ids and {vocabulary.codes} codes do not fit {model.config.embedding_size} embedding rows"
            )
        self.tasks: tuple[Task, ...] = self.settings.tasks
        """What this checkpoint was trained for."""
        self.grid: tuple[int, int] = self.settings.grid
        """Rows and columns of the tokens of an image, in raster order."""
        self.sampling = Sampling(
            steps=self.settings.steps,
            choice_temperature=self.settings.choice_temperature,
            flow_noise=flow_noise,
        )
        """How this checkpoint is best sampled; what ``sample`` uses when nothing else is asked for."""

    @property
    def settings(self) -> Settings:
        """What its ``policy.json`` says."""
        return self.layout.settings

    @property
    def device(self) -> torch.device:
        """Where the backbone computes."""
        return device_of(self.model)

    def to(self, device: str, dtype: torch.dtype | None = None) -> "Policy":
        """Move every part that is a torch module, the backbone as ``dtype`` (None = as it is); returns the policy itself.

        Other parts keep their dtype: the image tokenizer's codes are the signs of numbers near 0. Cast before an adapter is attached,
        which is float32 then whatever the backbone is.
        """
        self.layout.images.module.to(device)
        self.model.to(device, dtype) if dtype else self.model.to(device)
        return self

    def checkpoint_gradients(self, on: bool) -> None:
        """Whether the backward pass computes the blocks of the backbone again, of which only the inputs are kept then.

        Raises ValueError where the backbone has no such switch.
        """
        if on and not hasattr(self.model, "gradient_checkpointing"):
            raise ValueError(f"{type(self.model).__name__} cannot checkpoint gradients: set learner.gradient_checkpointing to false")
        self.model.gradient_checkpointing = on

    def save(self, directory: str | Path) -> None:
        """Write what ``policies.load`` reads: safetensors and JSON only. Raises ValueError while ``model`` carries an adapter."""
        check_plain(self.model)
        # Files that other stages of a pretraining left in the directory stay.
        with no_progress_bars(), atomic_files(Path(directory), last=POLICY_FILE) as part:
            self.model.save_pretrained(part)
            self.layout.text.tokenizer.save_pretrained(part)
            self.layout.images.module.save_pretrained(part / "image_tokenizer")
            (part / POLICY_FILE).write_text(json.dumps({"family": self.family, "settings": asdict(self.settings)}, indent=1) + "\n")

    # ---- sampling

    def generate(self, prompts: Sequence[Prompt], seeds: Sequence[int], sampling: Sampling, version: int = 0) -> list[Rollout]:
        """One rollout per prompt, each a function of its prompt, its seed and the weights; the group index is left at 0.

        Prompts may mix tasks. Raises ValueError for a task that the policy does not do and for a prompt that is too long. An input image
        that is missing, unasked or not of the policy's size is an error too.
        """
        return self.sampler.generate(prompts, seeds, sampling, version)

    def sample(
        self,
        texts: Sequence[str] | str,
        seed: int = 0,
        task: Task = "t2i",
        sampling: Sampling | None = None,
        images: Sequence[np.ndarray] | None = None,
    ) -> list[Output]:
        """Outputs for plain prompt texts: the short way for a person. Text i is sampled with seed + i.

        ``images``: one input image per text, uint8 [height, width, 3], for the tasks that read one. Raises ValueError for another number
        of images than of texts.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        if images is not None and len(images) != len(texts):
            raise ValueError(f"{len(images)} images for {len(texts)} texts: give one image per text")
        given = [None] * len(texts) if images is None else images
        pairs = zip(texts, given, strict=True)
        prompts = [Prompt(id=f"text-{i}", task=task, text=text, image=image) for i, (text, image) in enumerate(pairs)]
        return [r.output for r in self.generate(prompts, [seed + i for i in range(len(texts))], sampling or self.sampling)]

    def mixed(self, prompt: Prompt, seed: int = 0, sampling: Sampling | None = None, images: int = 4) -> list[Output]:
        """Texts and images as the policy alternates them; see ``policies.sampling.mixed``."""
        from policies.sampling.mixed import mixed

        return mixed(self, prompt, seed, sampling or self.sampling, images)

    # ---- likelihoods

    def prepare(self, rollouts: Sequence[Rollout]) -> Batch:
        """Rollouts of any tasks laid out for likelihoods: their prompts as ids, their input images encoded, each once."""
        return rollouts if isinstance(rollouts, Batch) else Batch.of(self.layout, self.device, rollouts)

    def draws(self, rollouts: Sequence[Rollout], n: int, generator: torch.Generator, drawing: Drawing | None = None) -> Draws:
        """Shared randomness for ``n`` Monte-Carlo draws, made as ``drawing`` says; rollouts of one prompt get the same."""
        batch = self.prepare(rollouts)
        prompts = list(dict.fromkeys(r.prompt.id for r in batch))
        which = torch.tensor([prompts.index(r.prompt.id) for r in batch])
        of_head: dict[Head, list[Modality]] = {}
        for modality in dict.fromkeys(span.modality for span in batch.canvas.spans):
            of_head.setdefault(self.heads[modality], []).append(modality)
        how = drawing or Drawing()
        first, *others = (head.draws(batch, modalities, which, n, generator, how) for head, modalities in of_head.items())
        return first.joined(others)

    def log_likelihood(self, rollouts: Sequence[Rollout], draws: Draws) -> Tensor:
        """Mean over the draws of the estimated log-likelihood per token, float32 [batch, modality], differentiable; 0 where absent."""
        batch = self.prepare(rollouts)
        total = torch.zeros(len(batch), len(MODALITIES), device=self.device)
        for draw in draws:
            found = self.draw_tokens(batch, draw)
            absent = torch.zeros(len(batch), device=self.device)
            columns = [elbo(found[m].logprob, draw.weights[m][0]) if m in found else absent for m in MODALITIES]
            total = total + torch.stack(columns, -1)
        return total / len(draws)

    def draw_tokens(self, rollouts: Sequence[Rollout], draw: Draws) -> dict[Modality, DrawTokens]:
        """The tokens that one draw counts, per modality, differentiable: ``log_likelihood`` is their mean, and that over draws.

        The tokens of several segments of a modality stand one behind the other.
        """
        batch = self.prepare(rollouts)
        views = [self.heads[span.modality].at_draw(batch, place, draw) for place, span in enumerate(batch.canvas.spans)]
        found: dict[Modality, list[DrawTokens]] = {}
        for place, span, seen in self._told(batch, views):
            found.setdefault(span.modality, []).append(self.heads[span.modality].draw_tokens(seen, batch, place, draw))
        return {modality: DrawTokens.joined(parts) for modality, parts in found.items()}

    def step_tokens(self, rollouts: Sequence[Rollout], steps: Sequence[Sequence[int]]) -> dict[Modality, StepTokens]:
        """Conditionals of the tokens that each rollout committed at its given steps (equally many for all), differentiable.

        Raises ValueError for a head whose moves are known at the recorded steps alone.
        """
        batch, when = self.prepare(rollouts), torch.tensor(steps, device=self.device)
        # Where nothing in the sequence changes from step to step, one forward tells the tokens of all.
        copies = when.shape[1] if any(self.heads[span.modality].by_step for span in batch.canvas.spans) else 1
        views = [self.heads[span.modality].at_steps(batch, place, when[:, :copies]) for place, span in enumerate(batch.canvas.spans)]
        found: dict[Modality, list[StepTokens]] = {}
        for place, span, seen in self._told(batch, views, copies):
            found.setdefault(span.modality, []).append(self.heads[span.modality].step_tokens(seen, batch, place, when, copies))
        return {modality: StepTokens.joined(parts) for modality, parts in found.items()}

    def _told(self, batch: Batch, views: Sequence[View], copies: int = 1) -> Iterator[tuple[int, Span, Seen]]:
        """What forwards tell of each segment of rollouts, by its place; ``views``: what it holds in the forward that tells it."""
        spans = batch.canvas.spans

        def finished(place: int) -> View:
            return self.heads[spans[place].modality].view(batch.stacked(place, "tokens").repeat_interleave(copies, 0))

        seen = self._passes(batch.canvas.repeated(copies), dict(zip(spans, views, strict=True)), lambda span: finished(spans.index(span)))
        return ((place, span, seen[span]) for place, span in enumerate(spans))

    def _passes(self, canvas: Canvas, views: Mapping[Span, View], finished: Callable[[Span], View]) -> dict[Span, Seen]:
        """What forwards of a canvas tell of its spans, each of which holds its view there and is ``finished`` in those behind it."""
        parts = passes(self.heads, canvas, self.layout.causal)
        found: dict[Span, Seen] = {}
        for now, following in zip(parts, [*parts[1:], None], strict=True):
            front = canvas if following is None else canvas.front(following[0].first)
            found |= self._look(front, {span: views[span] for span in now}, {span: finished(span) for span in found})
        return found

    def _look(self, canvas: Canvas, views: Mapping[Span, View], finished: Mapping[Span, View] | None = None) -> dict[Span, Seen]:
        """One forward of a canvas whose segments hold the ``views``: what it tells of each. Those in front of them may be ``finished``."""
        sequences = self.layout.sequences(canvas, {**(finished or {}), **views})
        heads = {span: self.heads[span.modality] for span in views}
        columns = {span: head.columns(span).to(sequences.ids.device) for span, head in heads.items()}
        if any(head.whole for head in heads.values()):
            every = self.model.hidden(sequences)
            return {s: Seen(every if head.whole else every[:, columns[s]], sequences) for s, head in heads.items()}
        found = self.model.hidden(sequences, torch.cat(list(columns.values())))
        parts = found.split([len(c) for c in columns.values()], 1)
        return {span: Seen(part, sequences) for span, part in zip(columns, parts, strict=True)}

    # ---- what a segment means

    def fill(self, segment: Segment | Latents) -> np.ndarray:
        """Which tokens of a segment mean nothing, bool [n]: those behind the end of a text."""
        if segment.modality == "text" and isinstance(segment, Segment):
            return self.layout.text.fill(segment)
        return np.zeros(len(segment.tokens), bool)

    def words(self, segment: Segment | Latents) -> np.ndarray:
        """Which word of a text, parted by white space, each of its tokens belongs to, int64 [n]; -1 where to none."""
        if segment.modality == "text" and isinstance(segment, Segment):
            return self.layout.text.words(segment)
        return np.full(len(segment.tokens), -1)

    # ---- training, and proof of an adapter

    def lessons(self, canvas: Canvas, clean: Mapping[Span, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """The supervised losses of clean tokens in the spans of a canvas by modality, and the losses that layers of the backbone told."""
        lessons = {
            span: lesson
            for head, spans in stages(self.heads, canvas, self.layout.causal)
            for span, lesson in head.lessons({span: clean[span] for span in spans}, generator).items()
        }
        views = {span: lesson.view for span, lesson in lessons.items()}
        seen = self._passes(canvas, views, lambda span: self.heads[span.modality].view(clean[span]))
        losses: dict[str, list[Tensor]] = {}
        for span in canvas.spans:
            losses.setdefault(span.modality, []).append(lessons[span].loss(seen[span]))
        told_losses = {name.removeprefix("loss/"): value for name, value in told(self.model).items() if name.startswith("loss/")}
        return {modality: torch.stack(parts).mean() for modality, parts in losses.items()} | told_losses

    @torch.no_grad()
    def canary(self) -> Tensor:
        """Numbers of a small fixed batch, float32: what tells whether an adapter changes the model's output."""
        task = "t2i" if "t2i" in self.tasks else self.tasks[0]
        black = np.zeros((*self.layout.images.size, 3), np.uint8) if IMAGE_INPUT[task] else None
        blank = self.layout.canvas([Prompt("canary", task, "", image=black)]).to(self.device)
        shown = next((span for span in blank.spans if span.modality == "image"), blank.spans[0])
        seen = self._look(blank, {span: self.heads[span.modality].canary_view(span, self.device) for span in blank.spans})
        return self.heads[shown.modality].canary(seen[shown], shown).float().cpu()
