"""Arm ``pararl_grpo`` with the ELBO of the final output: every token's part of it times its advantage."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import policies
from pararl import scenes
from pararl.config import LearnerConfig
from pararl.learner.learner import Learner, by_task
from pararl.learner.prefer import Feedback
from pararl.types import MODALITIES, Modality, Rollout, Task
from policies import Draws, Sampling
from tests.pararl.learner.learning import ALL_TASKS, CONFIG, ONE_TASK, make, prompt, sample, teach
from tests.wording import telling

ELBO = replace(CONFIG, likelihood="elbo", draws=3, micro=4, text_weight=0.5, image_weight=2.0)


@pytest.fixture
def showo2_dir() -> Path:
    return policies.CHECKPOINTS / "scenes-showo2"


def taught(directory: Path, config: LearnerConfig = ELBO, tasks: Any = ONE_TASK) -> tuple[Learner, list[Rollout], Feedback]:
    """A learner, rollouts of its own, and advantages, credit of cells among them."""
    learner = make(directory, "pararl_grpo", config)
    rollouts = sample(learner, tasks)
    feedback = teach(rollouts, learner.arm)
    credit = np.random.default_rng(0).normal(size=(len(rollouts), 4, 4)).astype(np.float32)
    return learner, rollouts, replace(feedback, credit=credit)


def gradient(learner: Learner) -> torch.Tensor:
    return torch.cat([p.grad.flatten() if p.grad is not None else torch.zeros(p.numel()) for p in learner.parameters])


def cells(learner: Learner, rollouts: list[Rollout]) -> Iterator[tuple[list[int], Draws]]:
    """The draws that the learner makes in its first update, task by task, each with the places of its rollouts in the batch."""
    generator = torch.Generator().manual_seed(0)
    for _, places in groupby(by_task(rollouts, range(len(rollouts))), lambda i: rollouts[i].prompt.task):
        index = list(places)
        for draw in learner.policy.draws([rollouts[i] for i in index], 3, generator):
            yield index, draw


def having(rollouts: list[Rollout], modality: Modality) -> int:
    return sum(r.segment(modality) is not None for r in rollouts)


MIXED: list[tuple[Task, bool]] = [("i2t", True), ("t2i", False), ("interleaved", False)]
"""Modalities that some rollouts have and others have not."""


@pytest.mark.parametrize("tasks", [ONE_TASK, [("interleaved", False)], MIXED], ids=["t2i", "interleaved", "mixed"])
def test_the_gradient_is_that_of_the_formula_written_with_loops(tiny_policy_dir: Path, tasks: Any) -> None:
    learner, rollouts, feedback = taught(tiny_policy_dir, tasks=tasks)
    assert feedback.advantages is not None and feedback.credit is not None
    rows, columns = learner.policy.grid
    total = torch.zeros(())
    for index, draw in cells(learner, rollouts):
        for m, tokens in learner.policy.draw_tokens([rollouts[i] for i in index], draw).items():
            weight = {"text": 0.5, "image": 2.0}[m] / having(rollouts, m) / 3
            for b, place in enumerate(index):
                terms = []
                for i in draw.counted[m][0, b].nonzero().flatten().tolist():
                    own = float(feedback.advantages[place, -1])
                    if m == "image":
                        own += float(feedback.credit[place, (i // columns) * 4 // rows, (i % columns) * 4 // columns])
                    terms.append(own * tokens.logprob[b, i])
                total = total - weight * torch.stack(terms).mean()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(total, learner.parameters)])
    metrics = learner.update(rollouts, feedback)
    found = gradient(learner)
    found = found * metrics["learner/grad_norm"] / found.norm()  # as it was before it was clipped
    assert metrics["loss/total"] == pytest.approx(total.item(), abs=1e-5)
    assert expected.norm() > 1e-3 and (found - expected).norm() < 1e-4 * expected.norm()


def test_cell_by_cell_accumulation_gives_the_gradient_of_all_at_once(tiny_policy_dir: Path) -> None:
    found = []
    for micro in (1024, 3):
        learner, rollouts, feedback = taught(tiny_policy_dir, replace(ELBO, micro=micro), ALL_TASKS)
        learner.update(rollouts, feedback)
        found.append(gradient(learner))
    assert found[0].norm() > 1e-3 and (found[1] - found[0]).norm() < 1e-4 * found[0].norm()


def test_updates_raise_what_has_advantage(tiny_policy_dir: Path) -> None:
    learner, rollouts, feedback = taught(tiny_policy_dir)
    feedback = replace(feedback, credit=None)
    assert feedback.advantages is not None
    draws = learner.policy.draws(rollouts, 16, torch.Generator().manual_seed(1))
    advantage = torch.from_numpy(feedback.advantages[:, -1])

    @torch.no_grad()
    def gain() -> float:
        return float((advantage * learner.policy.log_likelihood(rollouts, draws)[:, MODALITIES.index("image")]).sum())

    before = gain()
    for _ in range(5):
        learner.update(rollouts, feedback)
    assert gain() > before + 0.01


@pytest.mark.parametrize("name", ["scenes-mmada", "scenes-showo", "scenes-showo2"])
def test_in_every_family_the_tokens_of_its_draws_make_up_its_likelihood(name: str) -> None:
    policy = policies.load(name)
    for task in ("i2t", "t2i", "interleaved"):
        asked = [scenes.prompt("train", i, 0, task) for i in range(3)]
        rollouts = policy.generate(asked, [1, 2, 3], Sampling(steps=4, recorded=2, flow_noise=0.7))
        draws = policy.draws(rollouts, 2, torch.Generator().manual_seed(0))
        with torch.no_grad():
            total = torch.zeros(3, len(MODALITIES))
            for draw in draws:
                for modality, own in policy.draw_tokens(rollouts, draw).items():
                    counted = draw.counted[modality][0]
                    total[:, MODALITIES.index(modality)] += (own.logprob * counted).sum(-1) / counted.sum(-1) / 2
            whole = policy.log_likelihood(rollouts, draws)
        assert whole.abs().amin(0).max() > 0.01 and torch.allclose(total, whole, atol=1e-6), task


@pytest.mark.parametrize("tasks", [[("interleaved", False)], MIXED], ids=["interleaved", "mixed"])
@pytest.mark.parametrize("directory", ["tiny_policy_dir", "showo2_dir"])
def test_the_kl_penalty_is_that_of_tokens_and_the_squared_change_of_velocities(
    directory: str, tasks: Any, request: pytest.FixtureRequest
) -> None:
    """The gradient of the penalty, written with loops, of a policy that has moved from the base."""
    folder: Path = request.getfixturevalue(directory)
    learner = make(folder, "pararl_grpo", replace(ELBO, kl=0.7))
    torch.manual_seed(1)
    with torch.no_grad():
        for p in learner.parameters:
            p.add_(0.05 * torch.randn_like(p))
    rollouts = sample(learner, tasks, group=2)
    feedback = replace(teach(rollouts, learner.arm), credit=None)
    assert feedback.advantages is not None
    feedback = replace(feedback, advantages=np.full_like(feedback.advantages, 1e-9))  # the penalty alone
    total, parts = torch.zeros(()), dict.fromkeys(MODALITIES, 0.0)
    for index, draw in cells(learner, rollouts):
        some = [rollouts[i] for i in index]
        own = learner.policy.draw_tokens(some, draw)
        with torch.no_grad(), learner.peft.disable_adapter():
            base = learner.policy.draw_tokens(some, draw)
        for m, tokens in own.items():
            for b in range(len(some)):
                terms = []
                for i in draw.counted[m][0, b].nonzero().flatten().tolist():
                    velocities, others = tokens.velocities, base[m].velocities
                    if velocities is not None and others is not None:
                        terms.append(torch.stack([(x - y) ** 2 for x, y in zip(velocities[b, i], others[b, i], strict=True)]).mean())
                    else:
                        ratio = (base[m].logprob[b, i] - tokens.logprob[b, i]).exp()
                        terms.append(ratio - ratio.log() - 1)
                mean = torch.stack(terms).mean() / having(rollouts, m) / 3
                total = total + 0.7 * {"text": 0.5, "image": 2.0}[m] * mean
                parts[m] += mean.item()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(total, learner.parameters)])
    metrics = learner.update(rollouts, feedback)
    found = gradient(learner)
    found = found * metrics["learner/grad_norm"] / found.norm()
    assert (found - expected).norm() < 1e-4 * expected.norm()
    for m in MODALITIES:
        assert metrics[f"loss/kl_penalty_{m}"] == pytest.approx(parts[m], rel=1e-4) and parts[m] > 1e-4


def test_rollouts_that_only_their_steps_tell_apart_do_not_dilute_the_loss(tiny_policy_dir: Path) -> None:
    """The ELBO is that of the final output: a group whose final outputs tie teaches nothing, whatever its guesses score."""
    learner, rollouts, feedback = taught(tiny_policy_dir, tasks=[("t2i", False), ("interleaved", False)])
    assert feedback.advantages is not None
    asked = [i for i, r in enumerate(rollouts) if r.prompt.task == "t2i"]
    advantages = feedback.advantages.copy()
    others = [i for i in range(len(rollouts)) if i not in asked]
    advantages[others, -1] = 0.0
    assert advantages[others].any()
    losses = []
    for batch, own in ((asked, feedback.advantages), (range(len(rollouts)), advantages)):
        fresh = make(tiny_policy_dir, "pararl_grpo", ELBO)
        given = Feedback(advantages=own[list(batch)])
        losses.append(fresh.update([rollouts[i] for i in batch], given)["loss/total"])
    assert losses[0] == pytest.approx(losses[1]) and abs(losses[0]) > 1e-3


def test_images_of_an_ode_are_learnt_from_their_flow_and_their_steps_refused(showo2_dir: Path) -> None:
    learner = make(showo2_dir, "pararl_grpo", ELBO)
    asked = [prompt(0, "t2i", False)] * 4 + [prompt(0, "interleaved", False)] * 4

    def rollouts(version: int) -> list[Rollout]:
        made = learner.policy.generate(asked, range(8), Sampling(steps=4, recorded=2, flow_noise=0.0), version)
        return [replace(r, index=i % 4) for i, r in enumerate(made)]

    for version in (0, 1):
        batch = rollouts(version)
        metrics = learner.update(batch, teach(batch, learner.arm))
        assert metrics["learner/grad_norm"] > 0
    assert metrics["kl/text"] > 0 and metrics["kl/total"] == metrics["kl/text"] and "kl/image" not in metrics
    assert learner.kl(rollouts(1)[:4]) == {"kl/total": 0.0}
    by_steps = make(showo2_dir, "pararl_grpo")
    batch = rollouts(0)
    with pytest.raises(ValueError, match=telling("rollout.flow_noise")):
        by_steps.update(batch, teach(batch, by_steps.arm))


def test_a_kl_penalty_holds_the_policy_near_the_base(showo2_dir: Path) -> None:
    moved = []
    for kl in (0.0, 10.0):
        learner = make(showo2_dir, "pararl_grpo", replace(ELBO, kl=kl))
        rollouts = sample(learner, ONE_TASK)
        feedback = teach(rollouts, learner.arm)
        for _ in range(8):
            learner.update(rollouts, feedback)
        draw = next(iter(learner.policy.draws(rollouts, 1, torch.Generator().manual_seed(9))))
        with torch.no_grad():
            own = learner.policy.draw_tokens(rollouts, draw)["image"]
            with learner.peft.disable_adapter():
                base = learner.policy.draw_tokens(rollouts, draw)["image"]
        moved.append(own.divergence(base).mean().item())
    assert 0 < moved[1] < moved[0] / 2, moved
