"""What every family of policies gives to the loop: sampling, likelihoods and the places where an adapter goes."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, overload

import numpy as np
import torch
from torch import Tensor, nn

from pararl.options import Drawing, ImageRows, Sampling
from pararl.types import Modality, Output, Prompt, Rollout, Segment, Task
from policies.likelihood.kl import k3
from policies.sources import Parts


@dataclass(frozen=True, slots=True)
class Draws:
    """The shared randomness at which likelihoods are estimated: the same for policy and reference, for chosen and rejected."""

    masks: dict[Modality, Tensor]
    """bool [draw, batch, n]: which tokens of the modality are hidden."""
    counted: dict[Modality, Tensor]
    """bool [draw, batch, n]: which of them count; all but those of later blocks."""
    weights: dict[Modality, Tensor]
    """float32 [draw, batch]: importance weight of the draw, 1 / share of counted tokens."""
    image_rows: ImageRows = "codes"
    times: Tensor | None = None
    """float32 [draw, batch]: of a continuous image, the time at which it is seen, 0 = noise, 1 = clean."""
    noise: Tensor | None = None
    """float32 [draw, batch, n, d]: of a continuous image, the noise that it is mixed with."""

    def __len__(self) -> int:
        return len(next(iter(self.weights.values())))

    def __iter__(self) -> Iterator["Draws"]:
        """The draws one by one, each a Draws of length 1: what draw-by-draw accumulation loops over."""
        for i in range(len(self)):
            yield self._at((slice(i, i + 1),))

    def rows(self, index: Tensor) -> "Draws":
        """The draws of some of the batch's rollouts."""
        return self._at((slice(None), index))

    def _at(self, place: tuple[slice | Tensor, ...]) -> "Draws":
        masks, counted, weights = ({m: x[place] for m, x in part.items()} for part in (self.masks, self.counted, self.weights))
        times, noise = (None if x is None else x[place] for x in (self.times, self.noise))
        return Draws(masks, counted, weights, self.image_rows, times, noise)


@dataclass(frozen=True, slots=True)
class StepTokens:
    """Exact conditional log-probabilities of the tokens committed at recorded steps, of one modality."""

    logprob: Tensor
    """float32 [batch, step, n]: log-probability of token i given the sequence before the step; 0 where not committed at it."""
    committed: Tensor
    """bool [batch, step, n]: which tokens were committed at the step."""
    behaviour: Tensor
    """float32 [batch, step, n]: the same log-probabilities as the sampler recorded them; 0 where not committed."""


@dataclass(frozen=True, slots=True)
class DrawTokens:
    """What one draw tells of the tokens of one modality that it counts."""

    logprob: Tensor
    """float32 [batch, n]: what each adds to the likelihood, its log-probability where the policy has one; 0 at the others."""
    velocities: Tensor | None = None
    """float32 [batch, n, d]: of a continuous image, those that the policy predicts."""

    def divergence(self, reference: "DrawTokens") -> Tensor:
        """How far each token is from what another policy says at the same draw, float32 [batch, n]; 0 where it is not counted.

        Of tokens of a vocabulary k3, of continuous ones the mean over its numbers of the squared difference of velocities: but for a factor
        that depends on the time alone the KL of a step of the SDE, in the unit of the flow-matching loss.
        """
        if self.velocities is None or reference.velocities is None:
            return k3(self.logprob, reference.logprob)
        return (self.velocities - reference.velocities).square().mean(2)


class Batch(Sequence[Rollout]):
    """Rollouts as a policy has laid them out, once for all passes of an update; made by ``Policy.prepare``."""

    def __init__(self, rollouts: Sequence[Rollout]) -> None:
        self.rollouts = tuple(rollouts)

    @overload
    def __getitem__(self, place: int) -> Rollout: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Rollout]: ...
    def __getitem__(self, place: int | slice) -> Rollout | Sequence[Rollout]:
        return self.rollouts[place]

    def __len__(self) -> int:
        return len(self.rollouts)

    def take(self, index: Sequence[int]) -> "Batch":
        """Some of the rollouts, in the order of ``index``; nothing is laid out again."""
        return Batch([self.rollouts[i] for i in index])


class Policy(ABC):
    """One unified model: backbone, text tokenizer, image tokenizer, layout, sampler and likelihood.

    Likelihoods are guidance-free, over the vocabulary rows of the modality, in nats, and normalised per modality by its number of tokens.
    """

    family: str
    model: nn.Module
    """The backbone, an ordinary torch module: ``model(input_ids)`` gives its logits. Adapters are injected into it."""
    lora_targets: str
    """Regular expression of the linear layers that an adapter wraps."""

    tasks: tuple[Task, ...]
    """What this checkpoint was trained for."""
    grid: tuple[int, int]
    """Rows and columns of the tokens of an image, in raster order."""
    sampling: Sampling
    """How this checkpoint is best sampled; what ``sample`` uses when nothing else is asked for."""

    @property
    def device(self) -> torch.device:
        """Where the backbone computes; weights that a device map keeps on disk or on the CPU are on ``meta`` meanwhile."""
        return next(p.device for p in self.model.parameters() if not p.is_meta)

    def to(self, device: str, dtype: torch.dtype | None = None) -> "Policy":
        """Move every part that is a torch module, the backbone as ``dtype`` (None = as it is); returns the policy itself.

        Other parts keep their dtype: the image tokenizer's codes are the signs of numbers near 0. Cast before an adapter is attached,
        which is float32 then whatever the backbone is.
        """
        for part in vars(self).values():
            if isinstance(part, nn.Module):
                part.to(device)
        self.model.to(dtype)
        return self

    def checkpoint_gradients(self, on: bool) -> None:
        """Whether the backward pass computes the blocks of the backbone again, of which only the inputs are kept then.

        Raises ValueError where the backbone has no such switch.
        """
        if on and not hasattr(self.model, "gradient_checkpointing"):
            raise ValueError(f"{type(self.model).__name__} cannot checkpoint gradients: set learner.gradient_checkpointing to false")
        self.model.gradient_checkpointing = on  # type: ignore[assignment]

    @classmethod
    @abstractmethod
    def load(cls, parts: Parts) -> Self:
        """Read a policy from where its parts lie. Raises ValueError where weights are not exactly those of the model, and where the
        text or the image tokenizer is another one than the backbone's."""

    @abstractmethod
    def generate(self, prompts: Sequence[Prompt], seeds: Sequence[int], sampling: Sampling, version: int = 0) -> list[Rollout]:
        """One rollout per prompt, each a function of its prompt, its seed and the weights; the group index is left at 0.

        Prompts may mix tasks. Raises ValueError for a task that the policy does not do, a prompt that is too long, or an input image that
        is missing, unasked or not of the policy's size.
        """

    def prepare(self, rollouts: Sequence[Rollout]) -> Batch:
        """Rollouts laid out for likelihoods: every method below takes them, or rollouts, which it lays out itself."""
        return rollouts if isinstance(rollouts, Batch) else Batch(rollouts)

    @abstractmethod
    def draws(self, rollouts: Sequence[Rollout], n: int, generator: torch.Generator, drawing: Drawing | None = None) -> Draws:
        """Shared randomness for ``n`` Monte-Carlo draws, made as ``drawing`` says; rollouts of one prompt get the same."""

    @abstractmethod
    def log_likelihood(self, rollouts: Sequence[Rollout], draws: Draws) -> Tensor:
        """Mean over the draws of the estimated log-likelihood per token, float32 [batch, modality], differentiable; 0 where absent."""

    def draw_tokens(self, rollouts: Sequence[Rollout], draw: Draws) -> dict[Modality, DrawTokens]:
        """The tokens that one draw counts, per modality, differentiable: ``log_likelihood`` is their mean, and that over draws.

        Raises ValueError for a policy that cannot part its likelihood so.
        """
        raise ValueError(f"a policy of family {self.family} does not tell the likelihoods of single tokens (set --learner.negatives elbo)")

    @abstractmethod
    def step_tokens(self, rollouts: Sequence[Rollout], steps: Sequence[Sequence[int]]) -> dict[Modality, StepTokens]:
        """Conditionals of the tokens that each rollout committed at its given steps (equally many for all), differentiable."""

    def fill(self, segment: Segment) -> np.ndarray:
        """Which tokens of a segment mean nothing, bool [n], such as those behind the end of a text; none unless the policy says so."""
        return np.zeros(len(segment.tokens), bool)

    def words(self, segment: Segment) -> np.ndarray:
        """Which word of a text, parted by white space, each of its tokens belongs to, int64 [n]; -1 where to none, and for all tokens of a
        policy that does not say."""
        return np.full(len(segment.tokens), -1)

    @abstractmethod
    def canary(self) -> Tensor:
        """Logits of a small fixed batch, float32: what tells whether an adapter changes the model's output."""

    @abstractmethod
    def save(self, directory: Path) -> None:
        """Write what ``policies.load`` reads: safetensors and JSON only. Raises ValueError while ``model`` carries an adapter."""

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
