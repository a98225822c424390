"""The learner on a tiny random policy: invariants 1, 4 and 6, the reference, state and failure."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

import policies
from pararl import adapter, scenes
from pararl.arms import ARM_SPECS, ArmSpec
from pararl.config import Arm, LearnerConfig, PreferConfig
from pararl.learner import Learner, Table, by_task, kl_figures, longest, step_table
from pararl.prefer import Feedback, prefer
from pararl.types import KINDS, MODALITIES, TASKS, Judgement, Prompt, Rollout, Score, Segment, Task
from policies import Policy, Sampling
from policies.text import word_tokenizer

SAMPLING = Sampling(steps=4, recorded=2, temperature=1.0)
CONFIG = LearnerConfig(lr=1e-2, beta=1.0, reference_every=0)


def make(directory: Path, arm: Arm = "pararl", config: LearnerConfig = CONFIG, updates: int | None = None) -> Learner:
    policy = policies.load(directory)
    return Learner(policy, adapter.attach(policy, rank=4, alpha=8, seed=1), config, ARM_SPECS[arm], updates=updates)


def prompt(i: int, task: Task, shown: bool) -> Prompt:
    """The i-th training text under another task; with a noisy input image where the task shows one."""
    image = np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8) if shown else None
    return Prompt(f"{task}-{shown}-{i}", task, scenes.prompt("train", i, task="t2i").text, image=image)


ONE_TASK: list[tuple[Task, bool]] = [("t2i", False)]
ALL_TASKS: list[tuple[Task, bool]] = [
    *((task, task in ("i2t", "edit")) for task in TASKS),
    ("interleaved", True),
]
"""Each task and whether it shows an image; interleaved both ways."""


def sample(learner: Learner, tasks: list[tuple[Task, bool]] = ONE_TASK, prompts: int = 2, group: int = 4) -> list[Rollout]:
    """``group`` rollouts of ``prompts`` prompts of every task, the tasks in turn."""
    asked = [prompt(i, task, shown) for i in range(prompts) for task, shown in tasks for _ in range(group)]
    made = learner.policy.generate(asked, list(range(len(asked))), SAMPLING, learner.version)
    return [replace(r, index=i % group) for i, r in enumerate(made)]


def judge(rollouts: list[Rollout]) -> list[Judgement]:
    """A reward that a random policy's samples differ in: the share of odd ids among the tokens of the image, else of the text."""
    return [Judgement(*scores(r.segment("image") or r.segments[0])) for r in rollouts]


def scores(part: Segment) -> tuple[Score, tuple[Score, ...]]:
    return Score(float((part.tokens % 2).mean())), tuple(Score(float((g % 2).mean())) for g in part.guesses)


def teach(rollouts: list[Rollout], arm: ArmSpec, step_mix: float = 0.5) -> Feedback:
    return prefer(rollouts, judge(rollouts), arm, PreferConfig(min_margin=0.0), step_mix, keep=8)


def adapter_of(learner: Learner) -> torch.Tensor:
    return torch.cat([x.flatten() for x in adapter.tensors(learner.peft).values()]).clone()


def length(segment: Segment) -> int:
    """Tokens of a segment up to and with its end."""
    end = word_tokenizer(scenes.VOCABULARY)[1].eos
    tokens = segment.tokens.tolist()
    return tokens.index(end) + 1 if segment.modality == "text" and end in tokens else len(tokens)


@pytest.mark.parametrize("tasks", [*([pair] for pair in ALL_TASKS), ALL_TASKS], ids=[*(f"{t}-{s}" for t, s in ALL_TASKS), "mixed"])
def test_ratio_of_every_rollout_token_is_one_after_a_sync(tiny_policy_dir: Path, tasks: list[tuple[Task, bool]]) -> None:
    learner = make(tiny_policy_dir)
    for _ in range(2):
        rollouts = sample(learner, tasks)
        learner.update(rollouts, teach(rollouts, learner.arm))
    fresh = sample(learner, tasks)
    with torch.no_grad():
        table = step_table(learner.policy, fresh)
    assert table.committed.flatten(1).any(1).all(), "every rollout is in the table"
    for i, rollout in enumerate(fresh):
        for m, modality in enumerate(MODALITIES):
            own = rollout.segment(modality)
            meant: np.ndarray = np.empty(0) if own is None else own.commit_step[: length(own)]
            tokens = np.array([np.sum(meant == step) for step in rollout.recorded])
            assert np.array_equal(table.committed[i, :, m].sum(-1).numpy(), tokens)
    assert torch.allclose(table.logprob, table.behaviour, atol=2e-5)
    base = make(tiny_policy_dir)
    with torch.no_grad():
        assert not torch.allclose(step_table(base.policy, fresh).logprob, table.behaviour, atol=1e-3)


@pytest.mark.parametrize("tasks", [ONE_TASK, ALL_TASKS], ids=["t2i", "mixed"])
@pytest.mark.parametrize(("arm", "likelihood"), [("output", "steps"), ("output", "elbo"), ("pararl_grpo", "steps")])
def test_accumulation_in_micro_batches_and_draws_gives_the_gradient_of_the_single_pass(
    tiny_policy_dir: Path, arm: Arm, likelihood: Literal["steps", "elbo"], tasks: list[tuple[Task, bool]]
) -> None:
    config = replace(CONFIG, likelihood=likelihood, draws=3, clip_norm=1e9)
    gradients = []
    for micro in (1024, 10, 4):
        learner = make(tiny_policy_dir, arm, replace(config, micro=micro))
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
        monkeypatch.setattr(learner.policy, "draws", lambda rollouts, n, _: draws(rollouts, n, torch.Generator().manual_seed(0)))
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


@pytest.mark.parametrize("arm", ["pararl", "pararl_grpo", "output", "best_of_n"])
def test_an_update_raises_what_it_prefers(tiny_policy_dir: Path, arm: Arm) -> None:
    learner = make(tiny_policy_dir, arm)
    rollouts = sample(learner)
    judgements = judge(rollouts)
    feedback = teach(rollouts, learner.arm, step_mix=0.0)
    value = np.array([j.final.value for j in judgements])  # type: ignore[union-attr]
    groups = [np.arange(4), np.arange(4, 8)]

    def preference() -> float:
        with torch.no_grad():
            table = step_table(learner.policy, rollouts)
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
    assert fixed.reference is None and moving.reference_version == 2
    fresh = sample(moving)
    loss = moving.update(fresh, teach(fresh, moving.arm))["preference/loss"]
    assert loss == pytest.approx(np.log(2), abs=1e-4)  # at the reference every log-ratio is 0
    fresh = sample(fixed)
    assert fixed.update(fresh, teach(fresh, fixed.arm))["preference/loss"] != pytest.approx(np.log(2), abs=1e-4)


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
        assert learner.update(rollouts, teach(rollouts, learner.arm))["preference/lr"] == pytest.approx(0.4 * CONFIG.lr)
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
    figures = learner.kl(rollouts)
    assert figures["kl/total"] == figures["kl/image"] > 1e-4
    with torch.no_grad(), adapter.base(learner.peft):
        table = step_table(learner.policy, rollouts)
    d = (table.logprob - table.behaviour)[table.committed]
    assert kl_figures(table)["kl/image"] == pytest.approx((d.exp() - 1 - d).mean().item(), rel=1e-5)


def test_a_batch_that_teaches_nothing_changes_nothing(tiny_policy_dir: Path) -> None:
    learner = make(tiny_policy_dir)
    before = adapter_of(learner)
    figures = learner.update(sample(learner), Feedback())
    assert torch.equal(adapter_of(learner), before) and learner.version == 1
    assert "preference/loss" not in figures


def test_grpo_gives_every_modality_its_own_mean_and_weight(tiny_policy_dir: Path) -> None:
    """By hand, in numpy, from the definition: a mean over the tokens of a modality at a step, whatever the other modality has there."""
    arm: Arm = "pararl_grpo"
    gradients, found = {}, {}
    for weights in ((1.0, 0.0), (0.0, 1.0), (2.0, 0.5)):
        config = replace(CONFIG, text_weight=weights[0], image_weight=weights[1], clip_norm=1e9)
        learner = make(tiny_policy_dir, arm, config)
        rollouts = sample(learner, [("interleaved", False)])
        feedback = teach(rollouts, learner.arm)
        # An update of random size first, so that the ratios are not all 1.
        with torch.no_grad():
            generator = torch.Generator().manual_seed(3)
            for parameter in learner.parameters:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.03)
            table = step_table(learner.policy, rollouts)
        figures = learner.update(rollouts, feedback)
        gradients[weights] = torch.cat([p.grad.flatten() for p in learner.parameters if p.grad is not None])
        assert feedback.advantages is not None
        used = [i for i in range(len(rollouts)) if feedback.advantages[i].any()]
        expected = {}
        for m, modality in enumerate(MODALITIES):
            gains = []
            for i in used:
                steps = [s for s in range(len(rollouts[i].recorded)) if table.committed[i, s, m].any()]
                gains += [0.0] if steps else []
                for s in steps:
                    here = table.committed[i, s, m]
                    ratio = (table.logprob[i, s, m] - table.behaviour[i, s, m])[here].exp().double().numpy()
                    advantage = float(feedback.advantages[i, s])
                    gains[-1] += np.minimum(ratio * advantage, ratio.clip(0.8, 1.2) * advantage).mean() / len(steps)
            expected[modality] = -float(np.mean(gains))
        assert figures["preference/loss"] == pytest.approx(weights[0] * expected["text"] + weights[1] * expected["image"], abs=1e-5)
        found[weights] = figures
        assert {f"preference/{name}_{m}" for name in ("ratio", "clipped") for m in MODALITIES} <= figures.keys()
    both = 2 * gradients[(1.0, 0.0)] + 0.5 * gradients[(0.0, 1.0)]
    assert (both - gradients[(2.0, 0.5)]).norm() < 1e-4 * both.norm() > 0


def test_a_linear_schedule_shortens_the_steps_update_by_update(tiny_policy_dir: Path) -> None:
    constant, linear = make(tiny_policy_dir, "output"), make(tiny_policy_dir, "output", replace(CONFIG, schedule="linear"), updates=4)
    rollouts = sample(constant)
    feedback = teach(rollouts, constant.arm)

    def move(learner: Learner) -> tuple[float, torch.Tensor]:
        before = torch.cat([p.detach().flatten().clone() for p in learner.parameters])
        rate = learner.update(rollouts, feedback)["preference/lr"]
        return rate, torch.cat([p.detach().flatten() for p in learner.parameters]) - before

    (whole, first), (same, again) = move(constant), move(linear)
    assert whole == same == CONFIG.lr and torch.equal(first, again)
    (_, second), (less, shorter) = move(constant), move(linear)
    assert less == 0.75 * CONFIG.lr and (shorter - 0.75 * second).norm() < 1e-3 * second.norm() > 0
    assert [move(linear)[0] for _ in range(2)] == [0.5 * CONFIG.lr, 0.25 * CONFIG.lr]
    with pytest.raises(ValueError, match="number of updates"):
        make(tiny_policy_dir, "output", replace(CONFIG, schedule="linear"))


def test_credit_moves_the_tokens_of_its_cells_alone(tiny_policy_dir: Path) -> None:
    """Without any other advantage, an update with credit at one quarter of the image is one on the tokens of that quarter."""
    learner = make(tiny_policy_dir, "pararl_grpo", replace(CONFIG, clip_norm=1e9))
    rollouts = sample(learner)
    credit = np.zeros((len(rollouts), 2, 2), np.float32)
    credit[3, 0, 1] = 0.7
    width = 2 + longest(rollouts)
    tokens = learner._token_credit(credit, width)
    assert tokens.shape == (len(rollouts), width) and tokens[3, :16].reshape(4, 4)[:2, 2:].eq(0.7).all() and tokens.count_nonzero() == 4
    nothing = np.zeros((len(rollouts), len(rollouts[0].recorded) + 1), np.float32)
    figures = learner.update(rollouts, Feedback(advantages=nothing, credit=credit))
    got = torch.cat([p.grad.flatten() for p in learner.parameters if p.grad is not None])
    # The same by hand: the mean of the quarter's tokens over those committed at a step, over the steps that committed any.
    other = make(tiny_policy_dir, "pararl_grpo")
    table = step_table(other.policy, [rollouts[3]])
    image = MODALITIES.index("image")
    here = table.committed[0, :, image, :16]
    per_step = ((table.logprob - table.behaviour.detach())[0, :, image, :16].exp() * tokens[3, :16] * here).sum(-1)
    loss = -(per_step / here.sum(-1).clamp_min(1)).sum() / here.any(-1).sum()
    loss.backward()
    expected = torch.cat([p.grad.flatten() for p in other.parameters if p.grad is not None])
    assert figures["preference/loss"] == pytest.approx(loss.item(), abs=1e-5) and expected.norm() > 0
    assert (got - expected).norm() < 1e-4 * expected.norm()


def test_credit_moves_the_tokens_of_its_words_alone(tiny_policy_dir: Path) -> None:
    learner = make(tiny_policy_dir, "pararl_grpo", replace(CONFIG, clip_norm=1e9))
    rollouts = sample(learner, [("t2t", False)])
    whole = step_table(learner.policy, rollouts)
    text = MODALITIES.index("text")
    # A word is a token in this vocabulary; one that was committed at a recorded step, in a text of several.
    seen = [
        (i, w) for i, r in enumerate(rollouts) for w in range(1, len((r.output.text or "").split())) if whole.committed[i, :, text, w].any()
    ]
    chosen, word = seen[0]
    words = np.zeros(len((rollouts[chosen].output.text or "").split()), np.float32)
    words[word] = -0.7
    nothing = np.zeros((len(rollouts), len(rollouts[0].recorded) + 1), np.float32)
    figures = learner.update(rollouts, Feedback(advantages=nothing, words={chosen: words}))
    got = torch.cat([p.grad.flatten() for p in learner.parameters if p.grad is not None])
    other = make(tiny_policy_dir, "pararl_grpo")
    table = step_table(other.policy, [rollouts[chosen]])
    here = table.committed[0, :, text]
    (step,) = here[:, word].nonzero()[0].tolist()
    ratio = (table.logprob - table.behaviour.detach())[0, step, text, word].exp()
    gain = -0.7 * ratio / here[step].sum()
    loss = -gain / here.any(-1).sum()
    loss.backward()
    expected = torch.cat([p.grad.flatten() for p in other.parameters if p.grad is not None])
    assert figures["preference/loss"] == pytest.approx(loss.item(), abs=1e-5) and expected.norm() > 0
    assert (got - expected).norm() < 1e-4 * expected.norm()
    with pytest.raises(ValueError, match="credit for 1 words"):
        learner.update(rollouts, Feedback(advantages=nothing, words={chosen: words[:1] + 1}))


def test_credit_of_words_reaches_the_rows_of_its_rollouts(tiny_policy_dir: Path) -> None:
    learner = make(tiny_policy_dir, "pararl_grpo")
    rollouts = sample(learner, ALL_TASKS, prompts=1)
    spoken = [i for i, r in enumerate(rollouts) if r.output.text]
    words = {i: np.arange(1, len((rollouts[i].output.text or "").split()) + 1, dtype=np.float32) / (i + 1) for i in spoken[1::2]}
    used = by_task(rollouts, range(len(rollouts)))[::-1]
    width = longest(rollouts) + 3
    found = learner._word_credit([rollouts[i] for i in used], Feedback(words=words), used, width)
    assert found.shape == (len(used), width) and len(words) > 3
    for row, i in enumerate(used):
        expected = words.get(i, np.zeros(0, np.float32))  # a word is a token in this vocabulary
        assert found[row, : len(expected)].tolist() == expected.tolist() and not found[row, len(expected) :].any()


def test_the_kl_to_the_base_is_estimated_on_rollouts_of_every_kind(tiny_policy_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = make(tiny_policy_dir)
    rollouts = sample(learner, ALL_TASKS, prompts=1, group=8)
    asked: list[Rollout] = []
    import pararl.learner

    real = pararl.learner.step_table

    def watched(policy: Policy, some: list[Rollout]) -> Table:
        asked.extend(some)
        return real(policy, some)

    monkeypatch.setattr(pararl.learner, "step_table", watched)
    learner.kl(sorted(rollouts, key=lambda r: r.prompt.kind))
    assert len(asked) == 32 and {r.prompt.kind for r in asked} == set(KINDS)


@pytest.mark.parametrize("arm", ["pararl", "pararl_grpo", "output"])
def test_on_policy_updates_spare_the_first_pass_and_keep_its_gradient(
    tiny_policy_dir: Path, monkeypatch: pytest.MonkeyPatch, arm: Arm
) -> None:
    """The sampler's record stands for the first pass; with the version denied, the learner takes it after all."""
    gradients, forwards = [], []
    import pararl.learner

    real = pararl.learner.step_table
    for same in (True, False):
        learner = make(tiny_policy_dir, arm, replace(CONFIG, micro=4, clip_norm=1e9, reference_every=1))
        rollouts = sample(learner, ALL_TASKS, group=3)
        learner.update(rollouts, teach(rollouts, learner.arm))
        fresh = sample(learner, ALL_TASKS, group=3)
        given = fresh if same else [replace(r, version=0) for r in fresh]
        calls: list[int] = []

        def counted(policy: Policy, some: list[Rollout], width: int | None = None, calls: list[int] = calls) -> Table:
            calls.append(len(some))
            return real(policy, some, width)

        monkeypatch.setattr(pararl.learner, "step_table", counted)
        # Both against the same reference, the policy before the update.
        learner.reference_version = 1 if same else 0
        figures = learner.update(given, teach(fresh, learner.arm))
        gradients.append(torch.cat([p.grad.flatten() for p in learner.parameters if p.grad is not None]))
        forwards.append(sum(calls) - (32 if same else 0))  # the estimate of the KL takes 32 rollouts more
        assert ("sync/logprob_gap" in figures) == same and figures.get("sync/logprob_gap", 0.0) < 1e-4
    assert (gradients[0] - gradients[1]).norm() < 1e-4 * gradients[1].norm()
    assert 0 < forwards[0] <= 36 and forwards[1] > 1.5 * forwards[0]
