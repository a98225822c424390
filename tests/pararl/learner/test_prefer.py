"""Pairs and advantages from scores."""

import numpy as np
import pytest

from pararl.arms import ARM_SPECS
from pararl.config import PreferConfig
from pararl.learner.prefer import (
    Feedback,
    extremes,
    groups,
    normalise,
    prefer,
    relative_credit,
    relative_words,
    rewards,
    select_pairs,
    without_spread,
)
from pararl.types import Judgement, Output, Pair, Prompt, Rollout, Score
from tests.wording import telling

A, B = Prompt("a", "t2i", "x"), Prompt("b", "t2i", "y")


def rollout(prompt: Prompt, index: int) -> Rollout:
    return Rollout(prompt, index, seed=index, version=0, steps=4, recorded=(1, 2), segments=(), output=Output(), guesses=())


def judged(final: float | None, *steps: float | None) -> Judgement:
    def score(value: float | None) -> Score | None:
        return None if value is None else Score(value, strict=value == 1.0)

    return Judgement(score(final), tuple(score(x) for x in steps))


def test_best_worst_gives_one_pair_a_group_and_all_margin_every_informative_one() -> None:
    reward, members = np.array([0.1, 0.9, 0.5, 0.3, 0.3]), [np.array([0, 1, 2]), np.array([3, 4])]
    (pair,) = select_pairs(reward, members, PreferConfig(select="best_worst", min_margin=0.0), None)
    assert (pair.chosen, pair.rejected, pair.margin) == (1, 0, pytest.approx(0.8))
    every = select_pairs(reward, members, PreferConfig(select="all_margin", min_margin=0.0), 1)
    assert {(p.chosen, p.rejected) for p in every} == {(1, 0), (2, 0), (1, 2)}
    assert all(p.step == 1 and p.margin > 0 for p in every)
    assert {(p.chosen, p.rejected) for p in select_pairs(reward, members, PreferConfig(min_margin=0.5), None)} == {(1, 0)}


def test_pairs_never_cross_prompts_and_never_use_a_missing_score() -> None:
    rollouts = [rollout(A, 0), rollout(B, 0), rollout(A, 1), rollout(B, 1), rollout(A, 2)]
    judgements = [judged(0.0), judged(1.0), judged(None), judged(0.5), judged(0.25)]
    feedback = prefer(rollouts, judgements, ARM_SPECS["online_dpo"], PreferConfig(), 0.5, keep=8)
    assert {(p.chosen, p.rejected, p.step) for p in feedback.pairs} == {(4, 0, None), (1, 3, None)}


def test_step_rewards_mix_guess_and_final_output() -> None:
    got = rewards([judged(1.0, 0.2, None)], "step", 0.75)
    assert got[0, 0] == pytest.approx(0.75 * 0.2 + 0.25)
    assert got[0, 1] == 1.0 and got[0, 2] == 1.0, "a guess that was not scored leaves the final score"
    assert rewards([judged(1.0, 0.2, None)], "final", 0.75).tolist() == [[1.0]]


def test_strict_scores_part_what_soft_scores_hardly_tell_apart() -> None:
    right, nearly = judged(1.0, 0.97, None), judged(0.97, 1.0, None)
    assert rewards([right, nearly], "final", 0.5, strict_mix=0.5).tolist() == [[1.0], [pytest.approx(0.485)]]
    mixed = rewards([right, nearly], "step", 0.5, strict_mix=0.5)
    assert mixed[0, 0] == pytest.approx(0.5 * 0.485 + 0.5) and mixed[1, 0] == pytest.approx(0.5 * 1.0 + 0.5 * 0.485)
    plain = Judgement(Score(0.8))
    assert rewards([plain], "final", 0.5, strict_mix=0.5).tolist() == [[0.8]], "a reward without strict scores keeps its own"
    rollouts = [rollout(A, i) for i in range(3)]
    judgements = [judged(1.0), judged(0.97), judged(0.3)]
    feedback = prefer(rollouts, judgements, ARM_SPECS["online_dpo"], PreferConfig(balance=False), 0.5, keep=8, strict_mix=0.5)
    assert {(p.chosen, p.rejected): round(p.margin, 3) for p in feedback.pairs} == {(0, 1): 0.515, (0, 2): 0.85, (1, 2): 0.335}
    assert dict(feedback.metrics)["reward/mean"] == pytest.approx((1.0 + 0.97 + 0.3) / 3), "what is logged stays the soft score"


def test_step_pairs_name_their_step_and_final_pairs_none() -> None:
    rollouts = [rollout(A, 0), rollout(A, 1)]
    judgements = [judged(1.0, 0.2, 0.6), judged(0.0, 0.9, 0.6)]
    feedback = prefer(rollouts, judgements, ARM_SPECS["pararl"], PreferConfig(min_margin=0.0), 1.0, keep=8)
    assert {(p.step, p.chosen) for p in feedback.pairs} == {(0, 1), (None, 0)}


def test_advantages_are_group_normalised_per_step_and_zero_without_spread() -> None:
    reward = np.array([[0.0, 0.5], [1.0, 0.5], [0.5, 0.5], [0.2, np.nan]])
    out = normalise(reward, [np.array([0, 1, 2]), np.array([3])])
    part = reward[:3, 0]
    assert np.allclose(out[:3, 0], (part - part.mean()) / part.std())
    assert not out[:, 1].any() and out[3, 0] == 0 and np.isfinite(out).all()


def test_credit_of_a_cell_is_what_it_has_more_than_the_group_has_there() -> None:
    def credited(*cells: float) -> Judgement:
        return Judgement(Score(0.5, False, credit=np.array(cells, np.float32).reshape(1, 2)))

    rollouts = [rollout(A, 0), rollout(A, 1), rollout(A, 2), rollout(B, 0), rollout(B, 1)]
    judgements = [credited(1, -1), credited(1, 1), Judgement(Score(0.1)), credited(-1, 0), credited(-1, 1)]
    found = relative_credit(judgements, groups(rollouts))
    assert found is not None and found.shape == (5, 1, 2)
    assert found[:, 0].tolist() == [[0, -1], [0, 1], [0, 0], [0, -0.5], [0, 0.5]]
    assert relative_credit([judged(1.0)], [np.array([0])]) is None
    feedback = prefer(rollouts, judgements, ARM_SPECS["pararl_grpo"], PreferConfig(credit=0.5), 0.5, keep=8)
    assert feedback.credit is not None and np.array_equal(feedback.credit, 0.5 * found)
    assert prefer(rollouts, judgements, ARM_SPECS["pararl_grpo"], PreferConfig(), 0.5, keep=8).credit is None
    with pytest.raises(ValueError, match=telling("credit", "(1, 2)", "(2, 2)")):
        relative_credit([credited(1, 1), Judgement(Score(0.5, credit=np.zeros((2, 2), np.float32)))], [np.arange(2)])


def test_credit_of_a_word_is_what_it_has_more_than_the_words_of_the_group() -> None:
    def credited(*words: float) -> Judgement:
        return Judgement(Score(0.5, False, words=np.array(words, np.float32)))

    rollouts = [rollout(A, 0), rollout(A, 1), rollout(A, 2), rollout(B, 0)]
    judgements = [credited(0, 0, -1), credited(-1), Judgement(Score(0.1)), credited(0, 0)]
    found = relative_words(judgements, groups(rollouts))
    assert {i: words.tolist() for i, words in found.items()} == {0: [0.5, 0.5, -0.5], 1: [-0.5], 3: [0, 0]}
    feedback = prefer(rollouts, judgements, ARM_SPECS["pararl_grpo"], PreferConfig(credit=2), 0.5, keep=8)
    assert {i: words.tolist() for i, words in feedback.words.items()} == {0: [1, 1, -1], 1: [-1], 3: [0, 0]}
    assert not prefer(rollouts, judgements, ARM_SPECS["pararl_grpo"], PreferConfig(), 0.5, keep=8).words


def test_extremes_keeps_the_best_and_the_worst() -> None:
    reward = np.array([0.5, 0.1, 0.9, 0.4, 0.6, np.nan])
    assert sorted(extremes(reward, np.arange(6), 4).tolist()) == [1, 2, 3, 4]
    assert sorted(extremes(reward, np.arange(6), 8).tolist()) == [0, 1, 2, 3, 4]
    assert extremes(reward, np.arange(6), 1).tolist() == [2], "the last none of a list are not all of it"


def test_best_of_n_takes_the_best_of_groups_with_spread() -> None:
    rollouts = [rollout(A, 0), rollout(A, 1), rollout(B, 0), rollout(B, 1)]
    feedback = prefer(rollouts, [judged(0.1), judged(0.7), judged(0.4), judged(0.4)], ARM_SPECS["best_of_n"], PreferConfig(), 0.5, keep=8)
    assert feedback.best == (1,)
    assert dict(feedback.metrics)["reward/groups_without_spread"] == 0.5


IN_TWO_TASKS = (Prompt("a", "t2i", "x"), Prompt("a", "interleaved", "x"))


def test_prompts_of_two_tasks_that_share_an_id_make_two_groups() -> None:
    rollouts = [rollout(prompt, i) for i in range(2) for prompt in IN_TWO_TASKS]
    judgements = [judged(0.0), judged(1.0), judged(0.5), judged(0.25)]
    feedback = prefer(rollouts, judgements, ARM_SPECS["online_dpo"], PreferConfig(), 0.5, keep=8)
    assert {(p.chosen, p.rejected) for p in feedback.pairs} == {(2, 0), (1, 3)}
    advantages = prefer(rollouts, judgements, ARM_SPECS["pararl_grpo"], PreferConfig(), 0.5, keep=8).advantages
    assert advantages is not None and np.allclose(advantages[:, -1], [-1, 1, 1, -1])


def test_every_kind_weighs_as_much_as_it_has_prompts_with_a_pair_whatever_its_margins() -> None:
    sharp, soft = [Prompt(f"s{i}", "i2t", "x") for i in range(2)], [Prompt("f", "t2i", "x"), Prompt("g", "t2i", "x")]
    rollouts = [rollout(prompt, i) for prompt in (*sharp, *soft) for i in range(3)]
    judgements = [judged(v) for v in (1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.5, 0.6, 0.7, 0.9, 0.9, 0.9)]
    feedback = prefer(rollouts, judgements, ARM_SPECS["online_dpo"], PreferConfig(min_margin=0.0), 0.5, keep=8)
    weight = {"i2t": 0.0, "t2i": 0.0}
    for pair in feedback.pairs:
        assert pair.weight is not None
        weight[rollouts[pair.chosen].prompt.kind] += pair.weight
    assert weight["i2t"] == pytest.approx(2.0) and weight["t2i"] == pytest.approx(1.0), "one of the two t2i groups has no spread"
    within = {(p.chosen, p.rejected): p.weight for p in feedback.pairs if rollouts[p.chosen].prompt.kind == "t2i"}
    assert within[(8, 6)] == pytest.approx(2 * within[(7, 6)]), "within a kind, by margin"  # type: ignore[operator]
    plain = prefer(rollouts, judgements, ARM_SPECS["online_dpo"], PreferConfig(min_margin=0.0, balance=False), 0.5, keep=8)
    assert all(pair.weight is None for pair in plain.pairs)


def test_groups_without_spread_are_named_and_every_kind_has_its_own_metrics() -> None:
    prompts = [Prompt("a", "t2i", "x"), Prompt("b", "t2i", "y"), Prompt("a", "i2t", "x")]
    rollouts = [rollout(prompt, i) for prompt in prompts for i in range(2)]
    judgements = [judged(v) for v in (0.5, 0.5, 0.0, 1.0, 1.0, 1.0)]
    feedback = prefer(rollouts, judgements, ARM_SPECS["pararl"], PreferConfig(), 0.5, keep=8)
    assert without_spread(rollouts, judgements) == [prompts[0], prompts[2]]
    metrics = dict(feedback.metrics)
    assert metrics["reward/mean"] == pytest.approx(4 / 6) and metrics["reward/groups_without_spread"] == pytest.approx(2 / 3)
    assert metrics["reward/t2i_mean"] == 0.5 and metrics["reward/i2t_mean"] == 1.0
    assert metrics["reward/t2i_groups_without_spread"] == 0.5 and metrics["reward/i2t_strict"] == 1.0
    assert not any("t2i" in name for name, _ in prefer(rollouts[:4], judgements[:4], ARM_SPECS["pararl"], PreferConfig(), 0.5, 8).metrics)


def test_two_groups_of_one_prompt_in_a_batch_stay_apart() -> None:
    rollouts = [rollout(prompt, i) for prompt in (A, B, A) for i in range(2)]
    assert [index.tolist() for index in groups(rollouts)] == [[0, 1], [2, 3], [4, 5]]
    assert [index.tolist() for index in groups([rollouts[i] for i in (0, 2, 4, 1, 3, 5)])] == [[0, 3], [1, 4], [2, 5]]


def test_a_loss_needs_the_rollouts_that_teach_it_something() -> None:
    pairs = (Pair(5, 2, 0.3), Pair(2, 7, 0.1, step=1))
    assert Feedback(pairs=pairs).used(final=False) == [2, 5, 7] and Feedback(best=(4, 1)).used(final=False) == [1, 4]
    advantages = np.array([[0, 0], [1, 0], [0, -1], [0, 0], [0, 0]], np.float32)
    credit = np.zeros((5, 1, 2), np.float32)
    credit[3, 0, 1] = 0.5
    words = {0: np.zeros(2, np.float32), 4: np.array([0, 1], np.float32)}
    assert Feedback(advantages=advantages).used(final=False) == [1, 2]
    assert Feedback(advantages=advantages).used(final=True) == [2], "an ELBO is of the final output: scores of steps do not count"
    assert Feedback(advantages=advantages, credit=credit, words=words).used(final=True) == [2, 3, 4]


def test_feedback_on_some_rollouts_is_told_by_their_places() -> None:
    rng = np.random.default_rng(0)
    advantages, credit = rng.normal(size=(6, 2)).astype(np.float32), rng.normal(size=(6, 1, 2)).astype(np.float32)
    words = {1: np.array([0.5], np.float32), 3: np.array([0.1, 0.2], np.float32)}
    taken = Feedback((Pair(5, 3, 0.3), Pair(3, 0, 0.1, 1, 0.7)), advantages, credit, words, (5,), (("reward/mean", 0.5),)).take([3, 0, 5])
    assert taken.pairs == (Pair(2, 0, 0.3), Pair(0, 1, 0.1, 1, 0.7)) and taken.best == (2,) and taken.metrics == (("reward/mean", 0.5),)
    assert taken.advantages is not None and np.array_equal(taken.advantages, advantages[[3, 0, 5]])
    assert taken.credit is not None and np.array_equal(taken.credit, credit[[3, 0, 5]])
    assert {i: w.tolist() for i, w in taken.words.items()} == {0: words[3].tolist()}
