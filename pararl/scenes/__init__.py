"""The embedded world: prompts about scenes of coloured shapes whose every claim is checked exactly on the pixels.

::

    example = scenes.example("pretrain", 17)           # a prompt, a scene that satisfies it, and the output that shows it
    seen = scenes.parse(example.output.image)          # reads pixels
    score = scenes.check(example.prompt.spec, seen)    # soft value, strict, atoms with reasons, credit per cell

    example = scenes.example("id", 3, task="edit")     # any of the five tasks
    score = scenes.score("edit", example.prompt.spec, example.output)

Everything is a pure function of (seed, split, index) and task; numpy only. Specification by task:

=========== ============================================ ======================== ==============================================
task        prompt                                       output                   modules
=========== ============================================ ======================== ==============================================
t2i         description                                  image                    ``grammar``, ``splits``, ``verify``
interleaved description, or image and instruction        plan and image           as for t2i or edit, ``plans``, ``axes``
edit        image and instruction                        image                    ``edits``, ``changes``, ``edit_verify``
i2t         image and question                           caption or answer        ``picture_tasks``, ``captions``, ``questions``
t2t         plan and instruction; sum; sentence          plan; number; sentence   ``text_tasks``, ``arithmetic``, ``rewording``
=========== ============================================ ======================== ==============================================

``scoring`` scores the outputs of all of them, ``records`` writes their prompts as JSON lines.

May import: the ground floor.
"""

from dataclasses import dataclass
from typing import Literal

from pararl.scenes.axes import Axes, axes
from pararl.scenes.cases import MAX_ANSWER, Case, Family
from pararl.scenes.cycle import cycle
from pararl.scenes.describe import TAGS as DESCRIPTION_TAGS
from pararl.scenes.edit_tasks import PICTURE_EDITS, PLANNED_EDITS
from pararl.scenes.edits import OPERATIONS
from pararl.scenes.picture_tasks import PICTURE_QUESTIONS, caption_case
from pararl.scenes.pixels import Parsed, parse, parse_batch, render, render_batch
from pararl.scenes.place import satisfy
from pararl.scenes.plans import parse_plan, plan_text
from pararl.scenes.questions import QUESTION_KINDS
from pararl.scenes.records import write_jsonl
from pararl.scenes.scoring import check, input_scene, score
from pararl.scenes.sentences import parse_caption
from pararl.scenes.slips import slip
from pararl.scenes.spec import write_spec
from pararl.scenes.splits import HELD_PAIRS, SPLITS, Draft, draft, is_id_text, random_stream
from pararl.scenes.text_tasks import TEXTS
from pararl.scenes.words import VOCABULARY
from pararl.scenes.world import Scene, SceneObject
from pararl.types import TASKS, Kind, Output, Prompt, Task

__all__ = [
    "FORMS",
    "SPLITS",
    "TAGS",
    "TASKS",
    "VOCABULARY",
    "Axes",
    "Example",
    "Form",
    "Parsed",
    "Scene",
    "SceneObject",
    "axes",
    "captioned",
    "check",
    "cycle",
    "example",
    "parse",
    "parse_batch",
    "parse_caption",
    "parse_plan",
    "plan_text",
    "prompt",
    "render",
    "render_batch",
    "score",
    "slip",
    "splits",
    "write_jsonl",
]

Form = Literal["text", "edit"]
"""What an interleaved prompt gives: a description, or an image and an instruction (``prompt.image`` is then not None)."""
FORMS: dict[Kind, tuple[Task, Form]] = {kind: (kind, "text") for kind in TASKS} | {"interleaved_edit": ("interleaved", "edit")}
"""Task and form of each kind of prompt: ``scenes.prompt("id", 3, 0, *FORMS[kind])``."""
TAGS: dict[Kind, tuple[str, ...]] = {
    "t2t": ("scene_edit", "arithmetic", "paraphrase"),
    "i2t": ("caption", *(f"vqa_{name}" for name in QUESTION_KINDS)),
    "t2i": DESCRIPTION_TAGS,
    "edit": OPERATIONS,
    "interleaved": DESCRIPTION_TAGS,
    "interleaved_edit": OPERATIONS,
}
"""The tags (``spec["tag"]``) that ordinary prompts of each kind have; ``ood_ops`` has ``two_edits``."""
_FAMILIES: dict[Task, Family] = {"edit": PICTURE_EDITS, "interleaved": PLANNED_EDITS, "i2t": PICTURE_QUESTIONS, "t2t": TEXTS}
"""Prompts beyond descriptions; those of ``interleaved`` are the edits."""


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt with a right output."""

    prompt: Prompt
    scene: Scene
    """The scene that the output shows or speaks of, a random one where several satisfy the prompt; empty where it is about none."""
    output: Output


def splits(task: Task = "t2i", form: Form = "text") -> tuple[str, ...]:
    """The splits that a task has: ``SPLITS``, and for tasks with edits also ``ood_ops``, two edits in one instruction."""
    family = _family(task, form)
    return SPLITS if family is None else ("train", "id", *family.held, "pretrain")


def prompt(split: str, index: int, seed: int = 0, task: Task = "t2i", form: Form = "text") -> Prompt:
    """Prompt ``index`` of a split.

    Its id is ``<split>-<index>``. ``-<task>`` follows where the prompt is not a description (whose text t2i and interleaved share), and
    ``-s<seed>`` when the seed is not 0. ``form``: which of its two forms an ``interleaved`` prompt has; "edit" gives edits of scenes with
    at most three objects. Raises ValueError for an unknown task, a split that the task has not, or a negative index.
    """
    family = _family(task, form)
    if family is not None:
        return _case_prompt(split, index, seed, task, _draw(family, split, index, seed, task))
    return _prompt(split, index, seed, task, draft(split, random_stream(split, index, seed)))


def example(split: str, index: int, seed: int = 0, task: Task = "t2i", form: Form = "text") -> Example:
    """Prompt ``index`` of a split, as ``prompt`` gives it, with a right output.

    Free colours never make a held-out pair, in any split: such pairs are seen only where a prompt names them.
    """
    family = _family(task, form)
    if family is not None:
        case = _draw(family, split, index, seed, task)
        text = case.answer if task in ("i2t", "t2t") else plan_text(case.scene) if task == "interleaved" else None
        image = None if task in ("i2t", "t2t") else render(case.scene)
        return Example(_case_prompt(split, index, seed, task, case), case.scene, Output(text, image))
    rng = random_stream(split, index, seed)
    drafted = draft(split, rng)
    scene = satisfy(drafted[0], rng, HELD_PAIRS)
    plan = plan_text(scene) if task == "interleaved" else None
    return Example(_prompt(split, index, seed, task, drafted), scene, Output(plan, render(scene)))


def captioned(split: str, index: int, seed: int = 0) -> Prompt | None:
    """A prompt of task i2t for a caption of the very scene that ``example(split, index, seed)`` shows, with the id of that description.

    None where the caption, by which such a prompt belongs to ``train`` or to ``id``, belongs to the other one, or is too long.
    """
    case = caption_case(example(split, index, seed).scene, random_stream(split, index, seed, "caption"))
    if len(case.answer.split()) > MAX_ANSWER or (split in ("train", "id") and is_id_text(case.key) != (split == "id")):
        return None
    return Prompt(_name(f"{split}-{index}", seed), "i2t", case.text, case.spec, split, render(case.scene))


def _family(task: Task, form: Form) -> Family | None:
    """The family that a task's prompts come from; None = descriptions."""
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}: use one of {', '.join(TASKS)}")
    if form not in ("text", "edit") or (form == "edit" and task != "interleaved"):
        raise ValueError(f"task {task} has no form {form!r}: interleaved alone has another one than 'text', namely 'edit'")
    return None if task == "interleaved" and form == "text" else _FAMILIES.get(task)


def _draw(family: Family, split: str, index: int, seed: int, task: Task) -> Case:
    known = ("train", "id", *family.held, "pretrain")
    # The stream that the shipped bases were pretrained on: both families of edits share it, and a test pins it.
    stream = "edit" if family in (PICTURE_EDITS, PLANNED_EDITS) else task
    return family.draw(split, random_stream(split, index, seed, stream, known))


def _case_prompt(split: str, index: int, seed: int, task: Task, case: Case) -> Prompt:
    scene = input_scene(task, case.spec)
    image = None if scene is None else render(scene)
    return Prompt(_name(f"{split}-{index}-{task}", seed), task, case.text, case.spec, split, image)


def _prompt(split: str, index: int, seed: int, task: Task, drafted: Draft) -> Prompt:
    description, wording = drafted
    return Prompt(_name(f"{split}-{index}", seed), task, wording.text, write_spec(description, wording), split)


def _name(name: str, seed: int) -> str:
    return name + (f"-s{seed}" if seed else "")
