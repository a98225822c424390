"""What a run tells of an adapter: its numbers are those of its results, and its recipe is the run."""

from pathlib import Path

import pytest
import yaml

from pararl.cli.parse import parse
from pararl.config import changed, for_arm
from pararl.evaluation.summary import ArmResult, BaseResult, SplitResult
from pararl.evaluation.told import recipe, results, told

BASE = BaseResult(SplitResult(0.5, 0.25, 256), SplitResult(0.4, 0.125, 512))
RESULT = ArmResult(SplitResult(0.75, 0.5, 256), SplitResult(0.625, 0.375, 512), 50, 12800, 106.4, 0.0123, "adapters/pararl")


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()][2:]


def test_the_table_has_the_numbers_of_the_results() -> None:
    assert cells(results(BASE, RESULT, "pararl")) == [
        ["all, in distribution", "256", "0.250", "0.500", "0.500", "0.750"],
        ["all, held out", "512", "0.125", "0.400", "0.375", "0.625"],
    ]


def test_the_table_has_kinds_where_there_are_several_and_no_strict_where_there_is_none() -> None:
    soft = SplitResult(0.1, None, 8)
    kinds = {"t2i": {"id": soft}, "i2t": {"id": soft, "para": soft}}
    base = BaseResult(soft, None, kinds)
    found = cells(results(base, ArmResult(soft, None, 1, 1, 1.0, 0.0, "adapters/pararl", kinds), "pararl"))
    assert [row[0] for row in found] == ["all, in distribution", "t2i, id", "i2t, id", "i2t, para"]
    assert all(row[2:] == ["-", "0.100", "-", "0.100"] for row in found)


def test_the_recipe_read_as_a_configuration_is_the_arms_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = parse(
        ["--run.arms", "pararl,offline_dpo", "--run.seed", "7", "--arm.offline_dpo.learner.beta", "2.5", "--run.dir", "runs"]
    ).config
    for arm in ("pararl", "offline_dpo"):
        text = recipe(config, arm)
        (tmp_path / "recipe.yaml").write_text(text)
        read = parse(["--config", "recipe.yaml", "--run.dir", "runs"]).config
        assert for_arm(read, arm) == for_arm(changed(config, {"run.arms": (arm,)}), arm)
        assert "runs" not in text and set(yaml.safe_load(text)["run"]) == {"seed", "arms", "updates"}


def test_what_is_told_holds_budget_seed_and_commit() -> None:
    found = told(parse(["--run.seed", "3"]).config, "pararl", BASE, RESULT, "0123abc")
    assert (found.arm, found.commit) == ("pararl", "0123abc")
    for part in ("50 updates", "12,800 reward calls", "106 s", "seed 3", "KL to the base 0.0123 nats", "0.061 in distribution"):
        assert part in found.text
