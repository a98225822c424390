"""A plan: what fits where, that its advice is right, and what the command prints before anything is loaded."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pararl.cli import parse as cli
from pararl.config import Config, ConfigError, changed
from pararl.plan.gpus import GPUS, UTILISATION, Gpu, gpu, placed
from pararl.plan.plan import Plan, advice, refusal
from pararl.plan.shapes import shape_of
from pararl.plan.text import describe
from tests.wording import telling

ROOT = Path(__file__).resolve().parents[3]
LARGE = ROOT / "pipelines" / "configs" / "mmada_8b.yaml"
SHAPE = shape_of("Gen-Verse/MMaDA-8B-MixCoT", Path("nowhere"))


def large(*arguments: str) -> Config:
    """The configuration of mmada_8b.yaml with some settings changed, as --plan reads it."""
    return cli.parse(["--config", str(LARGE), *arguments, "--plan"]).config


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The program; it must not have loaded torch, transformers or Ray when it ends."""
    code = (
        "import runpy, sys\n"
        "sys.argv, sys.path[0] = ['pipelines/pararl.py', *sys.argv[1:]], 'pipelines'  # as for a script\n"
        "try:\n    runpy.run_path('pipelines/pararl.py', run_name='__main__')\n"
        "finally:\n    print('loaded:', [m for m in ('torch', 'transformers', 'ray') if m in sys.modules])\n"
    )
    return subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_the_large_configuration_fits_one_gpu_of_80_gb_and_no_smaller_one() -> None:
    plan = Plan.of(large(), SHAPE)
    assert plan.gpus == (("rollout", "learner"),)
    assert [g.name for g in GPUS if plan.fits(g)] == ["A100-80GB", "H100-80GB", "H200"]
    assert plan.rollout.parts["weights"] == 2 * 8_082_690_048
    assert plan.publish_bytes == 4 * 167_772_160


def test_apart_rollouts_and_learner_each_need_their_own_gpu_only() -> None:
    together, apart = Plan.of(large(), SHAPE), Plan.of(large("--rollout.gpus", "1", "--learner.gpus", "1"), SHAPE)
    assert apart.gpus == (("rollout",), ("learner",))
    assert together.fullest == together.rollout.total + together.learner.total
    assert apart.fullest == max(apart.rollout.total, apart.learner.total)


@pytest.mark.parametrize(
    ("workers", "rollout", "learner", "expected"),
    [
        (1, 0.5, 0.5, [["rollout", "learner"]]),
        (3, 0.5, 0.5, [["rollout", "rollout"], ["rollout", "learner"]]),
        (2, 1.0, 1.0, [["rollout"], ["rollout"], ["learner"]]),
        (3, 0.3, 1.0, [["rollout"] * 3, ["learner"]]),
        (2, 0.6, 0.4, [["rollout", "learner"], ["rollout"]]),
        (1, 0.0, 1.0, [["learner"]]),
        (1, 2.0, 0.5, [["rollout"], [], ["learner"]]),
        (2, 0.0, 0.0, []),
    ],
)
def test_processes_share_gpus_by_their_fractions(workers: int, rollout: float, learner: float, expected: list[list[str]]) -> None:
    values = {"rollout.workers": workers, "rollout.gpus": rollout, "learner.gpus": learner}
    assert placed(changed(Config(), values)) == expected


@pytest.mark.parametrize(
    ("settings", "knobs"),
    [
        ({"rollout.chunk": 64}, {"rollout.chunk"}),
        ({"learner.micro": 64}, {"learner.micro"}),
        ({"learner.gradient_checkpointing": False}, {"learner.gradient_checkpointing"}),
        ({"policy.dtype": "float32"}, {"policy.dtype"}),
        ({"rollout.workers": 2, "rollout.gpus": 0.4, "learner.gpus": 0.2}, {"rollout.gpus", "learner.gpus"}),
        ({"rollout.chunk": 256, "learner.micro": 128}, {"rollout.chunk", "learner.micro"}),
    ],
)
def test_whoever_follows_the_advice_has_a_plan_that_fits(settings: dict[str, Any], knobs: set[str]) -> None:
    h100 = gpu("H100")
    plan = Plan.of(changed(large(), settings), SHAPE)
    told = refusal(plan, h100)
    found = advice(plan, h100)
    assert told is not None and "\n" not in told
    assert set(found) == knobs and all(f"--{key} " in told for key in found)
    assert Plan.of(changed(plan.config, found), SHAPE).fits(h100)


def test_no_advice_where_no_setting_helps() -> None:
    plan = Plan.of(large(), SHAPE)
    small = Gpu("small", 8e9, 1e12)
    assert advice(plan, small) == {}
    assert "small" in (told := str(refusal(plan, small))) and "--" not in told


def test_where_nothing_else_is_enough_the_advice_is_to_learn_less() -> None:
    """A card of 24 GB: the weights alone are 16, and activations, adapter and moments must share what is left."""
    plan, card = Plan.of(large(), SHAPE), gpu("4090")
    found = advice(plan, card)
    assert found["rollout.gpus"] == 1 and found["policy.lora_rank"] < 64 and found["rollout.recorded"] < 4
    assert Plan.of(changed(plan.config, found), SHAPE).fits(card)
    told = str(refusal(plan, card))
    options = told.partition("(set ")[2].removesuffix(")").split()
    assert refusal(Plan.of(large(*options), SHAPE), card) is None, "the settings as they are written are settings that run"


def test_without_a_name_a_plan_is_refused_only_where_no_named_gpu_takes_it() -> None:
    assert refusal(Plan.of(large("--rollout.chunk", "64"), SHAPE)) is None, "an H200 takes it"
    assert "H200" in str(refusal(Plan.of(large("--rollout.chunk", "512"), SHAPE)))


def test_seconds_are_operations_over_what_the_gpus_do() -> None:
    one, eight = Plan.of(large(), SHAPE), Plan.of(large("--rollout.workers", "7", "--rollout.gpus", "1", "--learner.gpus", "1"), SHAPE)
    h100 = gpu("h100")
    single, spread = one.seconds(h100, "pararl"), eight.seconds(h100, "pararl")
    # 64 rollouts of 15 steps with guidance; 23.3 TFLOP a sequence of 1,541 tokens with the adapter.
    assert single["rollout"] == pytest.approx(64 * 15 * 2 * 23.34e12 / (h100.peak * UTILISATION), rel=0.01)
    assert single["rollout"] == pytest.approx(7 * (spread["rollout"] or 0)) and single["learner"] == spread["learner"]
    on_cpu = Plan.of(large("--rollout.gpus", "0"), SHAPE).seconds(h100, "pararl")
    assert on_cpu["rollout"] is None and on_cpu["learner"] == single["learner"]


@pytest.mark.parametrize("name", ["H100", "h100-80gb", "4090", "a100", "H200"])
def test_gpus_go_by_a_part_of_their_name(name: str) -> None:
    assert gpu(name) in GPUS


@pytest.mark.parametrize("name", ["H", "80GB", "B200", "-"])
def test_a_name_of_no_gpu_or_of_several_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=telling("--plan", f"'{name}'", "RTX-4090", "H200")):
        gpu(name)


def test_the_command_prints_the_plan_and_loads_nothing() -> None:
    done = run("--config", str(LARGE), "--plan", "H100")
    assert done.returncode == 0 and done.stderr == ""
    assert "loaded: []" in done.stdout
    for told in ("backbone 8.08 B, adapter 167.8 M (rank 64)", "t2i 1,541", "1 (rollout + learner)", "H100-80GB", "671.1 MB"):
        assert told in done.stdout


def test_the_command_refuses_what_cannot_fit_in_one_line_that_names_the_setting() -> None:
    done = run("--config", str(LARGE), "--learner.gradient_checkpointing", "false", "--plan", "H100")
    assert done.returncode == 1
    assert done.stderr.startswith("pararl: error: the plan needs ") and done.stderr.count("\n") == 1
    assert "--learner.gradient_checkpointing true" in done.stderr and "H100-80GB" in done.stdout


def test_the_default_job_has_a_plan_on_the_cpu() -> None:
    done = run("--plan")
    assert done.returncode == 0 and done.stderr == "" and "loaded: []" in done.stdout
    assert "No GPU is asked for" in done.stdout and "backbone 1.0 M" in done.stdout


def test_a_plan_needs_neither_prompt_files_nor_a_free_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "taken").mkdir()
    asked = ["--config", str(LARGE), "--run.dir", str(tmp_path), "--run.name", "taken"]
    assert cli.parse([*asked, "--plan"]).plan == "" and cli.parse(["--plan", "H200", *asked]).plan == "H200"
    with pytest.raises(SystemExit):
        cli.parse(asked)
    assert "train.jsonl" in capsys.readouterr().err


def test_a_dtype_that_would_part_the_model_in_two_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        large("--policy.dtype", "auto", "--rollout.gpus", "0")
    assert "--policy.dtype" in capsys.readouterr().err
    assert large("--policy.dtype", "auto").policy.dtype == "auto"


def test_every_arm_and_gpu_is_in_the_table() -> None:
    text = describe(Plan.of(large("--run.arms", "pararl_grpo,offline_stream"), SHAPE))
    assert all(g.name in text for g in GPUS) and "pararl_grpo, s an update" in text and "offline_stream" in text
