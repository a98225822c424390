"""The learner on a tiny random policy: invariants 1, 4 and 6, the reference, state and failure."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

import policies
from pararl import adapter, scenes
from pararl.config import Arm
from pararl.learner.learner import Learner
from pararl.learner.prefer import Feedback
from pararl.learner.tables import Table, kl_metrics, step_table
from pararl.types import KINDS, MODALITIES, TASKS, Latents, Rollout, Segment, Task
from policies import Batch, Policy
from policies.text import SHOWO_TOKENS, word_tokenizer
from tests.pararl.learner.learning import ALL_TASKS, CONFIG, ONE_TASK, adapter_of, judge, make, reconfigure, sample, table_of, teach
from tests.wording import telling

ENDS = {
    "tiny_policy_dir": (word_tokenizer(scenes.VOCABULARY)[1].eos,),
    "tiny_showo_dir": (
        word_tokenizer(scenes.VOCABULARY, SHOWO_TOKENS, 0)[1].eos,
        word_tokenizer(scenes.VOCABULARY, SHOWO_TOKENS, 0)[1].soi,
    ),
}
"""By the fixture of a policy, the ids that end its texts."""


def length(segment: Segment | Latents, ends: tuple[int, ...]) -> int:
    """Tokens of a segment up to and with its end."""
    tokens = segment.tokens.tolist()
    found = [i for i, token in enumerate(tokens) if segment.modality == "text" and token in ends]
    return found[0] + 1 if found else len(tokens)


@pytest.mark.parametrize("policy", ENDS)
@pytest.mark.parametrize("tasks", [*([pair] for pair in ALL_TASKS), ALL_TASKS], ids=[*(f"{t}-{s}" for t, s in ALL_TASKS), "mixed"])
def test_ratio_of_every_rollout_token_is_one_after_a_sync(
    request: pytest.FixtureRequest, policy: str, tasks: list[tuple[Task, bool]]
) -> None:
    directory: Path = request.getfixturevalue(policy)
    learner = make(directory)
    for _ in range(2):
        rollouts = sample(learner, tasks)
        learner.update(rollouts, teach(rollouts, learner.arm))
    fresh = sample(learner, tasks)
    with torch.no_grad():
        table = table_of(learner.policy, fresh)
    assert table.committed.flatten(1).any(1).all(), "every rollout is in the table"
    for i, rollout in enumerate(fresh):
        for m, modality in enumerate(MODALITIES):
            own = rollout.segment(modality)
            meant: np.ndarray = np.empty(0) if own is None else own.commit_step[: length(own, ENDS[policy])]
            tokens = np.array([np.sum(meant == step) for step in rollout.recorded])
            assert np.array_equal(table.committed[i, :, m].sum(-1).numpy(), tokens)
    assert torch.allclose(table.logprob, table.behaviour, atol=2e-5)
    base = make(directory)
    with torch.no_grad():
        assert not torch.allclose(table_of(base.policy, fresh).logprob, table.behaviour, atol=1e-3)


@pytest.mark.parametrize("policy", ENDS)
@pytest.mark.parametrize("tasks", [ONE_TASK, ALL_TASKS], ids=["t2i", "mixed"])
@pytest.mark.parametrize(("arm", "likelihood"), [("online_dpo", "steps"), ("online_dpo", "elbo"), ("pararl_grpo", "steps")])
def test_accumulation_in_micro_batches_and_draws_gives_the_gradient_of_the_single_pass(
    request: pytest.FixtureRequest, policy: str, arm: Arm, likelihood: Literal["steps", "elbo"], tasks: list[tuple[Task, bool]]
) -> None:
    directory: Path = request.getfixturevalue(policy)
    config = replace(CONFIG, likelihood=likelihood, draws=3, clip_norm=1e9)
    gradients = []
    for micro in (1024, 10, 4):
        learner = make(directory, arm, replace(config, micro=micro))
        rollouts = sample(learner, tasks, group=3)
        learner.update(rollouts, teach(rollouts, learner.arm))
        gradients.append(torch.cat([p.grad.flatten() for p in learner.parameters if p.grad is not None]))
    whole = gradients[0]
    assert whole.norm() > 1e-3
    for parts in gradients[1:]:
        assert (parts - whole).norm() < 1e-4 * whole.norm()


@pytest.mark.parametrize("likelihood", ["steps", "elbo"])
def test_a_mixed_batch_has_the_gradient_of_its_tasks_taken_apart(
    tiny_policy_dir: Path, monkeypatch: pytest.MonkeyPatch, likelihood: Literal["steps", "elbo"]
) -> None:
    """Best-of-n: the mean over all best rollouts is the mean over the tasks of their means, weighted with their numbers."""
    config = replace(CONFIG, likelihood=likelihood, draws=2, clip_norm=1e9)

    def gradient(tasks: tuple[Task, ...]) -> torch.Tensor:
        learner = make(tiny_policy_dir, "best_of_n", config)
        draws = learner.policy.draws  # the masks of a task must not depend on the tasks before it here
        monkeypatch.setattr(learner.policy, "draws", lambda rollouts, n, *_: draws(rollouts, n, torch.Generator().manual_seed(0)))
        kept = [r for r in sample(learner, ALL_TASKS, group=2) if r.prompt.task in tasks]
        learner.update(kept, Feedback(best=tuple(range(0, len(kept), 2))))
        return torch.cat([p.grad.flatten() for p in learner.parameters if p.grad is not None])

    shares = [sum(t == task for t, _ in ALL_TASKS) / len(ALL_TASKS) for task in TASKS]
    apart = torch.stack([share * gradient((task,)) for share, task in zip(shares, TASKS, strict=True)]).sum(0)
    whole = gradient(TASKS)
    assert whole.norm() > 1e-3 and (whole - apart).norm() < 1e-4 * whole.norm()


def test_adapter_off_is_the_base_and_every_target_got_a_gradient(tiny_policy_dir: Path) -> None:
    learner, base = make(tiny_policy_dir), policies.load(tiny_policy_dir)
    rollouts = sample(learner)
    learner.update(rollouts, teach(rollouts, learner.arm))
    gradients = {n: p.grad for n, p in learner.peft.named_parameters() if "lora_B" in n}
    assert len(gradients) == 7 * 2
    assert all(g is not None and g.abs().max() > 0 for g in gradients.values())
    ids = torch.randint(0, 100, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        with adapter.base(learner.peft):
            assert torch.equal(learner.policy.model(ids), base.model(ids))
        assert not torch.equal(learner.policy.model(ids), base.model(ids))


@pytest.mark.parametrize("arm", ["pararl", "pararl_grpo", "online_dpo", "best_of_n"])
def test_an_update_raises_what_it_prefers(tiny_policy_dir: Path, arm: Arm) -> None:
    learner = make(tiny_policy_dir, arm)
    rollouts = sample(learner)
    judgements = judge(rollouts)
    feedback = teach(rollouts, learner.arm, step_mix=0.0)
    value = np.array([j.final.value for j in judgements])  # type: ignore[union-attr]
    groups = [np.arange(4), np.arange(4, 8)]

    def preference() -> float:
        with torch.no_grad():
            table = table_of(learner.policy, rollouts)
        loglik = table.levels(table.logprob)[:, -1].sum(-1).numpy()
        return float(sum(((value[g] - value[g].mean()) * loglik[g]).sum() for g in groups))

    before = preference()
    for _ in range(3):
        learner.update(rollouts, feedback)
    assert preference() > before


def test_reference_is_the_base_until_it_is_refreshed(tiny_policy_dir: Path) -> None:
    fixed, moving = make(tiny_policy_dir), make(tiny_policy_dir, config=replace(CONFIG, reference_every=2))
    for learner in (fixed, moving):
        rollouts = sample(learner)
        for _ in range(2):
            learner.update(rollouts, teach(rollouts, learner.arm))
    assert fixed.reference.values is None and moving.reference.version == 2
    fresh = sample(moving)
    loss = moving.update(fresh, teach(fresh, moving.arm))["loss/total"]
    assert loss == pytest.approx(np.log(2), abs=1e-4)  # at the reference every log-ratio is 0
    fresh = sample(fixed)
    assert fixed.update(fresh, teach(fresh, fixed.arm))["loss/total"] != pytest.approx(np.log(2), abs=1e-4)


def test_state_round_trip_goes_on_as_if_never_stopped(tiny_policy_dir: Path) -> None:
    config = replace(CONFIG, reference_every=2, schedule="linear")
    straight, stopped = (make(tiny_policy_dir, config=config, updates=5) for _ in range(2))
    for learner in (straight, stopped):
        for _ in range(3):
            rollouts = sample(learner)
            learner.update(rollouts, teach(rollouts, learner.arm))
    resumed = make(tiny_policy_dir, config=config, updates=5)
    resumed.load_state(*stopped.state())
    for learner in (straight, resumed):
        rollouts = sample(learner)
        assert learner.update(rollouts, teach(rollouts, learner.arm))["learner/lr"] == pytest.approx(0.4 * CONFIG.lr)
    assert torch.equal(adapter_of(straight), adapter_of(resumed))
    assert resumed.version == 4


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_adapter(tiny_policy_dir: Path) -> None:
    learner = make(tiny_policy_dir)
    rollouts = sample(learner)
    feedback = teach(rollouts, learner.arm)
    broken = replace(feedback, pairs=tuple(replace(p, weight=float("nan")) for p in feedback.pairs))
    before = adapter_of(learner)
    with pytest.raises(FloatingPointError, match="update 1"):
        learner.update(rollouts, broken)
    assert torch.equal(adapter_of(learner), before)


def test_kl_to_the_base_is_zero_for_the_base_and_positive_after_updates(tiny_policy_dir: Path) -> None:
    learner = make(tiny_policy_dir)
    assert learner.kl(sample(learner))["kl/total"] == pytest.approx(0, abs=1e-6)
    for _ in range(3):
        rollouts = sample(learner)
        learner.update(rollouts, teach(rollouts, learner.arm))
    rollouts = sample(learner, prompts=4)
    metrics = learner.kl(rollouts)
    assert metrics["kl/total"] == metrics["kl/image"] > 1e-4
    with torch.no_grad(), adapter.base(learner.peft):
        table = table_of(learner.policy, rollouts)
    d = (table.logprob - table.behaviour)[table.committed]
    assert kl_metrics(table)["kl/image"] == pytest.approx((d.exp() - 1 - d).mean().item(), rel=1e-5)


def test_the_kl_penalty_is_to_the_base_whatever_the_reference_of_preferences(tiny_policy_dir: Path) -> None:
    """To the policy that sampled the batch it would be 0, and so would its gradient be."""
    config = replace(CONFIG, reference_every=1, clip_norm=1e9)
    learner, without = (make(tiny_policy_dir, "pararl_grpo", replace(config, kl=kl)) for kl in (0.5, 0.0))
    for _ in range(2):
        rollouts = sample(learner)
        learner.update(rollouts, teach(rollouts, learner.arm))
    without.load_state(*learner.state())
    rollouts = sample(learner)
    advantages = np.tile([[1.0], [-1.0]], (4, 3)).astype(np.float32)
    with torch.no_grad():
        table = table_of(learner.policy, rollouts)
        with adapter.base(learner.peft):
            d = (table_of(learner.policy, rollouts).logprob - table.logprob)[table.committed]
    metrics, plain = (x.update(rollouts, Feedback(advantages=advantages)) for x in (learner, without))
    expected = (d.exp() - 1 - d).mean().item()
    assert metrics["loss/kl_penalty_image"] == pytest.approx(expected, rel=1e-3) and expected > 1e-4
    assert metrics["loss/total"] - plain["loss/total"] == pytest.approx(0.5 * expected, rel=1e-3)
    pulled, free = (torch.cat([p.grad.flatten() for p in x.parameters if p.grad is not None]) for x in (learner, without))
    assert (pulled - free).norm() > 1e-2 * free.norm()


def test_a_batch_that_teaches_nothing_changes_nothing(tiny_policy_dir: Path) -> None:
    learner = make(tiny_policy_dir)
    before = adapter_of(learner)
    metrics = learner.update(sample(learner), Feedback())
    assert torch.equal(adapter_of(learner), before) and learner.version == 1
    assert "loss/total" not in metrics


@pytest.mark.parametrize("micro", [1, 4096])
@pytest.mark.parametrize("only_fill", [False, True])
def test_advantages_where_nothing_was_committed_change_nothing(tiny_policy_dir: Path, micro: int, only_fill: bool) -> None:
    """A batch of short answers, whose every informative step committed fill alone; AdamW's moments from before must not move anything."""
    learner = make(tiny_policy_dir, "pararl_grpo", replace(CONFIG, micro=micro))
    rollouts = sample(learner)
    advantages = np.zeros((len(rollouts), len(rollouts[0].recorded) + 1), np.float32)
    advantages[:] = np.linspace(-1, 1, len(rollouts))[:, None]
    learner.update(rollouts, Feedback(advantages=advantages))
    advantages[:, :-1] = 0.0  # what is left is the column of the final output alone, which has no tokens of its own
    if only_fill:
        rollouts = [
            replace(r, segments=tuple(replace(s, commit_step=np.full_like(s.commit_step, 99)) for s in r.segments)) for r in rollouts
        ]
    before = adapter_of(learner)
    metrics = learner.update(rollouts, Feedback(advantages=advantages))
    assert metrics["loss/total"] == 0.0 and metrics["learner/grad_norm"] == 0.0
    assert torch.equal(adapter_of(learner), before)


def test_a_linear_schedule_shortens_the_steps_update_by_update(tiny_policy_dir: Path) -> None:
    constant, linear = (
        make(tiny_policy_dir, "online_dpo"),
        make(tiny_policy_dir, "online_dpo", replace(CONFIG, schedule="linear"), updates=4),
    )
    rollouts = sample(constant)
    feedback = teach(rollouts, constant.arm)

    def move(learner: Learner) -> tuple[float, torch.Tensor]:
        before = torch.cat([p.detach().flatten().clone() for p in learner.parameters])
        rate = learner.update(rollouts, feedback)["learner/lr"]
        return rate, torch.cat([p.detach().flatten() for p in learner.parameters]) - before

    (whole, first), (same, again) = move(constant), move(linear)
    assert whole == same == CONFIG.lr and torch.equal(first, again)
    (_, second), (less, shorter) = move(constant), move(linear)
    assert less == 0.75 * CONFIG.lr and (shorter - 0.75 * second).norm() < 1e-3 * second.norm() > 0
    assert [move(linear)[0] for _ in range(2)] == [0.5 * CONFIG.lr, 0.25 * CONFIG.lr]
    with pytest.raises(ValueError, match=telling("learner.schedule", "linear")):
        make(tiny_policy_dir, "online_dpo", replace(CONFIG, schedule="linear"))


def test_the_kl_to_the_base_is_estimated_on_rollouts_of_every_kind(tiny_policy_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = make(tiny_policy_dir)
    rollouts = sample(learner, ALL_TASKS, prompts=1, group=8)
    asked: list[Rollout] = []
    import pararl.learner.learner

    real = step_table

    def watched(policy: Policy, some: Batch, width: int) -> Table:
        asked.extend(some)
        return real(policy, some, width)

    monkeypatch.setattr(pararl.learner.learner, "step_table", watched)
    learner.kl(sorted(rollouts, key=lambda r: r.prompt.kind))
    assert len(asked) == 32 and {r.prompt.kind for r in asked} == set(KINDS)


def test_the_kl_to_the_base_does_not_depend_on_the_chunks(tiny_policy_dir: Path) -> None:
    learner = make(tiny_policy_dir)
    for _ in range(2):
        rollouts = sample(learner, ALL_TASKS)
        learner.update(rollouts, teach(rollouts, learner.arm))
    fresh = sample(learner, ALL_TASKS, prompts=1, group=5)
    found = []
    for micro in (1, 6, 1024):
        reconfigure(learner, replace(learner.config, micro=micro))
        found.append(learner.kl(fresh))
    assert found[0]["kl/total"] > 0
    assert found[0] == pytest.approx(found[2], rel=1e-4) and found[1] == pytest.approx(found[2], rel=1e-4)


@pytest.mark.parametrize("arm", ["pararl", "pararl_grpo", "online_dpo"])
def test_on_policy_updates_spare_the_first_pass_and_keep_its_gradient(
    tiny_policy_dir: Path, monkeypatch: pytest.MonkeyPatch, arm: Arm
) -> None:
    """The sampler's record stands for the first pass; with the version denied, the learner takes it after all."""
    gradients, forwards = [], []
    import pararl.learner.step_terms

    real = step_table
    for same in (True, False):
        learner = make(tiny_policy_dir, arm, replace(CONFIG, micro=4, clip_norm=1e9, reference_every=1))
        rollouts = sample(learner, ALL_TASKS, group=3)
        learner.update(rollouts, teach(rollouts, learner.arm))
        fresh = sample(learner, ALL_TASKS, group=3)
        given = fresh if same else [replace(r, version=0) for r in fresh]
        calls: list[int] = []

        def counted(policy: Policy, some: Batch, width: int | None = None, calls: list[int] = calls) -> Table:
            calls.append(len(some))
            return real(policy, some, width)

        monkeypatch.setattr(pararl.learner.step_terms, "step_table", counted)
        # Both against the same reference, the policy before the update.
        learner.reference.version = 1 if same else 0
        metrics = learner.update(given, teach(fresh, learner.arm))
        gradients.append(torch.cat([p.grad.flatten() for p in learner.parameters if p.grad is not None]))
        forwards.append(sum(calls))
        assert ("sync/logprob_gap" in metrics) == same and metrics.get("sync/logprob_gap", 0.0) < 1e-4
    assert (gradients[0] - gradients[1]).norm() < 1e-4 * gradients[1].norm()
    assert 0 < forwards[0] <= 36 and forwards[1] > 1.5 * forwards[0]


@pytest.mark.parametrize(
    ("arm", "likelihood", "kl"),
    [("pararl", "steps", 0.0), ("pararl_grpo", "steps", 0.5), ("pararl_grpo", "elbo", 0.5), ("online_dpo", "elbo", 0.0)],
)
def test_a_batch_is_prepared_once_an_update_and_all_that_the_policy_is_asked_is_of_it(
    tiny_policy_dir: Path, monkeypatch: pytest.MonkeyPatch, arm: Arm, likelihood: Literal["steps", "elbo"], kl: float
) -> None:
    learner = make(tiny_policy_dir, arm, replace(CONFIG, likelihood=likelihood, draws=2, micro=4, kl=kl))
    rollouts = sample(learner, ALL_TASKS, group=3)
    learner.update(rollouts, teach(rollouts, learner.arm))
    fresh = sample(learner, ALL_TASKS, group=3)
    prepared: list[int] = []
    asked: set[str] = set()

    def prepare(given: Sequence[Rollout]) -> Batch:
        if not isinstance(given, Batch):  # what is laid out stays as it is
            prepared.append(len(given))
        return lay_out(given)

    def watched(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(batch: Batch, *given: Any) -> Any:
            assert isinstance(batch, Batch), f"{name} of rollouts that were not prepared"
            asked.add(name)
            return real(batch, *given)

        return call

    policy, lay_out = learner.policy, learner.policy.prepare
    feedback = teach(fresh, learner.arm)
    for name in ("step_tokens", "draws", "draw_tokens", "log_likelihood"):
        monkeypatch.setattr(policy, name, watched(name, getattr(policy, name)))
    monkeypatch.setattr(policy, "prepare", prepare)
    metrics = learner.update(fresh, feedback)
    assert prepared == [len(fresh)] and metrics["learner/grad_norm"] > 0 and "kl/total" in metrics
    own = "step_tokens" if likelihood == "steps" else "draw_tokens" if arm == "pararl_grpo" else "log_likelihood"
    assert {own, "step_tokens"} <= asked
