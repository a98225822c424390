"""What one rollout takes of the backbone, counted step by step as ``policies/sampling/denoise.py`` goes: without torch, for plans of runs.

A step computes every position of the output where any rollout of its batch records the guess. Other steps compute the segments that
advance; of a text, the block that is being filled. Guidance adds a sequence for each branch that one of these segments is guided by.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pararl.config import RolloutConfig
from pararl.plan.shapes import ModelShape
from pararl.steps import advances
from pararl.types import MODALITIES, Kind


@dataclass(frozen=True, slots=True)
class Step:
    """One forward of a rollout."""

    sequences: int
    """The prompt itself, and the branches of guidance."""
    positions: Mapping[str, int]
    """By modality, how many of its tokens the head is applied to in each of its sequences."""
    branched: Mapping[str, int]
    """By modality, in how many sequences."""


def branches(shape: ModelShape, kind: Kind, rollout: RolloutConfig) -> dict[str, frozenset[str]]:
    """By what a branch leaves out, the modalities that it guides. Outputs in text alone are not guided."""
    made = shape.outputs(kind)
    if "image" not in made:
        return {}
    scales = {"image": rollout.guidance, "text": rollout.text_guidance}
    text = frozenset(modality for modality in made if scales[modality])
    shows = rollout.input_guidance and kind in ("edit", "interleaved_edit")
    return ({"text": text} if text else {}) | ({"image": frozenset(("image",))} if shows else {})


def moving(shape: ModelShape, kind: Kind, rollout: RolloutConfig) -> list[frozenset[str]]:
    """Per denoising step the modalities that advance at it."""
    made = shape.outputs(kind)
    joint, steps = len(made) > 1, rollout.steps
    at = {m: advances(m, joint, steps, rollout.decoding, rollout.image_steps) for m in MODALITIES if m in made}
    return [frozenset(m for m in at if step in at[m]) for step in range(steps)]


def steps_of(shape: ModelShape, kind: Kind, rollout: RolloutConfig) -> Iterator[tuple[float, Step]]:
    """The forwards of a rollout with how often each is made: a recorded step is one of a random subset, another one for each prompt."""
    prompts = -(-rollout.chunk // rollout.group)
    # Prompts of a batch record steps of their own: this is the chance that any of them records a step.
    whole = 1 - (1 - min(1.0, rollout.recorded / rollout.steps)) ** prompts
    made, guides = shape.outputs(kind), branches(shape, kind, rollout)
    blocks = shape.block(kind) if rollout.decoding != "released" or len(made) == 1 else shape.text_tokens
    every = {m: tokens for m, (tokens, _) in made.items()}
    part = every | ({"text": min(blocks, every["text"])} if "text" in every else {})
    for now in moving(shape, kind, rollout):
        for often, tokens in ((whole, every), (1 - whole, {m: part[m] for m in now})):
            if often and tokens:
                used = [guided for guided in guides.values() if guided & tokens.keys()]
                yield often, Step(1 + len(used), tokens, {m: 1 + sum(m in guided for guided in used) for m in tokens})
