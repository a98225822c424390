"""The forwards of a rollout by the plan of a run, against the sampler itself."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

import policies
from pararl.config import RolloutConfig
from pararl.plan.forwards import moving, steps_of
from pararl.plan.shapes import shape_of
from pararl.sampling import sampling_of
from pararl.steps import Decoding
from pararl.types import KINDS, Kind, Prompt, Task
from policies.heads.masked import MaskedHead

STEPS = 8


def given(kind: Kind) -> Prompt:
    task: Task = "interleaved" if kind == "interleaved_edit" else kind
    image = np.zeros((32, 32, 3), np.uint8) if kind in ("i2t", "edit", "interleaved_edit") else None
    return Prompt("a", task, "red circle", image=image)


@pytest.mark.parametrize("image_steps", [0, 1, 3])
@pytest.mark.parametrize("decoding", ["parallel", "semi_parallel", "sequential", "released"])
def test_segments_advance_when_the_plans_of_the_policy_do(decoding: Decoding, image_steps: int, tiny_policy_dir: Path) -> None:
    policy, shape = policies.load(tiny_policy_dir), shape_of(str(tiny_policy_dir), tiny_policy_dir)
    head = policy.heads["image"]
    assert isinstance(head, MaskedHead)
    rollout = replace(RolloutConfig(), steps=STEPS, decoding=decoding, image_steps=image_steps)
    for kind in KINDS:
        plans = head.plans(policy.layout.canvas([given(kind)]).spans, sampling_of(rollout))
        real = [{p.span.modality for p in plans if p.moves(step)} for step in range(STEPS)]
        assert [set(now) for now in moving(shape, kind, rollout)] == real, kind


@pytest.mark.parametrize("scales", list(product((0.0, 1.0), repeat=3)))
@pytest.mark.parametrize("recorded", [0, STEPS])
@pytest.mark.parametrize("kind", KINDS)
def test_a_rollout_takes_the_sequences_that_pass_through_the_backbone(
    kind: Kind, recorded: int, scales: tuple[float, float, float], tiny_policy_dir: Path
) -> None:
    policy, shape = policies.load(tiny_policy_dir), shape_of(str(tiny_policy_dir), tiny_policy_dir)
    rollout = replace(RolloutConfig(), steps=STEPS, recorded=recorded, image_steps=3, decoding="semi_parallel")
    rollout = replace(rollout, guidance=scales[0], text_guidance=scales[1], input_guidance=scales[2])
    rows: list[int] = []
    policy.model.get_input_embeddings().register_forward_pre_hook(lambda _, ids: rows.append(len(ids[0])))
    with torch.no_grad():
        policy.generate([given(kind)], [0], replace(sampling_of(rollout), guesses=0))
    assert sum(rows) == sum(often * step.sequences for often, step in steps_of(shape, kind, rollout))


def test_more_prompts_in_a_chunk_record_more_steps(tiny_policy_dir: Path) -> None:
    shape = shape_of(str(tiny_policy_dir), tiny_policy_dir)
    rollout = replace(RolloutConfig(), steps=STEPS, recorded=2, group=4, image_steps=2, guidance=1.0)

    def sequences(chunk: int) -> float:
        return sum(often * step.sequences for often, step in steps_of(shape, "interleaved", replace(rollout, chunk=chunk)))

    # The text advances at all eight steps, the image at two; each of the other six shows it where one of the prompts recorded it.
    for chunk, prompts in ((4, 1), (8, 2), (16, 4)):
        assert sequences(chunk) == pytest.approx(8 + 2 + 6 * (1 - 0.75**prompts))
