"""A run's settings: the command line wins over the file, mistakes are one line, and what is saved reads back equal."""

import json
import os
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pathspec
import pytest
import yaml
from packaging.requirements import Requirement

from pararl import cli, validation
from pararl.config import SETTINGS, Config, ConfigError, arm_defaults, changed, for_arm

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "pipelines" / "pararl.py"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with one embedded policy, so that no test depends on the checkout's."""
    (tmp_path / "checkpoints" / "scenes-mmada").mkdir(parents=True)
    settings = {"settings": {"text_tokens": 24, "text_block": 12}}
    (tmp_path / "checkpoints" / "scenes-mmada" / "policy.json").write_text(json.dumps(settings))
    monkeypatch.setattr(validation, "EMBEDDED", tmp_path / "checkpoints")
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


def written(text: str, name: str = "job.yaml") -> str:
    Path(name).write_text(text, encoding="utf-8")
    return name


def complaint(capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    """The one line that ``argv`` is refused with; nothing may be written to the working folder."""
    before = sorted(Path().rglob("*"))
    with pytest.raises(SystemExit) as stopped:
        cli.parse(argv)
    captured = capsys.readouterr()
    assert stopped.value.code == 2
    assert captured.out == ""
    assert captured.err.startswith("pararl: error: ") and captured.err.count("\n") == 1 and captured.err.endswith("\n")
    assert sorted(Path().rglob("*")) == before
    return captured.err


def script(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | environment
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=60)


def test_no_arguments_give_the_defaults() -> None:
    assert cli.parse([]) == cli.Invocation(Config(), "default", None)


def test_command_line_wins_over_file_and_file_over_defaults_in_any_order() -> None:
    file = written("learner:\n  lr: 1e-4\n  beta: 0.7\n")
    for argv in (["--config", file, "--learner.lr", "3e-4"], ["--learner.lr=3e-4", f"--config={file}"]):
        invocation = cli.parse(argv)
        assert invocation.stem == "job"
        assert (invocation.config.learner.lr, invocation.config.learner.beta) == (3e-4, 0.7)


def test_default_file_is_read_only_without_config() -> None:
    default, other = written("run:\n  updates: 5\n", "base.yaml"), written("learner:\n")
    assert cli.parse([], default=Path(default)).config.run.updates == 5
    assert cli.parse(["--config", other], default=Path(default)).config.run.updates == Config().run.updates


@pytest.mark.parametrize(
    "words",
    [["pararl,output"], ["[pararl,output]"], ["[pararl, output]"], ['["pararl", "output"]'], ["pararl", "output"], ["pararl, output"]],
)
def test_lists_are_read_however_they_are_written(words: list[str]) -> None:
    assert cli.parse(["--run.arms", *words]).config.run.arms == ("pararl", "output")
    assert cli.parse(["--run.arms", "pararl"]).config.run.arms == ("pararl",)


def test_values_have_their_declared_types() -> None:
    config = cli.parse(["--run.name", "2024", "--learner.lr", "1", "--track.mode", "disabled", "--run.seed", "7"]).config
    assert (config.run.name, config.track.mode, config.run.seed) == ("2024", "disabled", 7)
    assert type(config.learner.lr) is float


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ("--learner.lr -1", "learner.lr must be > 0, got -1.0 (set --learner.lr)"),
        ("--learner.lr -1e-3", "learner.lr must be > 0, got -0.001 (set --learner.lr)"),
        ("--learner.lr 0", "learner.lr must be > 0, got 0.0"),
        ("--learner.lr .nan", "learner.lr must be finite, got nan"),
        ("--learner.beta .inf", "learner.beta must be finite, got inf"),
        ("--learner.beta 0", "learner.beta must be > 0"),
        ("--run.updates 0", "run.updates must be >= 1, got 0"),
        ("--rollout.guidance -0.5", "rollout.guidance must be >= 0"),
        ("--rollout.text_guidance .inf", "rollout.text_guidance must be finite, got inf"),
        ("--rollout.group 1", "rollout.group must be >= 2"),
        ("--rollout.threads 0", "rollout.threads must be >= 1"),
        ("--rollout.recorded 9 --rollout.steps 8", "rollout.recorded must be <= rollout.steps (8), got 9"),
        ("--rollout.recorded 0", "rollout.recorded must be >= 1"),
        (
            "--run.arms pararl,ppo",
            "run.arms: unknown 'ppo' (known: pararl, pararl_grpo, output, offline_dpo, offline_stream, best_of_n, hermesflow;",
        ),
        ("--run.arms []", "run.arms must name at least one of pararl, "),
        ("--run.arms output,output", "run.arms names 'output' more than once"),
        ("--eval.splits id,ood", "eval.splits: unknown 'ood' (known: id, "),
        ("--curriculum.tasks t2v", "curriculum.tasks: unknown 't2v' (known: t2t, i2t, t2i, edit, interleaved, interleaved_edit)"),
        ("--curriculum.tasks []", "curriculum.tasks must name at least one kind of prompt"),
        ("--eval.tasks t2i,t2i", "eval.tasks: 't2i' is named more than once"),
        (
            "--curriculum.tasks t2i,edit,i2t --rollout.prompts 2",
            "rollout.prompts must be >= 3, one of each kind in curriculum.tasks, got 2",
        ),
        ("--curriculum.canaries clocks", "curriculum.canaries: unknown 'clocks' (known: scene_edit, "),
        ("--curriculum.tasks t2t --curriculum.canaries scene_edit,arithmetic,paraphrase", "leave no prompt of kind t2t to train on"),
        ("--eval.splits id,canary", "eval.splits: canary needs tags that are never trained on"),
        ("--curriculum.file gone.jsonl", "curriculum.file: there is no file gone.jsonl"),
        ("--eval.file gone.jsonl", "eval.file has the split id alone"),
        ("--eval.tasks t2t --curriculum.canaries scene_edit,arithmetic,paraphrase", "leave no prompt of kind t2t for split id"),
        ("--curriculum.canaries arithmetic --eval.splits id,canary", "no kind that is measured has a prompt with a tag of"),
        ("--eval.file gone.jsonl --eval.splits id", "eval.file: there is no file gone.jsonl"),
        ("--reward.name clip", "reward.name: unknown reward 'clip' (known: scenes, scenes-clip, clip:DIRECTORY, "),
        ("--reward.name clip:./gone", "reward.name: reward 'clip:./gone': ./gone is neither a directory nor a name of the hub"),
        ("--eval.reward scene", "eval.reward: unknown reward 'scene' (known: scenes, "),
        ("--reward.calibration 1", "reward.calibration must be 0, or >= 2 (one score has no deviation), got 1"),
        (
            "--reward.name scenes-clip --curriculum.tasks t2i,edit,t2t",
            "reward.name: scenes-clip scores no prompt of kind edit, t2t (set --reward.name)",
        ),
        ("--eval.reward scenes-clip --eval.tasks t2i,edit", "eval.reward: scenes-clip scores no prompt of kind edit"),
        ("--policy.name .", "policy.name: . has no policy.json"),
        ("--eval.splits ood_pair", "eval.splits must begin with id"),
        ("--eval.splits id,train", "eval.splits: unknown 'train'"),
        ("--rollout.gpus 1.5", "rollout.gpus must be a whole number, or a fraction below 1"),
        ("--learner.likelihood elbo", "arm pararl learns from steps"),
        ("--run.arms pararl_grpo --learner.likelihood elbo --learner.kl 0.1", "about conditionals at steps, and arm pararl_grpo has ELBOs"),
        ("--run.arms pararl_grpo --learner.likelihood elbo --learner.negatives spg", "arm pararl_grpo has none"),
        ("--learner.image_ratio 1.5", "learner.image_ratio must be between 0 and 1, or -1 for the policy's own, got 1.5"),
        ("--learner.text_ratio -0.5", "learner.text_ratio must be between 0 and 1, or -1"),
        ("--learner.spg_mix 1.1", "learner.spg_mix must be >= 0 and <= 1"),
        ("--learner.spg_beta 0.5", "learner.spg_beta must be >= 1"),
        ("--run.arms output --learner.image_ratio 0.8", "learner.image_ratio is about ELBOs and arm output learns from conditionals at"),
        ("--run.arms best_of_n,output --learner.text_masks block", "learner.text_masks is about ELBOs and arm output"),
        ("--run.arms output --learner.negatives spg", "set --arm.output.learner.likelihood elbo, or the setting for other arms alone"),
        ("--run.arms best_of_n --learner.negatives spg", "arm best_of_n has none (set --arm.best_of_n.learner.negatives elbo"),
        ("--run.arms best_of_n --learner.text_masks block --rollout.decoding released", "and rollout.decoding released has none"),
        ("--rollout.image_sampler emerge --rollout.decoding released", "rollout.image_sampler emerge does not go with rollout.decoding"),
        ("--curriculum.tasks interleaved --rollout.steps 7", "a multiple of 2 steps, the text blocks of scenes-mmada; 7 give it 7"),
        ("--curriculum.tasks interleaved --rollout.decoding sequential --rollout.steps 6", "of scenes-mmada; 6 give it 3"),
        ("--curriculum.tasks interleaved --rollout.decoding semi_parallel --rollout.steps 6", "must be a multiple of 4 for semi_parallel"),
        ("--policy.name gone", "policy.name: 'gone' is neither an embedded policy (scenes-mmada) nor a directory"),
        ("--run.name a/b", "run.name must be a plain folder name, got 'a/b'"),
        ("--run.name ..", "run.name must be a plain folder name"),
        ("--run.dir=", "run.dir must not be empty"),
        ("--learner.text_weight 0 --learner.image_weight 0", "must not both be 0"),
        ("--prefer.credit 1", "prefer.credit has an effect in arm pararl_grpo only, not in pararl, offline_dpo (set --run.arms"),
        ("--run.arms output,pararl_grpo --arm.output.prefer.credit 1", "arm.output.prefer.credit has no effect: only arm pararl_grpo"),
        ("--arm.output.learner.lr -1", "arm.output.learner.lr must be > 0, got -1.0 (set --arm.output.learner.lr)"),
        ("--learner.lr abc", "learner.lr on the command line must be a number, got 'abc'"),
        ("--learner.lr null", "learner.lr on the command line must be a number"),
        ("--run.updates 3.5", "run.updates on the command line must be a whole number, got '3.5'"),
        ("--track.mode on", "track.mode on the command line must be one of auto, offline, online, disabled, got 'on'"),
        ("--run.arms [a", "run.arms on the command line must be a list"),
        ("--learner.lrr 1", "unknown setting learner.lrr on the command line (did you mean learner.lr?)"),
        ("--lr 1", "unknown setting lr on the command line (did you mean learner.lr?)"),
        ("--zzz 1", "unknown setting zzz on the command line (see --help)"),
        ("--learner 1", "learner on the command line is a section, not a setting"),
        ("--arm.ppo.learner.lr 1", "unknown arm 'ppo' (known: pararl, "),
        ("--arm.output.learner.lrr 1", "may set learner.*, prefer.* and reward.*_mix only (did you mean learner.lr?)"),
        ("--arm.output.run.updates 1", "may set learner.*, prefer.* and reward.*_mix only"),
        ("--learner.lr", "--learner.lr needs a value"),
        ("--learner.lr 1 2", "unexpected argument '2' after --learner.lr 1"),
        ("job.yaml", "unexpected argument 'job.yaml'"),
        ("--config gone.yaml", "no configuration file gone.yaml"),
        ("--config .", "cannot read ."),
        ("--config a.yaml --config b.yaml", "--config is given more than once"),
        ("--resume gone", "--resume gone: no run there (gone/config.yaml is missing)"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_setting(capsys: pytest.CaptureFixture[str], argv: str, line: str) -> None:
    assert line in complaint(capsys, argv.split(" "))


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("learner:\n  lrr: 1\n", "unknown setting learner.lrr in job.yaml (did you mean learner.lr?)"),
        ("lerner:\n  lr: 1\n", "unknown setting lerner.lr in job.yaml (did you mean learner.lr?)"),
        ("learner:\n  lr: [1]\n", "learner.lr in job.yaml must be a number, got [1]"),
        ("learner:\n  lr: {}\n", "learner.lr in job.yaml must be a number, got {}"),
        ("learner:\n  lr:\n", "learner.lr in job.yaml must be a number, got None"),
        ("run:\n  updates: true\n", "run.updates in job.yaml must be a whole number, got True"),
        ("run:\n  name: 2024\n", "run.name in job.yaml must be text, got 2024"),
        ("track:\n  mode: off\n", "track.mode in job.yaml must be one of auto, offline, online, disabled, got False"),
        ("learner: 3\n", "learner in job.yaml is a section, not a setting"),
        ("arm:\n  ppo:\n    learner.lr: 1\n", "arm.ppo.learner.lr in job.yaml: unknown arm 'ppo'"),
        ("arm:\n  output: 3\n", "arm.output in job.yaml: an arm may set"),
        ("- a\n", "job.yaml must hold sections of settings"),
        ("learner: {lr: 1\nrun: 2\n", "job.yaml, line 2: not readable as YAML"),
        ("learner:\n  lr: 1\nlearner:\n  beta: 1\n", "job.yaml, line 3: not readable as YAML: key 'learner' is given twice"),
    ],
)
def test_a_mistake_in_the_file_names_the_file(capsys: pytest.CaptureFixture[str], content: str, line: str) -> None:
    assert line in complaint(capsys, ["--config", written(content)])


def test_settings_of_elbos_go_with_the_arms_that_have_them() -> None:
    words = "--run.arms output,best_of_n,pararl --learner.draws 2 --arm.output.learner.likelihood elbo --arm.output.learner.negatives spg"
    config = cli.parse([*words.split(), "--arm.best_of_n.learner.image_ratio", "0", "--rollout.image_sampler", "emerge"]).config
    assert for_arm(config, "output").learner.negatives == "spg" and for_arm(config, "best_of_n").learner.image_ratio == 0
    assert for_arm(config, "pararl").learner.image_ratio == -1


def test_every_mistake_is_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    line = complaint(capsys, ["--learner.lr", "-1", "--run.updates", "0", "--run.arms", "ppo"])
    assert "learner.lr" in line and "run.updates" in line and "'ppo'" in line


def test_every_number_has_a_range() -> None:
    assert set(validation.BOUNDS) == {key for key, kind in SETTINGS.items() if kind in (int, float)}


def test_a_policy_directory_is_a_policy(elsewhere: Path) -> None:
    (elsewhere / "mine").mkdir()
    (elsewhere / "mine" / "policy.json").write_text(json.dumps({"settings": {"tasks": ["t2i"]}}))
    assert cli.parse(["--policy.name", "mine"]).config.policy.name == "mine"


@pytest.mark.parametrize(
    ("content", "told"),
    [("{", "is not JSON: Expecting"), ("[1]", "is not a JSON object"), ("{}", "has no settings"), ('{"settings": []}', "has no settings")],
)
def test_a_broken_policy_file_is_told_in_one_line(elsewhere: Path, content: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    (elsewhere / "mine").mkdir()
    (elsewhere / "mine" / "policy.json").write_text(content)
    with pytest.raises(SystemExit) as exit_:
        cli.parse(["--policy.name", "mine"])
    error = capsys.readouterr().err
    assert exit_.value.code == 2 and error.count("\n") == 1 and f"policy.name: mine/policy.json {told}" in error


def test_a_policy_directory_without_its_tokenizers_is_told_before_prompts_are_held_against_it(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (elsewhere / "mine").mkdir()
    (elsewhere / "mine" / "policy.json").write_text(json.dumps({"settings": {"tasks": ["t2i"]}}))
    (elsewhere / "own.jsonl").write_text("".join(json.dumps({"prompt": f"w{i}"}) + "\n" for i in range(16)))
    with pytest.raises(SystemExit):
        cli.parse(["--policy.name", "mine", "--curriculum.file", "own.jsonl", "--reward.name", "mine:reward"])
    assert "policy.name: mine lacks tokenizer.json, tokenizer_config.json, image_tokenizer/config.json" in capsys.readouterr().err


def test_overrides_reach_their_arm_only() -> None:
    nested = written("arm:\n  offline_dpo:\n    learner: {lr: 3e-4}\n    prefer.select: best_worst\n")
    config = cli.parse(["--config", nested, "--arm.offline_dpo.learner.beta", "1"]).config
    expected = {"learner.lr": 3e-4, "learner.beta": 1.0, "prefer.select": "best_worst"}
    assert config.arm == {**arm_defaults(), "offline_dpo": {**arm_defaults()["offline_dpo"], **expected}}
    assert for_arm(config, "offline_dpo") == changed(Config(arm={}), {**arm_defaults()["offline_dpo"], **expected})
    assert for_arm(config, "pararl") == Config(arm={})
    with pytest.raises(ConfigError, match="unknown arm 'ppo'"):
        for_arm(config, "ppo")


def test_saved_settings_read_back_equal(elsewhere: Path) -> None:
    argv = [
        "--learner.lr",
        "1e-5",
        "--run.arms",
        "output",
        "--run.name",
        "Läufer: 1",
        "--arm.output.learner.kl",
        "0.1",
        "--rollout.gpus",
        "0.25",
    ]
    config = cli.parse(argv).config
    cli.save(config, elsewhere / "saved" / "config.yaml")
    plain = yaml.safe_load((elsewhere / "saved" / "config.yaml").read_text(encoding="utf-8"))
    assert plain["learner"]["lr"] == 1e-5 and plain["run"]["arms"] == ["output"] and plain["arm"]["output"] == {"learner.kl": 0.1}
    assert sum(len(section) for name, section in plain.items() if name != "arm") == len(SETTINGS)
    assert cli.parse(["--config", "saved/config.yaml"]).config == config
    assert json.loads(json.dumps(cli.as_dict(config))) == plain
    assert [path.name for path in (elsewhere / "saved").iterdir()] == ["config.yaml"]


def test_resume_takes_the_saved_settings_and_refuses_others(capsys: pytest.CaptureFixture[str], elsewhere: Path) -> None:
    config = cli.parse(["--learner.lr", "3e-4", "--run.name", "first"]).config
    cli.save(config, elsewhere / "outputs" / "moved" / "config.yaml")
    invocation = cli.parse(["--resume", "outputs/moved", "--track.mode", "disabled", "--learner.lr", "3e-4"])
    assert invocation.resume == Path("outputs/moved") and invocation.config.learner.lr == 3e-4
    assert (invocation.config.run.dir, invocation.config.run.name, invocation.config.track.mode) == ("outputs", "moved", "disabled")
    assert "but learner.lr was 0.0003 and is now 0.1" in complaint(capsys, ["--resume", "outputs/moved", "--learner.lr", "0.1"])
    assert "but arm was" in complaint(capsys, ["--resume", "outputs/moved", "--arm.output.learner.lr", "0.1"])
    assert "run.dir and run.name ask for outputs/other" in complaint(capsys, ["--resume", "outputs/moved", "--run.name", "other"])


def test_a_run_is_resumed_from_inside_its_folder(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cli.save(Config(), elsewhere / "outputs" / "here" / "config.yaml")
    monkeypatch.chdir(elsewhere / "outputs" / "here")
    config = cli.parse(["--resume", "."]).config
    assert Path(config.run.dir).resolve() == elsewhere.resolve() / "outputs" and config.run.name == "here"


def test_a_setting_that_is_asked_for_wins_over_the_defaults_of_single_arms(elsewhere: Path) -> None:
    assert for_arm(cli.parse([]).config, "offline_dpo").learner.lr == arm_defaults()["offline_dpo"]["learner.lr"]
    config = cli.parse(["--learner.lr", "5e-4"]).config
    assert for_arm(config, "offline_dpo").learner.lr == for_arm(config, "pararl").learner.lr == 5e-4
    assert for_arm(config, "offline_dpo").learner.reference_every == 0
    for arguments in (["--learner.lr", "5e-4", "--arm.offline_dpo.learner.lr", "2e-5"], ["--arm.offline_dpo.learner.lr", "2e-5"]):
        assert for_arm(cli.parse(arguments).config, "offline_dpo").learner.lr == 2e-5
    written("learner:\n  lr: 5e-4\narm:\n  offline_dpo:\n    learner.lr: 2e-5\n", "both.yaml")
    assert for_arm(cli.parse(["--config", "both.yaml"]).config, "offline_dpo").learner.lr == 2e-5


def test_an_existing_run_is_never_overwritten(capsys: pytest.CaptureFixture[str], elsewhere: Path) -> None:
    (elsewhere / "outputs" / "first").mkdir(parents=True)
    assert "outputs/first exists already" in complaint(capsys, ["--run.name", "first"])
    written("", "flat")
    assert "flat is a file, not a folder" in complaint(capsys, ["--run.dir", "flat/runs", "--run.name", "second"])


def test_a_run_without_a_name_is_called_after_time_and_configuration(elsewhere: Path) -> None:
    before = time.strftime("%Y%m%d-%H%M%S")
    folder = cli.run_folder(changed(Config(), {"run.dir": "here"}), "scenes_smoke")
    stamp, _, stem = folder.name.rpartition("-")
    assert folder.parent == Path("here") and stem == "scenes_smoke"
    assert before <= stamp <= time.strftime("%Y%m%d-%H%M%S")
    assert list(elsewhere.iterdir()) == []


def test_help_shows_every_setting_with_its_meaning_and_the_default_in_force(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.parse(["--help", "--config", written("learner:\n  lr: 0.125\n")])
    shown = capsys.readouterr().out
    assert stopped.value.code == 0
    assert [key for key in SETTINGS if f"--{key} " not in shown] == []
    assert "AdamW learning rate." in shown and "default: 0.125" in shown
    assert shown.index("How outputs are sampled") < shown.index("--rollout.prompts") < shown.index("How the adapter is updated")
    assert "--learner CONFIG" not in shown


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The configurations, beside the policies that they name."""
    monkeypatch.setattr(validation, "EMBEDDED", ROOT / "policies" / "checkpoints")
    return sorted((ROOT / "pipelines" / "configs").glob("*.yaml"))


def test_the_shipped_configurations_are_valid(shipped: list[Path]) -> None:
    assert {"default.yaml", "scenes_smoke.yaml"} <= {file.name for file in shipped}
    for file in shipped:
        mine = cli.parse(["--config", str(file), "--plan"])  # which reads no prompt files: some are the user's to give
        assert mine.stem == file.stem
        assert mine.config.curriculum.file or cli.parse(["--config", str(file)]).config == mine.config


def test_no_shipped_configuration_pushes_text_away_from_its_prompt(shipped: list[Path]) -> None:
    for file in shipped:
        rollout = cli.parse(["--config", str(file), "--plan"]).config.rollout
        assert rollout.text_guidance >= 0 and rollout.decoding == "parallel", file.name


def test_settings_are_checked_without_loading_torch_or_ray(tmp_path: Path) -> None:
    code = "import sys; from pararl.cli import parse; parse([]); print(*sys.modules)"
    loaded = script("-c", code, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert loaded.returncode == 0, loaded.stderr
    assert "pararl.cli" in loaded.stdout.split()
    assert {"torch", "ray", "transformers", "wandb", "matplotlib"}.isdisjoint(loaded.stdout.split())


@pytest.mark.parametrize("cwd", [ROOT, ROOT / "pipelines", Path("/")], ids=["checkout", "pipelines", "elsewhere"])
def test_the_script_imports_the_package_and_not_itself(cwd: Path, tmp_path: Path) -> None:
    # sitecustomize runs before the script and reports, as the script ends, which file `import pararl` found
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, sys\natexit.register(lambda: print('pararl is', sys.modules['pararl'].__file__))\n", encoding="utf-8"
    )
    ended = script(os.path.relpath(SCRIPT, cwd), "--help", cwd=cwd, PYTHONPATH=str(tmp_path))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("usage: ") and f"pararl is {ROOT / 'pararl' / '__init__.py'}" in ended.stdout


def test_all_four_packages_import_from_a_checkout() -> None:
    code = "import pararl, policies, rewards, pipelines; print(*(m.__file__ for m in (pararl, policies, rewards, pipelines)))"
    found = script("-c", code, cwd=ROOT)
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == [str(ROOT / name / "__init__.py") for name in ("pararl", "policies", "rewards", "pipelines")]


def test_constraints_lie_within_the_declared_ranges() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.lower().replace("_", "-").split("==") for line in lines if not line.startswith("#"))
    extras = [line for extra in project["optional-dependencies"].values() for line in extra]
    for declared in map(Requirement, [*project["dependencies"], *extras]):
        assert pins[declared.name.lower()] in declared.specifier, declared


def test_a_submitted_job_uploads_the_policies_and_leaves_the_environment_at_home() -> None:
    rules = [line for name in (".gitignore", ".rayignore") for line in (ROOT / name).read_text(encoding="utf-8").splitlines()]
    ignored = pathspec.GitIgnoreSpec.from_lines(rules)
    for needed in (
        "rewards/checkpoints/scenes-clip/model.safetensors",
        "policies/checkpoints/scenes-mmada/model.safetensors",
        "policies/checkpoints/scenes-mmada/config.json",
        "pararl/cli.py",
    ):
        assert not ignored.match_file(needed)
    for local in (
        ".venv/bin/python",
        "outputs/first/config.yaml",
        "wandb/run/x",
        ".git/HEAD",
        "pararl/__pycache__/cli.pyc",
        ".mypy_cache/x",
    ):
        assert ignored.match_file(local)


def test_a_reward_of_the_users_own_is_taken_by_module_and_name() -> None:
    assert cli.parse(["--reward.name", "mine.rewards:score"]).config.reward.name == "mine.rewards:score"
    with pytest.raises(SystemExit):
        cli.parse(["--reward.name", "scene"])
