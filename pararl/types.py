"""The records that pass between the rooms of pararl; this module imports nothing of ours.

The loop they serve (``pipelines/pararl.py``)::

    for update in run.updates():
        prompts = run.prompts(update)                 # the curriculum's: task quotas, seeded cursor
        rollouts = run.generate(prompts, update)      # the fleet's: a pure function of (prompts, seed, version)
        batch = run.score(rollouts)                   # the reward workers': final outputs and recorded steps
        feedback = run.prefer(batch)                  # pure
        metrics = run.learn(batch, feedback)          # the learner's: LoRA only
        receipts = run.publish(update)                # verified, or the run stops
        run.log(update, batch, feedback, metrics, receipts)

All arrays are numpy, so that a record crosses a process boundary without torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

Modality = Literal["text", "image"]
MODALITIES: tuple[Modality, ...] = ("text", "image")
"""The order of the ``modality`` axis of every likelihood."""

Task = Literal["t2t", "i2t", "t2i", "edit", "interleaved"]
TASKS: tuple[Task, ...] = ("t2t", "i2t", "t2i", "edit", "interleaved")
Kind = Literal["t2t", "i2t", "t2i", "edit", "interleaved", "interleaved_edit"]
KINDS: tuple[Kind, ...] = (*TASKS, "interleaved_edit")
"""What runs mix and evaluations tell apart: the five tasks, ``interleaved`` with an input image being a kind of its own."""

Metrics = dict[str, float]
"""What is logged, by name: ``reward/...``, ``loss/...``, ``learner/...``, ``kl/...``, ``sync/...``, ``eval/...``, ``perf/...``."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is asked of the policy, and what a reward needs to check the answer."""

    id: str
    """Unique within a run, for example ``"train-17"``."""
    task: Task
    text: str
    spec: Mapping[str, Any] = field(default_factory=dict)
    """GenEval-compatible record (``tag``, ``include``, ``exclude``) with whatever else the reward reads; JSON values only."""
    split: str = "train"
    image: np.ndarray | None = None
    """Input image, uint8 [height, width, 3], or None."""

    @property
    def kind(self) -> Kind:
        """The task, or ``interleaved_edit`` for an interleaved prompt with an input image."""
        return "interleaved_edit" if self.task == "interleaved" and self.image is not None else self.task


@dataclass(frozen=True, slots=True)
class Output:
    """A rollout or a guess as a person sees it. None = the task does not produce that modality."""

    text: str | None = None
    """Of several texts all, with a space between them."""
    image: np.ndarray | None = None
    """uint8 [height, width, 3]; of several images the last."""
    parts: tuple["Output", ...] = ()
    """Its texts and images one by one in their order, where it has several of a modality."""

    @classmethod
    def of(cls, parts: Sequence["Output"]) -> "Output":
        """The output of texts and images, each of them one."""
        texts = [part.text for part in parts if part.text is not None]
        images = [part.image for part in parts if part.image is not None]
        several = max(len(texts), len(images)) > 1
        return cls(" ".join(texts) if texts else None, images[-1] if images else None, tuple(parts) if several else ())


@dataclass(frozen=True, slots=True)
class Segment:
    """The tokens of one modality that the policy generated for one rollout."""

    modality: Modality
    tokens: np.ndarray
    """int64 [n]: ids in the backbone's vocabulary (image codes with their offset)."""
    commit_step: np.ndarray
    """int16 [n]: the denoising step at which each token was committed, 0 .. steps - 1. Of a text written token by token, the step at which
    it counts, -1 behind its end: see ``policies.heads.causal.deal``."""
    logprob: np.ndarray
    """float32 [n]: behaviour log-probability in nats of each token at its commit step, guidance-free and over the rows of its modality."""
    guesses: np.ndarray
    """int64 [recorded, n]: the complete tokens that the sampler would have returned at each recorded step."""

    def at(self, steps: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Which tokens were committed at each of some steps, bool [step, n], and their behaviour log-probabilities, float32, else 0."""
        committed = self.commit_step[None] == np.array(steps, np.int64)[:, None]
        return committed, committed * self.logprob


@dataclass(frozen=True, slots=True)
class Latents:
    """An image of continuous tokens, d numbers each, all of which move at every step."""

    modality: Modality
    tokens: np.ndarray
    """float32 [n, d]: where the last step ended."""
    commit_step: np.ndarray
    """int16 [n]: the last step, for all."""
    logprob: np.ndarray
    """float32 [recorded, n]: behaviour log-density in nats of the move at each recorded step, the mean over its d numbers."""
    guesses: np.ndarray
    """float32 [recorded, n, d]: the clean tokens that the policy expected at each recorded step."""
    moves: np.ndarray
    """float32 [recorded, 2, n, d]: the tokens before and after each recorded step."""
    noise_level: np.ndarray
    """float32 [recorded]: that of the sampler's SDE; 0 = an ODE, whose steps have no density."""

    def at(self, steps: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """As ``Segment.at``, for the recorded steps and no others. Raises ValueError for another number of steps."""
        if len(steps) != len(self.logprob):
            raise ValueError(f"the moves of {len(self.logprob)} recorded steps are known, not of {len(steps)}")
        # The step of an ODE, and the last one of an SDE, have no density: NaN.
        known = np.isfinite(self.logprob)
        return known, np.where(known, self.logprob, 0)


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled output of one prompt: a pure function of (prompt, seed, version)."""

    prompt: Prompt
    index: int
    """Place in the group of the prompt, 0 .. K - 1."""
    seed: int
    version: int
    """Version of the policy that sampled it; 0 is the base."""
    steps: int
    """Denoising steps that were run."""
    recorded: tuple[int, ...]
    """The steps whose guesses were kept, increasing; the last one need not be the final step."""
    segments: tuple[Segment | Latents, ...]
    output: Output
    guesses: tuple[Output | None, ...]
    """One guess per recorded step, None where it was not decoded; empty where nobody asked for any."""
    prompt_ids: np.ndarray | None = field(default=None, compare=False)
    """int64 [n]: the ids in front of what was generated, as the policy laid its prompt out; None = not kept."""

    def segment(self, modality: Modality) -> Segment | Latents | None:
        """The segment of that modality, or None where the task does not produce it."""
        return next((s for s in self.segments if s.modality == modality), None)


@dataclass(frozen=True, slots=True)
class Atom:
    """One statement that the prompt makes, checked on the output."""

    statement: str
    skill: str
    """object, count, color, position, negation, closed_world, validity, plan, ..."""
    passed: bool
    reason: str = ""
    """Why it failed, in words, GenEval style: ``"expected circle = 2, found 3"``; empty when it passed."""
    value: float | None = None
    """How nearly it holds, in [0, 1]; None where it holds or does not."""

    @property
    def soft(self) -> float:
        """``value``, or 1.0 or 0.0 where there is none."""
        return float(self.passed) if self.value is None else self.value


@dataclass(frozen=True, slots=True)
class Score:
    """How well an output means what its prompt asked. A reward that does not apply gives None instead, never a silent 0."""

    value: float
    """Soft score in [0, 1]."""
    strict: bool | None = None
    """Whether everything asked holds; None when the reward has no such notion."""
    atoms: tuple[Atom, ...] = ()
    credit: np.ndarray | None = None
    """float32 [image rows, image columns] of the scorer's own grid in [-1, 1]: +1 matches, -1 contradicts, 0 neutral."""
    words: np.ndarray | None = None
    """float32 [words], the same of each word of the output's text, words being parted by white space."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """The scores of one rollout: of its final output and of its guesses, one per recorded step, None where there was none to score."""

    final: Score | None
    steps: tuple[Score | None, ...] = ()


@dataclass(frozen=True, slots=True)
class Pair:
    """Two rollouts of one prompt, by their index in the batch, and what made one of them the better."""

    chosen: int
    rejected: int
    margin: float
    """Difference of their rewards, > 0."""
    step: int | None = None
    """Index into ``Rollout.recorded`` at which they were compared; None = the final output."""
    weight: float | None = None
    """Its weight in the loss, relative to that of the others; None = its margin."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a worker returns after it loaded an adapter: the proof that it landed."""

    worker: str
    version: int
    tensors: int
    """How many tensors were bound."""
    checksum: str
    """SHA-256 of the adapter as it now lies in the worker's model."""
    canary: float
    """Largest absolute change of the canary logits against the base (adapter off); 0.0 at version 0."""
