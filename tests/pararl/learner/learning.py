"""A learner on the tiny random policy, rollouts for it, and a reward that these differ in."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import policies
from pararl import adapter, scenes
from pararl.arms import ARM_SPECS, ArmSpec
from pararl.config import Arm, LearnerConfig, PreferConfig
from pararl.learner.learner import Learner
from pararl.learner.prefer import Feedback, prefer
from pararl.learner.stepper import GradientStepper
from pararl.learner.tables import Table, step_table
from pararl.types import TASKS, Judgement, Latents, Prompt, Rollout, Score, Segment, Task
from policies import Policy, Sampling

SAMPLING = Sampling(steps=4, recorded=2, temperature=1.0)
CONFIG = LearnerConfig(lr=1e-2, beta=1.0, reference_every=0)


def make(directory: Path, arm: Arm = "pararl", config: LearnerConfig = CONFIG, updates: int | None = None) -> Learner:
    policy = policies.load(directory)
    return Learner(policy, adapter.attach(policy, rank=4, alpha=8, seed=1), config, ARM_SPECS[arm], updates=updates)


def steps_of(learner: Learner) -> GradientStepper:
    """What takes the steps of a learner that TRL does not train."""
    assert isinstance(learner.stepper, GradientStepper)
    return learner.stepper


def reconfigure(learner: Learner, config: LearnerConfig) -> None:
    """Other settings from here on, which no run can have."""
    learner.config = steps_of(learner).config = config


def table_of(policy: Policy, rollouts: Sequence[Rollout]) -> Table:
    return step_table(policy, policy.prepare(rollouts))


def prompt(i: int, task: Task, shown: bool) -> Prompt:
    """The i-th training text under another task; with a noisy input image where the task shows one."""
    image = np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8) if shown else None
    return Prompt(f"{task}-{shown}-{i}", task, scenes.prompt("train", i, task="t2i").text, image=image)


ONE_TASK: list[tuple[Task, bool]] = [("t2i", False)]
ALL_TASKS: list[tuple[Task, bool]] = [
    *((task, task in ("i2t", "edit")) for task in TASKS),
    ("interleaved", True),
]
"""Each task and whether it shows an image; interleaved both ways."""


def sample(learner: Learner, tasks: list[tuple[Task, bool]] = ONE_TASK, prompts: int = 2, group: int = 4) -> list[Rollout]:
    """``group`` rollouts of ``prompts`` prompts of every task, the tasks in turn."""
    asked = [prompt(i, task, shown) for i in range(prompts) for task, shown in tasks for _ in range(group)]
    made = learner.policy.generate(asked, list(range(len(asked))), SAMPLING, learner.version)
    return [replace(r, index=i % group) for i, r in enumerate(made)]


def judge(rollouts: list[Rollout]) -> list[Judgement]:
    """A reward that a random policy's samples differ in: the share of odd ids among the tokens of the image, else of the text."""
    return [Judgement(*scores(r.segment("image") or r.segments[0])) for r in rollouts]


def scores(part: Segment | Latents) -> tuple[Score, tuple[Score, ...]]:
    return Score(float((part.tokens % 2).mean())), tuple(Score(float((g % 2).mean())) for g in part.guesses)


def teach(rollouts: list[Rollout], arm: ArmSpec, step_mix: float = 0.5) -> Feedback:
    return prefer(rollouts, judge(rollouts), arm, PreferConfig(min_margin=0.0), step_mix, keep=8)


def adapter_of(learner: Learner) -> torch.Tensor:
    return torch.cat([x.flatten() for x in adapter.tensors(learner.peft).values()]).clone()
