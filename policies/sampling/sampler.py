"""From prompts to rollouts: the heads of a policy sample one behind the other, and what they made is decoded."""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from pararl.options import Sampling
from pararl.types import Modality, Output, Prompt, Rollout
from policies.heads.base import Branch, Head, Scene, Trace, drawn, stages
from policies.layout import Layout
from policies.sequences import device_of
from policies.settings import Part


class Sampler:
    """Samples with the heads of a policy."""

    def __init__(self, layout: Layout, heads: Mapping[Modality, Head], model: nn.Module) -> None:
        self.layout, self.heads, self.model = layout, heads, model

    @torch.no_grad()
    def generate(self, prompts: Sequence[Prompt], seeds: Sequence[int], sampling: Sampling, version: int = 0) -> list[Rollout]:
        """One rollout per prompt, each a function of its prompt, its seed and the weights; the group index is left at 0.

        Prompts may mix tasks. Raises ValueError for a task that the policy does not do and for a prompt that is too long. An input image
        that is missing, unasked or not of the policy's size is an error too.
        """
        done: dict[int, Rollout] = {}
        # A canvas has the layout of one task.
        for task in dict.fromkeys(p.task for p in prompts):
            index = [i for i, p in enumerate(prompts) if p.task == task]
            batch = self._generate([prompts[i] for i in index], [seeds[i] for i in index], sampling, version)
            done.update(zip(index, batch, strict=True))
        return [done[i] for i in range(len(prompts))]

    def _generate(self, prompts: list[Prompt], seeds: list[int], sampling: Sampling, version: int) -> list[Rollout]:
        recorded, decoded = zip(*(recorded_steps(prompt, sampling) for prompt in prompts), strict=True)
        scene = self.scene(prompts, sampling)
        traces = self._traces(scene, seeds, sampling, recorded)
        outputs, guesses = self._outputs(traces, None), self._guesses(traces, recorded, decoded)
        asked = scene.blank.ids[:, : scene.blank.prefix].cpu().numpy()
        real = scene.blank.attention[:, : scene.blank.prefix].cpu().numpy()
        return [
            Rollout(
                prompt=prompt,
                index=0,
                seed=seeds[i],
                version=version,
                steps=sampling.steps,
                recorded=recorded[i],
                segments=tuple(trace.record(i, recorded[i]) for trace in traces),
                output=outputs[i],
                guesses=guesses[i],
                prompt_ids=asked[i][real[i]],
            )
            for i, prompt in enumerate(prompts)
        ]

    def scene(self, prompts: Sequence[Prompt], sampling: Sampling) -> Scene:
        """The blank canvas of prompts of one task, and the branches of guidance."""
        makes = {span.modality for span in self.layout.tail(prompts[0].task).spans}
        scales: dict[Part, dict[Modality, float]] = {}
        # Answers in text alone are not guided.
        if "image" in makes and (sampling.guidance or ("text" in makes and sampling.text_guidance)):
            scales["text"] = {"image": sampling.guidance, "text": sampling.text_guidance}
        if "image" in makes and sampling.input_guidance and any(p.image is not None for p in prompts):
            scales["image"] = {"image": sampling.input_guidance, "text": 0.0}
        blank, *without = self.layout.canvases(prompts, [None, *scales], self.layout.shown(prompts))
        branches = [Branch(c.to(device_of(self.model)), scale) for c, scale in zip(without, scales.values(), strict=True)]
        return Scene(self.layout, blank.to(device_of(self.model)), tuple(branches))

    def _traces(self, scene: Scene, seeds: Sequence[int], sampling: Sampling, recorded: Sequence[tuple[int, ...]]) -> list[Trace]:
        """What happens to the segments of a scene, head by head: each sees what those before it have made."""
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        parts = stages(self.heads, scene.blank, self.layout.causal)
        chances = list(zip(*(drawn(parts, generator, sampling) for generator in generators), strict=True))
        traces: list[Trace] = []
        for place, ((head, spans), chance) in enumerate(zip(parts, chances, strict=True)):
            found = head.sample(scene, spans, chance, sampling, recorded)
            traces += found
            if place + 1 < len(parts):
                views = {span: head.view(trace.tokens) for span, trace in zip(spans, found, strict=True)}
                scene = scene.changed(lambda canvas, views=views: self.layout.put(canvas, views))  # type: ignore[misc]
        return traces

    def _guesses(
        self, traces: Sequence[Trace], recorded: Sequence[tuple[int, ...]], decoded: Sequence[tuple[int, ...]]
    ) -> list[tuple[Output | None, ...]]:
        """Per row its guesses at the recorded steps, None where not decoded; an empty tuple where none is wanted at all."""
        if not decoded[0]:
            return [()] * len(decoded)
        columns = [self._outputs(traces, [row[k] for row in decoded]) for k in range(len(decoded[0]))]
        found = [dict(zip(row, outputs, strict=True)) for row, *outputs in zip(decoded, *columns, strict=True)]
        return [tuple(by_step.get(step) for step in steps) for steps, by_step in zip(recorded, found, strict=True)]

    def _outputs(self, traces: Sequence[Trace], steps: Sequence[int] | None) -> list[Output]:
        """Decoded outputs, final (None) or the guess of each row at its given step."""
        parts: list[list[Output]] = []
        for trace in traces:
            batch = len(trace.tokens)
            tokens = trace.tokens if steps is None else trace.guesses[torch.tensor(steps), torch.arange(batch)]
            if trace.modality == "image":
                parts.append([Output(image=image) for image in self.layout.images.decode(tokens)])
            else:
                parts.append([Output(text=self.layout.text.decode(row)) for row in tokens.tolist()])
        return [Output.of(row) for row in zip(*parts, strict=True)]


def recorded_steps(prompt: Prompt, sampling: Sampling) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The random subset of steps whose guesses are kept, and the subset of these that is decoded: functions of the prompt and
    ``sampling.round``. Raises ValueError for more than there are."""
    wanted = sampling.recorded if sampling.guesses is None else sampling.guesses
    if not wanted <= sampling.recorded <= sampling.steps:
        raise ValueError(f"{wanted} decoded of {sampling.recorded} recorded of {sampling.steps} steps: there are not that many")
    # Of the prompt alone, so that all rollouts of a group are compared at the same steps; Python's own hash differs between processes.
    rng = np.random.default_rng(int.from_bytes(hashlib.blake2b(f"{prompt.id}|{sampling.round}".encode(), digest_size=8).digest()))
    recorded = sorted(rng.choice(sampling.steps, sampling.recorded, replace=False).tolist())
    return tuple(recorded), tuple(sorted(rng.choice(recorded, wanted, replace=False).tolist() if wanted else []))
