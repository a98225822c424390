"""The summary has the shape that scripts of others read, and refuses what cannot be a result."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from pararl.evaluation.summary import ArmResult, BaseResult, Kinds, SplitResult, Summary, pooled, table
from pararl.files import write_json
from tests.wording import telling

BASE = BaseResult(id=SplitResult(0.6, 0.3125, 256), ood=SplitResult(0.5, 0.2, 1024), kinds={"t2i": {"id": SplitResult(0.6, 0.3125, 256)}})


def arm(**changes: Any) -> ArmResult:
    values: dict[str, Any] = {"updates": 80, "reward_calls": 51200, "seconds": 212.4, "kl": 0.0321, "adapter": "adapters/pararl"}
    return ArmResult(id=SplitResult(0.9, 0.75, 256), ood=SplitResult(0.7, 0.5, 1024), **(values | changes))


def test_file_has_exactly_the_published_keys_and_reads_back(tmp_path: Path) -> None:
    summary = Summary(seed=3, base=BASE, arms={"pararl": arm(), "offline_dpo": arm(adapter="adapters/offline_dpo", kl=-0.001)})
    write_json(tmp_path / "summary.json", summary.to_json())
    read = json.loads((tmp_path / "summary.json").read_text())
    assert read["base"] == {
        "id": {"soft": 0.6, "strict": 0.3125, "n": 256, "error": None},
        "ood": {"soft": 0.5, "strict": 0.2, "n": 1024, "error": None},
        "kinds": {"t2i": {"id": {"soft": 0.6, "strict": 0.3125, "n": 256, "error": None}}},
    }
    assert list(read) == ["seed", "base", "arms", "start"]
    assert read["arms"]["pararl"] == {
        "id": {"soft": 0.9, "strict": 0.75, "n": 256, "error": None},
        "ood": {"soft": 0.7, "strict": 0.5, "n": 1024, "error": None},
        "updates": 80,
        "reward_calls": 51200,
        "seconds": 212.4,
        "kl": 0.0321,
        "adapter": "adapters/pararl",
        "kinds": {},
        "best": None,
    }
    assert Summary.from_json(read) == summary


@pytest.mark.parametrize(
    ("changes", "tokens"),
    [
        ({"kl": math.nan}, ("kl", math.nan)),
        ({"seconds": math.inf}, ("seconds", math.inf)),
        ({"updates": -1}, ("updates", -1)),
        ({"adapter": "/tmp/adapter"}, ("adapter", "'/tmp/adapter'")),
        ({"adapter": ""}, ("adapter", "''")),
    ],
)
def test_an_impossible_result_is_refused(changes: dict[str, Any], tokens: tuple[object, ...]) -> None:
    with pytest.raises(ValueError, match=telling(*tokens)):
        arm(**changes)


@pytest.mark.parametrize(
    ("split", "tokens"),
    [
        ((0.5, 1.2, 4), ("strict", 1.2)),
        ((0.5, -0.1, 4), ("strict", -0.1)),
        ((math.nan, 0.5, 4), ("soft", math.nan)),
        ((0.5, 0.5, 0), ("n", 0)),
    ],
)
def test_an_impossible_accuracy_is_refused(split: tuple[float, float, int], tokens: tuple[object, ...]) -> None:
    with pytest.raises(ValueError, match=telling(*tokens)):
        SplitResult(*split)


def test_a_reward_without_a_strict_notion_has_no_strict_accuracy_anywhere() -> None:
    one, other = SplitResult(-3.5, None, 10), SplitResult(0.5, 0.5, 10)
    assert one.metrics("id") == {"eval/id_soft": -3.5, "eval/id_n": 10.0}
    assert pooled([one, one]).strict is None and pooled([one, other]).strict is None and pooled([other, other]).strict == 0.5
    shown = table(Summary(0, BaseResult(one, other), {})).splitlines()[2].split()
    assert shown[:5] == ["base", "-", "-3.500", "0.500", "0.500"]
    kinds: Kinds = {kind: {"id": SplitResult(-3.5, None, 5, 0.25)} for kind in ("t2i", "i2t")}
    lines = table(Summary(0, BaseResult(pooled([k["id"] for k in kinds.values()]), None, kinds), {"pararl": arm(kinds=kinds)})).splitlines()
    # two strata of five outputs each: the error of the mean is sqrt(0.25^2 + 0.25^2) / 2
    assert f"n = 10 (+/- {1.96 * 0.25 / 2**0.5:.3f})" in lines[-5] and "soft" in lines[-5]
    assert lines[-1].split() == ["i2t,", "id", "5", "-3.500", "-3.500", "(+0.000)"]


def test_a_summary_of_a_version_without_errors_is_read() -> None:
    value = Summary(seed=0, base=BASE, arms={"pararl": arm()}).to_json()
    del value["base"]["id"]["error"], value["arms"]["pararl"]["id"]["error"]
    assert Summary.from_json(value) == Summary(seed=0, base=BASE, arms={"pararl": arm()})


def test_unknown_arms_and_keys_are_named() -> None:
    with pytest.raises(ValueError, match=telling("'dpo'")):
        Summary(seed=0, base=BASE, arms={"dpo": arm()})
    value = Summary(seed=0, base=BASE, arms={"pararl": arm()}).to_json()
    value["arms"]["pararl"]["steps"] = value["arms"]["pararl"].pop("updates")
    with pytest.raises(ValueError, match=telling("arms.pararl", "'updates'", "'steps'")):
        Summary.from_json(value)


def test_pooled_splits_weigh_by_outputs() -> None:
    outputs = [1.0] * 30 + [0.0] * 70 + [1.0] * 45 + [0.0] * 255
    assert pooled([SplitResult(0.3, 0.3, 100), SplitResult(0.15, 0.15, 300)]) == SplitResult(sum(outputs) / 400, sum(outputs) / 400, 400)
    with pytest.raises(ValueError, match=telling("eval.splits")):
        pooled([])


def test_table_lists_base_and_arms_in_aligned_columns() -> None:
    lines = table(Summary(seed=0, base=BASE, arms={"pararl": arm(), "offline_dpo": arm()})).splitlines()
    assert [line.split()[0] for line in (lines[2], lines[3], lines[4])] == ["base", "pararl", "offline_dpo"]
    assert lines[2].split()[1:] == ["0.312", "0.600", "0.200", "0.500", "-", "-", "-", "-"]
    assert lines[3].split()[1:] == ["0.750", "0.900", "0.500", "0.700", "80", "51,200", "212", "0.0321"]
    assert len({len(line) for line in lines[:5]}) == 1
    assert "ID n = 256 (+/- 0.061), OOD n = 1024 (+/- 0.031)" in lines[-1]


def test_kinds_of_prompts_have_a_table_of_their_own_with_gains_over_the_base() -> None:
    def kinds(t2i: float, i2t: float, canary: float) -> Kinds:
        return {"t2i": {"id": SplitResult(0.5, t2i, 64)}, "i2t": {"id": SplitResult(0.5, i2t, 64), "canary": SplitResult(0.5, canary, 64)}}

    base = BaseResult(BASE.id, None, kinds(0.25, 0.5, 0.25))
    lines = table(Summary(0, base, {"pararl": arm(kinds=kinds(0.5, 0.4375, 0.25))})).splitlines()
    assert [line.split()[-2:] for line in lines[-3:]] == [["0.500", "(+0.250)"], ["0.438", "(-0.062)"], ["0.250", "(+0.000)"]]
    assert [line.split("  ")[0] for line in lines[-3:]] == ["t2i, id", "i2t, id", "i2t, canary"]
