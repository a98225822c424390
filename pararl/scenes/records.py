"""Prompts as JSON lines: GenEval's record with our additions, one prompt a line.

An input image is not written: it is the rendered ``source`` of the spec, which is exact, and is rendered again on reading.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np

from pararl.scenes.pixels import render
from pararl.scenes.scoring import check_spec, input_scene
from pararl.scenes.spec import check_keys
from pararl.types import Prompt, Task

_OWN = ("id", "task", "prompt", "split")
"""Keys of a line that are fields of ``Prompt``; every other key belongs to its spec."""


def to_record(prompt: Prompt) -> dict[str, Any]:
    """The line of one prompt, as a dict. Raises ValueError for an input image that is not the rendered ``source`` of the spec."""
    image = _input_image(prompt.task, prompt.spec)
    if not (image is prompt.image is None or (image is not None and prompt.image is not None and np.array_equal(image, prompt.image))):
        raise ValueError(f"prompt {prompt.id}: JSON lines hold no input image but the rendered 'source' of its spec")
    return {"id": prompt.id, "task": prompt.task, "split": prompt.split, "prompt": prompt.text} | dict(prompt.spec)


def _input_image(task: Task, spec: Mapping[str, Any]) -> np.ndarray | None:
    scene = input_scene(task, spec)
    return None if scene is None else render(scene)


def from_record(record: Any, default_id: str, shared: bool = False) -> Prompt:
    """The prompt of one line. GenEval's own records lack id, task and split: they get ``default_id``, ``t2i`` and ``user``.

    ``shared``: whether other rewards read the spec too, so that keys which are unknown here may be theirs. Raises ValueError when the
    record is not one of this world.
    """
    if not isinstance(record, dict):
        raise ValueError(f"a record must be a JSON object, got {type(record).__name__}")
    text, task = record.get("prompt"), record.get("task", "t2i")
    if not isinstance(text, str) or not text.strip():
        raise ValueError("a record needs a 'prompt' with text")
    if task not in get_args(Task):
        raise ValueError(f"unknown task {task!r}: use one of {', '.join(get_args(Task))}")
    spec = {key: value for key, value in record.items() if key not in _OWN}
    if not shared:
        check_keys(spec)
    check_spec(task, spec)
    return Prompt(str(record.get("id", default_id)), task, text, spec, str(record.get("split", "user")), _input_image(task, spec))


def write_jsonl(path: str | Path, prompts: Iterable[Prompt]) -> None:
    """Write one line per prompt. The file appears complete or not at all: it is written beside its place and moved there."""
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8") as file:
            for prompt in prompts:
                file.write(json.dumps(to_record(prompt), ensure_ascii=False) + "\n")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
