"""Bounds of whole outputs: SPG's mixture against loops, its gradient part by part, and every setting of the draws through the learner."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pararl import adapter
from pararl.config import Arm, LearnerConfig, RolloutConfig
from pararl.learner.learner import Learner
from pararl.learner.prefer import Feedback
from pararl.sampling import drawing_of, sampling_of
from pararl.types import Rollout, Task
from policies import Drawing, Draws, Policy, Sampling
from tests.pararl.learner.learning import ALL_TASKS, CONFIG, ONE_TASK, adapter_of, judge, make, reconfigure, sample, steps_of, teach

ELBO = replace(CONFIG, likelihood="elbo", draws=3, clip_norm=1e9)
SPG = replace(ELBO, negatives="spg", spg_mix=0.7, spg_beta=1.5, text_weight=0.5)
WEIGHTS = {"text": 0.5, "image": 1.0}


def gradient(learner: Learner) -> Tensor:
    return torch.cat([p.grad.flatten() for p in learner.parameters if p.grad is not None])


def trained(directory: Path, config: LearnerConfig, tasks: list[tuple[Task, bool]] = ONE_TASK) -> tuple[Learner, list[Rollout], Feedback]:
    """A learner that is no longer its reference, with a batch for its second update."""
    learner = make(directory, "online_dpo", config)
    rollouts = sample(learner, tasks, group=3)
    learner.update(rollouts, teach(rollouts, learner.arm))
    fresh = sample(learner, tasks, group=3)
    return learner, fresh, teach(fresh, learner.arm)


def sides(policy: Policy, rollouts: list[Rollout], draws: Draws, mix: float, beta: float) -> tuple[list[Tensor], list[Tensor]]:
    """Per rollout what its chosen and its rejected side is measured by, with loops over modalities, tokens and draws."""
    tokens = [policy.draw_tokens(rollouts, draw) for draw in draws]
    chosen, rejected = [], []
    for b in range(len(rollouts)):
        low, high = torch.zeros(()), torch.zeros(())
        for m, weight in WEIGHTS.items():
            if m not in draws.counted:
                continue
            counted = draws.counted[m][:, b].tolist()
            elbos = [sum(tokens[d][m].logprob[b, i] for i, own in enumerate(row) if own) / sum(row) for d, row in enumerate(counted)]
            terms = []
            for i in range(len(counted[0])):
                powers = [tokens[d][m].logprob[b, i].exp() ** beta * len(row) / sum(row) for d, row in enumerate(counted) if row[i]]
                if powers:
                    terms.append((sum(powers) / len(counted)).log() / beta)
            lower, upper = sum(elbos) / len(elbos), sum(terms) / len(terms)
            low, high = low + weight * lower, high + weight * (mix * upper + (1 - mix) * lower)
        chosen.append(low)
        rejected.append(high)
    return chosen, rejected


@pytest.mark.parametrize("tasks", [ONE_TASK, [("interleaved", False)]], ids=["t2i", "interleaved"])
@pytest.mark.parametrize("text_masks", ["random", "block"])
def test_the_loss_and_gradient_of_spg_are_those_of_its_formula_in_one_graph(tiny_policy_dir: Path, tasks: Any, text_masks: Any) -> None:
    config = replace(SPG, text_masks=text_masks, micro=2)
    learner, rollouts, feedback = trained(tiny_policy_dir, config, tasks)
    used = sorted({i for p in feedback.pairs for i in (p.chosen, p.rejected)})
    batch, place = [rollouts[i] for i in used], {i: k for k, i in enumerate(used)}
    draws = learner.policy.draws(batch, 3, torch.Generator().manual_seed(1), Drawing(text_masks=text_masks))
    with torch.no_grad(), adapter.base(learner.peft):
        chosen_base, rejected_base = sides(learner.policy, batch, draws, 0.7, 1.5)
    chosen, rejected = sides(learner.policy, batch, draws, 0.7, 1.5)
    total, mass = torch.zeros(()), 0.0
    for pair in feedback.pairs:
        c, r = place[pair.chosen], place[pair.rejected]
        weight = pair.margin if pair.weight is None else pair.weight
        margin = (chosen[c] - chosen_base[c]) - (rejected[r] - rejected_base[r])
        total, mass = total + weight * torch.nn.functional.softplus(-CONFIG.beta * margin), mass + weight
    grads = torch.autograd.grad(total / mass, learner.parameters)
    expected = torch.cat([g.flatten() for g in grads])
    assert learner.version == 1 and steps_of(learner).seed == 0, "draws of an update come from its seed and version"
    metrics = learner.update(rollouts, feedback)
    assert metrics["loss/total"] == pytest.approx((total / mass).item(), abs=1e-5)
    assert expected.norm() > 1e-3 and (gradient(learner) - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.parametrize("tasks", [ONE_TASK, ALL_TASKS], ids=["t2i", "mixed"])
def test_draw_by_draw_accumulation_of_spg_gives_the_gradient_of_the_single_pass(tiny_policy_dir: Path, tasks: Any) -> None:
    found = []
    for micro in (1024, 4):
        learner, rollouts, feedback = trained(tiny_policy_dir, replace(SPG, micro=1024), tasks)
        reconfigure(learner, replace(SPG, micro=micro))
        learner.update(rollouts, feedback)
        found.append(gradient(learner))
    assert found[0].norm() > 1e-3 and (found[1] - found[0]).norm() < 1e-4 * found[0].norm()


@pytest.mark.parametrize(
    "equal",
    [{"spg_mix": 0.0}, {"draws": 1, "image_ratio": 1.0, "text_ratio": 1.0, "spg_mix": 1.0}],
    ids=["no weight", "one draw that hides all"],
)
def test_spg_is_the_elbo_where_its_bounds_are_one(tiny_policy_dir: Path, equal: dict[str, Any]) -> None:
    found = []
    for negatives in ("elbo", "spg"):
        config = replace(ELBO, **equal)
        learner, rollouts, feedback = trained(tiny_policy_dir, config, ALL_TASKS)
        reconfigure(learner, replace(config, negatives=negatives))
        learner.update(rollouts, feedback)
        found.append(gradient(learner))
    assert found[0].norm() > 1e-3 and (found[1] - found[0]).norm() < 1e-4 * found[0].norm()


SETTINGS: list[dict[str, Any]] = [
    {"image_ratio": 0.0},
    {"image_ratio": 0.9},
    {"text_ratio": 0.6},
    {"text_masks": "block"},
    {"image_rows": "all"},
    {"negatives": "spg"},
]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: "-".join(map(str, *s.items())))
def test_every_setting_changes_the_gradient_and_updates_raise_what_they_prefer(tiny_policy_dir: Path, setting: dict[str, Any]) -> None:
    tasks: list[tuple[Task, bool]] = [("interleaved", False)]
    config = replace(ELBO, draws=4, **setting)
    learner, rollouts, feedback = trained(tiny_policy_dir, replace(ELBO, draws=4), tasks)
    plain, _, _ = trained(tiny_policy_dir, replace(ELBO, draws=4), tasks)
    reconfigure(learner, config)
    value = np.array([j.final.value for j in judge(rollouts)])  # type: ignore[union-attr]
    draws = learner.policy.draws(rollouts, 32, torch.Generator().manual_seed(5))

    def preference() -> float:
        with torch.no_grad():
            loglik = learner.policy.log_likelihood(rollouts, draws).sum(-1).numpy()
        return float(sum(((value[g] - value[g].mean()) * loglik[g]).sum() for g in (np.arange(3), np.arange(3, 6))))

    before = preference()
    learner.update(rollouts, feedback)
    plain.update(rollouts, feedback)
    assert (gradient(learner) - gradient(plain)).norm() > 1e-2 * gradient(plain).norm()
    for _ in range(3):
        learner.update(rollouts, feedback)
    assert preference() > before


@pytest.mark.parametrize(("arm", "likelihood"), [("online_dpo", "steps"), ("best_of_n", "elbo"), ("pararl_grpo", "steps")])
def test_spg_without_rejected_sides_measured_by_elbos_is_an_error(tiny_policy_dir: Path, arm: Arm, likelihood: Any) -> None:
    with pytest.raises(ValueError, match="learner.negatives"):
        make(tiny_policy_dir, arm, replace(CONFIG, likelihood=likelihood, negatives="spg"))


@pytest.mark.parametrize("arm", ["online_dpo", "pararl_grpo"])
def test_recorded_steps_at_which_nothing_was_committed_teach_nothing(tiny_policy_dir: Path, arm: Arm) -> None:
    """The emerge sampler may leave a step without a token, here the recorded ones of a whole batch in one part."""
    learner = make(tiny_policy_dir, arm, replace(CONFIG, micro=1024))
    rollouts = sample(learner)
    for rollout in rollouts:
        (image,) = rollout.segments
        image.commit_step[:] = next(step for step in range(4) if step not in rollout.recorded)
    before = adapter_of(learner)
    metrics = learner.update(rollouts, teach(rollouts, learner.arm))
    assert metrics["learner/grad_norm"] == 0.0 and torch.equal(adapter_of(learner), before)


def test_settings_of_a_run_reach_the_draws_and_the_sampler() -> None:
    assert drawing_of(LearnerConfig()) == Drawing()
    config = LearnerConfig(image_ratio=0.0, text_ratio=0.6, text_masks="block", image_rows="all")
    assert drawing_of(config) == Drawing(image_ratio=0.0, text_ratio=0.6, text_masks="block", image_rows="all")
    other = RolloutConfig(steps=3, recorded=2, temperature=0.5, choice_temperature=2.0, image_sampler="emerge", decoding="sequential")
    other = replace(other, image_steps=2, guidance=1.5, text_guidance=0.5, input_guidance=2.5)
    names = {f.name for f in fields(RolloutConfig)} & {f.name for f in fields(Sampling)}
    assert len(names) == 11
    assert all(getattr(sampling_of(other), name) == getattr(other, name) != getattr(Sampling(), name) for name in names)


@pytest.mark.parametrize("negatives", ["elbo", "spg"])
def test_a_reference_that_is_the_policy_itself_takes_the_place_of_the_first_pass(
    tiny_policy_dir: Path, negatives: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same gradient bit for bit, in two passes where there were three."""
    found, calls = [], []
    for refreshed in (True, False):
        learner, rollouts, feedback = trained(tiny_policy_dir, replace(SPG, negatives=negatives, micro=4), ONE_TASK)
        learner.reference.refresh(learner.version if refreshed else learner.version - 1)
        count = 0

        def counted(name: str, policy: Any = learner.policy) -> None:
            real = getattr(policy, name)

            def call(*given: Any) -> Any:
                nonlocal count
                count += 1
                return real(*given)

            monkeypatch.setattr(policy, name, call)

        counted("log_likelihood" if negatives == "elbo" else "draw_tokens")
        learner.update(rollouts, feedback)
        found.append(gradient(learner))
        calls.append(count)
    assert found[0].norm() > 1e-4 and torch.equal(*found)
    assert calls[1] * 2 == calls[0] * 3
