"""The embedded world: prompts about scenes of coloured shapes whose every claim is checked exactly on the pixels.

::

    example = scenes.example("pretrain", 17)           # a prompt, a scene that satisfies it, and the output that shows it
    seen = scenes.parse(example.output.image)          # reads pixels
    score = scenes.check(example.prompt.spec, seen)    # soft value, strict, atoms with reasons, credit per cell

Everything is a pure function of (seed, split, index); numpy only. Specification: ``grammar`` (prompts), ``splits`` (what is held
out), ``verify`` (scoring), ``plans`` (the text half of interleaved outputs), ``records`` (JSON lines).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pararl.scenes.pixels import Parsed, parse, parse_batch, render, render_batch
from pararl.scenes.place import satisfy
from pararl.scenes.plans import parse_plan, plan_text
from pararl.scenes.records import read_jsonl, write_jsonl
from pararl.scenes.spec import read_spec, write_spec
from pararl.scenes.splits import HELD_PAIRS, SPLITS, Draft, draft, random_stream
from pararl.scenes.verify import verify, verify_plan
from pararl.scenes.words import VOCABULARY
from pararl.scenes.world import Scene, SceneObject
from pararl.types import Output, Prompt, Score, Task

__all__ = [
    "SPLITS",
    "TASKS",
    "VOCABULARY",
    "Example",
    "Parsed",
    "Scene",
    "SceneObject",
    "check",
    "example",
    "parse",
    "parse_batch",
    "parse_plan",
    "plan_text",
    "prompt",
    "read_jsonl",
    "render",
    "render_batch",
    "write_jsonl",
]

TASKS: tuple[Task, ...] = ("t2i", "interleaved")
"""Tasks that this world can ask for so far."""


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt with a random scene that satisfies it, and that scene as an output of the prompt's task."""

    prompt: Prompt
    scene: Scene
    output: Output


def prompt(split: str, index: int, seed: int = 0, task: Task = "t2i") -> Prompt:
    """Prompt ``index`` of a split. Its id is ``<split>-<index>``, followed by ``-s<seed>`` when the seed is not 0.

    ``task``: t2i (caption to image) or interleaved (caption to a plan in words and the image); the text is the same for both.
    Raises ValueError for an unknown split or task or a negative index.
    """
    return _prompt(split, index, seed, task, draft(split, random_stream(split, index, seed)))


def example(split: str, index: int, seed: int = 0, task: Task = "t2i") -> Example:
    """Prompt ``index`` of a split, as ``prompt`` gives it, with a random scene that satisfies it.

    Free colours never make a held-out pair, in any split: such pairs are seen only where a prompt names them.
    """
    rng = random_stream(split, index, seed)
    drafted = draft(split, rng)
    scene = satisfy(drafted[0], rng, HELD_PAIRS)
    text = plan_text(scene) if task == "interleaved" else None
    return Example(_prompt(split, index, seed, task, drafted), scene, Output(text, render(scene)))


def check(spec: Mapping[str, Any], seen: Scene | Parsed, plan: str | None = None) -> Score:
    """How well a scene, or what was parsed from an image, satisfies a spec; ``verify`` defines the atoms and their soft values.

    With a ``plan`` (interleaved outputs) two more atoms: ``plan`` - it parses and itself satisfies the spec, soft its own score - and
    ``output_alignment`` - it equals the image cell by cell, soft F1 over placed objects. ``value`` is the mean of the soft values,
    1.0 exactly when ``strict`` holds. ``credit`` is float32 [4, 4]: +1 an object that was asked for, -1 one that contradicts the spec or is
    too much, or an unreadable cell, 0 an empty cell, or an object in a relation that does not hold.
    Raises ValueError for a malformed spec.
    """
    need = read_spec(spec)
    findings = verify(need, seen)
    if plan is not None:
        verify_plan(findings, need, seen, parse_plan(plan))
    return Score(findings.value, findings.strict, tuple(findings.atoms), findings.credit)


def _prompt(split: str, index: int, seed: int, task: Task, drafted: Draft) -> Prompt:
    if task not in TASKS:
        raise ValueError(f"the scene world has no task {task!r} yet: use one of {', '.join(TASKS)}")
    description, wording = drafted
    name = f"{split}-{index}" + (f"-s{seed}" if seed else "")
    return Prompt(name, task, wording.text, write_spec(description, wording), split)
