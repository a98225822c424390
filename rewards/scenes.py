"""The exact reward of the embedded world: reads the pixels and the text of an output and checks every claim of the prompt."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pararl import scenes
from pararl.types import Output, Score, Task
from rewards.base import Reward, Sample

_IN_TEXT: tuple[Task, ...] = ("i2t", "t2t")
"""Tasks whose outputs have no image."""


class SceneReward(Reward):
    """``pararl.scenes.score`` on what ``pararl.scenes.parse_batch`` reads. Applies to all five tasks."""

    name = "scenes"

    def score(self, prompts: Sequence[str], completions: Sequence[Output], **columns: Sequence[Any]) -> list[Score | None]:
        """One score per completion, from the columns ``task`` and ``spec``.

        Raises ValueError for missing columns, an unknown task and a spec that is not of this world. An output without a modality that its
        task produces is an error too, and so is an image that is not uint8 [32, 32, 3].
        """
        missing = {"task", "spec"} - columns.keys()
        if missing:
            raise ValueError(f"reward scenes needs the columns task and spec; missing: {', '.join(sorted(missing))}")
        tasks, specs = columns["task"], columns["spec"]
        if not len(tasks) == len(specs) == len(completions):
            raise ValueError(f"reward scenes got {len(completions)} completions, {len(tasks)} tasks and {len(specs)} specs: give one each")
        unknown = set(tasks) - set(scenes.TASKS)
        if unknown:
            raise ValueError(f"reward scenes knows the tasks {', '.join(scenes.TASKS)}, got {', '.join(map(repr, sorted(unknown)))}")
        drawn = [place for place, task in enumerate(tasks) if task not in _IN_TEXT]
        parsed = scenes.parse_batch([_image(completions[place], tasks[place]) for place in drawn])
        seen = dict(zip(drawn, parsed, strict=True))
        return [
            scenes.score(task, spec, completion, seen.get(place))
            for place, (task, spec, completion) in enumerate(zip(tasks, specs, completions, strict=True))
        ]

    def examples(self) -> list[Sample]:
        """For every task and several of its tags: a right output, against one that is wrong, blank, unchanged or noise."""
        noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
        blank = scenes.render(scenes.Scene.empty())
        samples: list[Sample] = []
        for index in range(8):
            other = scenes.example("ood_count", index, task="interleaved").output
            text, image = ((other.text, other.image), ("", blank), (".", noise))[index % 3]
            for task, form in _FORMS:
                shown = scenes.example("pretrain", index, task=task, form=form)
                given = shown.prompt.image if index % 3 == 0 and shown.prompt.image is not None else image
                bad = Output(None if shown.output.text is None else text, None if shown.output.image is None else given)
                samples.append((shown.prompt, shown.output, bad))
        return samples


_FORMS: tuple[tuple[Task, scenes.Form], ...] = (*((task, "text") for task in scenes.TASKS), ("interleaved", "edit"))
"""Every task, and interleaved in both of its forms."""


def _image(output: Output, task: str) -> np.ndarray:
    if output.image is None or output.image.shape != (32, 32, 3):
        shape = "no image" if output.image is None else f"an image {list(output.image.shape)}"
        raise ValueError(f"reward scenes got {shape} for a prompt of task {task}: it needs uint8 [32, 32, 3]")
    return output.image
