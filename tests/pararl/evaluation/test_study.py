"""Several seeds as one table."""

import math
from dataclasses import replace

import pytest

from pararl.evaluation.study import bars, interval, markdown, metrics, sweep_markdown
from pararl.evaluation.summary import ArmResult, BaseResult, SplitResult, Summary
from tests.wording import telling


def split(strict: float) -> SplitResult:
    return SplitResult(soft=0.8, strict=strict, n=100)


def summary(seed: int, pararl: float, offline: float) -> Summary:
    arm = ArmResult(split(pararl), split(0.3), updates=10, reward_calls=1000, seconds=60.0, kl=0.1, adapter="adapters/pararl")
    arms = {"pararl": arm, "offline_dpo": replace(arm, id=split(offline))}
    return Summary(seed, BaseResult(split(0.4), split(0.3)), arms)


def test_the_interval_is_student_t_over_seeds() -> None:
    found = interval([0.6, 0.7, 0.8])
    # t(0.975, 2 degrees of freedom) = 4.30265, sample standard deviation 0.1
    assert found.mean == pytest.approx(0.7)
    assert found.half == pytest.approx(4.30265 * 0.1 / math.sqrt(3), rel=1e-4)
    assert interval([0.5]).half is None


def test_differences_are_paired_by_seed() -> None:
    runs = [summary(0, 0.70, 0.40), summary(1, 0.80, 0.55), summary(2, 0.75, 0.45)]
    found = metrics(runs)
    assert found["pararl"]["id strict"].values == (0.70, 0.80, 0.75)
    text = markdown(found, [0, 1, 2])
    assert "+0.300, +0.250, +0.300" in text
    assert "| base | 0.400 ± 0.000" in text and "1,000" in text


def test_rewards_without_a_strict_notion_are_compared_and_drawn_by_their_scores() -> None:
    def run(seed: int, pararl: float, offline: float) -> Summary:
        one = summary(seed, 0.0, 0.0)
        soft = {value: SplitResult(value, None, 100, 0.01) for value in (-1.0, pararl, offline)}
        arms = {
            "pararl": replace(one.arms["pararl"], id=soft[pararl], ood=None),
            "offline_dpo": replace(one.arms["pararl"], id=soft[offline], ood=None),
        }
        return replace(one, base=BaseResult(soft[-1.0], None), arms=arms)

    found = metrics([run(0, 1.5, 0.5), run(1, 2.0, 0.25)])
    text = markdown(found, [0, 1])
    assert "| pararl | 1.375" in text and "+1.000, +1.750" in text and "strict" not in text
    drawn = bars(found)
    assert [(bar.arm, bar.mean, bar.seeds) for bar in drawn["ID"]] == [
        ("base", -1.0, (-1.0, -1.0)),
        ("pararl", 1.75, (1.5, 2.0)),
        ("offline_dpo", 0.375, (0.5, 0.25)),
    ]
    assert drawn["OOD"] == []


def test_bars_are_means_with_their_intervals_and_every_kind_of_prompt_has_a_group() -> None:
    def run(seed: int, t2i: float) -> Summary:
        one = summary(seed, t2i, 0.4)
        kinds = {"t2i": {"id": split(t2i), "para": split(0.9)}, "i2t": {"id": split(0.5)}}
        return replace(one, base=replace(one.base, kinds=kinds), arms={"pararl": replace(one.arms["pararl"], kinds=kinds)})

    drawn = bars(metrics([run(0, 0.25), run(1, 0.75)]))
    assert list(drawn) == ["ID", "OOD", "t2i", "i2t"]
    (base, pararl) = drawn["t2i"]
    assert base.arm == "base" and pararl.mean == 0.5 and pararl.seeds == (0.25, 0.75)
    assert pararl.high - pararl.mean == pytest.approx(12.706 * 0.25, rel=1e-3)  # t(0.975, 1 degree of freedom) x 0.354 / sqrt(2)


def test_runs_with_other_arms_are_refused() -> None:
    one = summary(0, 0.7, 0.4)
    with pytest.raises(ValueError, match=telling("--resume")):
        metrics([one, replace(one, arms={"pararl": one.arms["pararl"]})])


def test_runs_that_measured_something_else_are_refused() -> None:
    one, two = summary(0, 0.5, 0.4), summary(1, 0.5, 0.4)
    more = replace(two, base=replace(two.base, kinds={**two.base.kinds, "edit": {"id": split(0.5)}}))
    with pytest.raises(ValueError, match="the same kinds of prompts and splits"):
        metrics([one, more])


def test_kinds_of_prompts_have_rows_with_gains_paired_by_seed() -> None:
    def run(seed: int, t2i: float, i2t: float) -> Summary:
        one = summary(seed, 0.7, 0.4)
        arm = replace(one.arms["pararl"], kinds={"t2i": {"id": split(t2i)}, "i2t": {"id": split(i2t)}})
        base = replace(one.base, kinds={"t2i": {"id": split(0.25)}, "i2t": {"id": split(0.5)}})
        return replace(one, base=base, arms={"pararl": arm})

    runs = [run(0, 0.5, 0.5), run(1, 0.75, 0.25)]
    lines = markdown(metrics(runs), [0, 1]).splitlines()
    assert lines[-2].startswith("| t2i, id | 0.250 ± 0.000 | 0.625 ± ") and lines[-2].endswith(" | +0.250, +0.500 |")
    assert lines[-1].endswith(" | +0.000, -0.250 |")
    swept = sweep_markdown(["one", "two"], [metrics(runs[:1]), metrics(runs[1:])], ["pararl"])
    assert "| one | 0.500 | 0.500 |" in swept and "| two | 0.750 | 0.250 |" in swept and "| base | 0.250 | 0.500 |" in swept
    assert "by kind" not in sweep_markdown(["one"], [metrics([summary(0, 0.7, 0.4)])], ["pararl"])
