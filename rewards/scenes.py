"""The exact reward of the embedded world: reads the pixels (and the plan) of an output and checks every claim of the prompt."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pararl import scenes
from pararl.types import Output, Score
from rewards.base import Reward, Sample


class SceneReward(Reward):
    """``pararl.scenes.check`` on what ``pararl.scenes.parse_batch`` reads. Applies to t2i and interleaved, else None."""

    name = "scenes"

    def score(self, prompts: Sequence[str], completions: Sequence[Output], **columns: Sequence[Any]) -> list[Score | None]:
        """One score per completion, from the columns ``task`` and ``spec``.

        Raises ValueError for missing columns, an output without the modality that its task produces, an image that is not uint8
        [32, 32, 3], or a spec that is not of this world.
        """
        missing = {"task", "spec"} - columns.keys()
        if missing:
            raise ValueError(f"reward scenes needs the columns task and spec; missing: {', '.join(sorted(missing))}")
        tasks, specs = columns["task"], columns["spec"]
        if not len(tasks) == len(specs) == len(completions):
            raise ValueError(f"reward scenes got {len(completions)} completions, {len(tasks)} tasks and {len(specs)} specs: give one each")
        places = [place for place, task in enumerate(tasks) if task in ("t2i", "interleaved")]
        seen = scenes.parse_batch([_image(completions[place], tasks[place]) for place in places])
        scores: list[Score | None] = [None] * len(completions)
        for place, parsed in zip(places, seen, strict=True):
            plan = _plan(completions[place]) if tasks[place] == "interleaved" else None
            scores[place] = scenes.check(specs[place], parsed, plan)
        return scores

    def examples(self) -> list[Sample]:
        """For both tasks and several tags: a right output, against a wrong scene, a blank one, or noise."""
        noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
        blank = scenes.render(scenes.Scene.empty())
        samples: list[Sample] = []
        for index in range(8):
            for task in scenes.TASKS:
                shown = scenes.example("pretrain", index, task=task)
                other = scenes.example("ood_count", index, task=task).output
                bad = (other.image, blank, noise)[index % 3]
                text = None if task == "t2i" else (other.text, "", ".")[index % 3]
                samples.append((shown.prompt, shown.output, Output(text, bad)))
        return samples


def _image(output: Output, task: str) -> np.ndarray:
    if output.image is None or output.image.shape != (32, 32, 3):
        shape = "no image" if output.image is None else f"an image {list(output.image.shape)}"
        raise ValueError(f"reward scenes got {shape} for a prompt of task {task}: it needs uint8 [32, 32, 3]")
    return output.image


def _plan(output: Output) -> str:
    if output.text is None:
        raise ValueError("reward scenes got no text for an interleaved prompt: an empty plan is the empty string")
    return output.text
