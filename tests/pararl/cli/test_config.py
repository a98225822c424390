"""A run's settings: the command line wins over the file, mistakes are one line, and what is saved reads back equal."""

import json
import time
from pathlib import Path

import pytest
import yaml

from pararl import policy_files
from pararl.cli import parse as cli
from pararl.config import SETTINGS, Config, ConfigError, arm_defaults, changed, for_arm
from tests.pararl.conftest import Complaint, written

pytestmark = pytest.mark.usefixtures("elsewhere")
ROOT = Path(__file__).resolve().parents[3]


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
    [
        ["pararl,online_dpo"],
        ["[pararl,online_dpo]"],
        ["[pararl, online_dpo]"],
        ['["pararl", "online_dpo"]'],
        ["pararl", "online_dpo"],
        ["pararl, online_dpo"],
    ],
)
def test_lists_are_read_however_they_are_written(words: list[str]) -> None:
    assert cli.parse(["--run.arms", *words]).config.run.arms == ("pararl", "online_dpo")
    assert cli.parse(["--run.arms", "pararl"]).config.run.arms == ("pararl",)


def test_values_have_their_declared_types() -> None:
    config = cli.parse(["--run.name", "2024", "--learner.lr", "1", "--track.mode", "disabled", "--run.seed", "7"]).config
    assert (config.run.name, config.track.mode, config.run.seed) == ("2024", "disabled", 7)
    assert type(config.learner.lr) is float


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("--learner.lr abc", "learner.lr 'abc' number"),
        ("--learner.lr null", "learner.lr number"),
        ("--run.updates 3.5", "run.updates '3.5' whole"),
        ("--track.mode on", "track.mode 'on' auto, offline, online, disabled"),
        ("--run.arms [a", "run.arms list"),
        ("--learner.lrr 1", "learner.lrr learner.lr?"),
        ("--lr 1", "lr learner.lr?"),
        ("--zzz 1", "zzz --help"),
        ("--learner 1", "learner section learner.KEY"),
        ("--arm.ppo.learner.lr 1", "'ppo' pararl,"),
        ("--arm.online_dpo.learner.lrr 1", "arm.online_dpo.learner.lrr learner.lr?"),
        ("--arm.online_dpo.run.updates 1", "arm.online_dpo.run.updates learner.*"),
        ("--learner.lr", "--learner.lr value"),
        ("--learner.lr 1 2", "'2' --learner.lr"),
        ("job.yaml", "'job.yaml'"),
        ("--config gone.yaml", "gone.yaml --config"),
        ("--config .", "folder ."),
        ("--config a.yaml --config b.yaml", "--config once"),
        ("--resume gone", "--resume gone/config.yaml"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_setting(complaint: Complaint, argv: str, words: str) -> None:
    line = complaint(argv.split(" "))
    assert [word for word in words.split() if word not in line] == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("learner:\n  lrr: 1\n", "learner.lrr learner.lr?"),
        ("lerner:\n  lr: 1\n", "lerner.lr learner.lr?"),
        ("learner:\n  lr: [1]\n", "learner.lr [1]"),
        ("learner:\n  lr: {}\n", "learner.lr {}"),
        ("learner:\n  lr:\n", "learner.lr None"),
        ("run:\n  updates: true\n", "run.updates True"),
        ("run:\n  name: 2024\n", "run.name 2024"),
        ("track:\n  mode: off\n", "track.mode False auto, offline, online, disabled"),
        ("learner: 3\n", "learner section"),
        ("arm:\n  ppo:\n    learner.lr: 1\n", "arm.ppo.learner.lr 'ppo'"),
        ("arm:\n  online_dpo: 3\n", "arm.online_dpo learner.*"),
        ("- a\n", "sections"),
        ("learner: {lr: 1\nrun: 2\n", "line 2 YAML"),
        ("learner:\n  lr: 1\nlearner:\n  beta: 1\n", "line 3 'learner' twice"),
    ],
)
def test_a_mistake_in_the_file_names_the_file(complaint: Complaint, content: str, words: str) -> None:
    line = complaint(["--config", written(content)])
    assert [word for word in ("job.yaml", *words.split()) if word not in line] == []


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
        "online_dpo",
        "--run.name",
        "Läufer: 1",
        "--arm.online_dpo.learner.beta",
        "0.1",
        "--rollout.gpus",
        "0.25",
    ]
    config = cli.parse(argv).config
    cli.save(config, elsewhere / "saved" / "config.yaml")
    plain = yaml.safe_load((elsewhere / "saved" / "config.yaml").read_text(encoding="utf-8"))
    assert plain["learner"]["lr"] == 1e-5 and plain["run"]["arms"] == ["online_dpo"] and plain["arm"]["online_dpo"] == {"learner.beta": 0.1}
    assert sum(len(section) for name, section in plain.items() if name != "arm") == len(SETTINGS)
    assert cli.parse(["--config", "saved/config.yaml"]).config == config
    assert json.loads(json.dumps(cli.as_dict(config))) == plain
    assert [path.name for path in (elsewhere / "saved").iterdir()] == ["config.yaml"]


def test_resume_takes_the_saved_settings_and_refuses_others(complaint: Complaint, elsewhere: Path) -> None:
    config = cli.parse(["--learner.lr", "3e-4", "--run.name", "first"]).config
    cli.save(config, elsewhere / "outputs" / "moved" / "config.yaml")
    free = ["--track.mode", "disabled", "--reward.timeout", "5", "--run.timeout", "0"]
    invocation = cli.parse(["--resume", "outputs/moved", *free, "--learner.lr", "3e-4"])
    assert (invocation.config.reward.timeout, invocation.config.run.timeout) == (5.0, 0.0)
    assert invocation.resume == Path("outputs/moved") and invocation.config.learner.lr == 3e-4
    assert (invocation.config.run.dir, invocation.config.run.name, invocation.config.track.mode) == ("outputs", "moved", "disabled")
    assert all(word in complaint(["--resume", "outputs/moved", "--learner.lr", "0.1"]) for word in ("learner.lr", "0.0003", "0.1"))
    one = complaint(["--resume", "outputs/moved", "--arm.online_dpo.learner.lr", "0.1", "--arm.offline_dpo.learner.beta", "2"])
    assert all(word in one for word in ("arm.online_dpo.learner.lr", "0.0003", "0.1", "arm.offline_dpo.learner.beta", "3.0", "2.0"))
    assert "{" not in one and "offline_stream" not in one and "offline_dpo.learner.lr" not in one
    assert "outputs/other" in complaint(["--resume", "outputs/moved", "--run.name", "other"])


def test_a_run_is_made_longer_and_never_shorter(complaint: Complaint, elsewhere: Path) -> None:
    config = cli.parse(["--run.updates", "5", "--run.name", "first", "--arm.offline_dpo.learner.schedule", "linear"]).config
    file = elsewhere / "outputs" / "first" / "config.yaml"
    cli.save(config, file)
    assert all(word in complaint(["--resume", "outputs/first", "--run.updates", "4"]) for word in ("run.updates", "5", "4"))
    falling = complaint(["--resume", "outputs/first", "--run.updates", "6"])
    assert "learner.schedule" in falling and "offline_dpo" in falling and "--policy.adapter" in falling
    assert not cli.parse(["--resume", "outputs/first", "--run.updates", "5"]).longer
    cli.save(changed(config, {"run.arms": ("pararl",)}), file)
    longer = cli.parse(["--resume", "outputs/first", "--run.updates", "6", "--rollout.workers", "3"])
    assert longer.longer and longer.config.run.updates == 6
    before = yaml.safe_load(file.read_text())
    cli.lengthen(file, 6)
    after = yaml.safe_load(file.read_text())
    assert after.pop("run") == {**before.pop("run"), "updates": 6} and after == before
    assert [path.name for path in file.parent.iterdir()] == ["config.yaml"]


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


def test_an_existing_run_is_never_overwritten(complaint: Complaint, elsewhere: Path) -> None:
    (elsewhere / "outputs" / "first").mkdir(parents=True)
    assert "outputs/first" in complaint(["--run.name", "first"])
    written("", "flat")
    assert "run.dir: flat" in complaint(["--run.dir", "flat/runs", "--run.name", "second"])


@pytest.mark.parametrize("name", ["a" * 256, "ä" * 128])
def test_a_name_that_no_file_system_takes_is_refused_where_the_folder_above_is_not_there_yet(name: str, complaint: Complaint) -> None:
    assert "run.name" in complaint(["--run.dir", "not/there", "--run.name", name])
    assert cli.parse(["--run.dir", "not/there", "--run.name", name[:-1]]).config.run.name == name[:-1]
    assert "run.dir" in complaint(["--run.dir", name])


def test_a_run_without_a_name_is_called_after_time_and_configuration(elsewhere: Path) -> None:
    before = time.strftime("%Y%m%d-%H%M%S")
    folder = cli.run_folder(changed(Config(), {"run.dir": "here"}), "scenes_smoke")
    stamp, _, stem = folder.name.rpartition("-")
    assert folder.parent == Path("here") and stem == "scenes_smoke"
    assert before <= stamp <= time.strftime("%Y%m%d-%H%M%S")
    assert list(elsewhere.iterdir()) == []


def test_a_shipped_configuration_is_read_by_its_name_from_any_folder(elsewhere: Path) -> None:
    mine = cli.parse(["--config", "scenes_smoke", "--plan"])
    assert mine == cli.parse(["--config", str(ROOT / "pipelines" / "configs" / "scenes_smoke.yaml"), "--plan"])
    assert mine.stem == "scenes_smoke" and mine.config.run.updates == 3


def test_a_file_of_the_users_wins_over_a_shipped_configuration_of_its_name(elsewhere: Path) -> None:
    Path("scenes_smoke").write_text("run:\n  updates: 7\n")
    assert cli.parse(["--config", "scenes_smoke", "--plan"]).config.run.updates == 7
    Path("scenes_smoke").unlink()
    Path("scenes_smoke").mkdir()  # a folder of results, say
    assert cli.parse(["--config", "scenes_smoke", "--plan"]).config.run.updates == 3


def test_a_configuration_that_is_not_there_is_told_with_those_that_are(complaint: Complaint) -> None:
    for name in ("scenes_smok", "pipelines/configs/scenes_smoke.yaml"):
        told = complaint(["--config", name])
        assert name in told and "scenes_smoke" in told and "scenes_joint" in told


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The configurations, beside the policies that they name."""
    monkeypatch.setattr(policy_files, "EMBEDDED", ROOT / "policies" / "checkpoints")
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


OLD_FILE = "run:\n  arms: [output, pararl]\narm:\n  output:\n    learner.lr: 3e-4\n    prefer: {min_margin: 0.5}\n"


@pytest.mark.parametrize(
    "argv",
    [
        ["--run.arms", "output,pararl", "--arm.output.learner.lr", "3e-4", "--arm.output.prefer.min_margin", "0.5"],
        ["--run.arms", "[output, pararl]", "--arm.output.learner.lr=3e-4", "--arm.online_dpo.prefer.min_margin=0.5"],
        ["--config", "old.yaml"],
        ["--resume", "outputs/old"],
    ],
)
def test_an_arm_by_the_name_it_had_is_the_arm_and_one_line_says_so(
    argv: list[str], elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(OLD_FILE, "old.yaml")
    (elsewhere / "outputs" / "old").mkdir(parents=True)
    written(OLD_FILE, "outputs/old/config.yaml")
    config = cli.parse(argv).config
    assert config.run.arms == ("online_dpo", "pararl")
    assert config.arm["online_dpo"] == {"learner.lr": 3e-4, "prefer.min_margin": 0.5} and "output" not in config.arm
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "arm output is called online_dpo now" in told


def test_both_names_of_an_arm_are_one_arm_twice(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.parse(["--run.arms", "output,online_dpo"])
    assert "run.arms names 'online_dpo' more than once" in capsys.readouterr().err
    assert cli.parse(["--run.name", "output", "--run.dir", "output"]).config.run.name == "output"


STRANGE = ("[" * 5000, "!!bool x", "!!timestamp x", "2026-99-99", "9" * 5000, "&a [*a]", "\ud800", "[a, {b: c}]", "x" * 5000)
"""Values that PyYAML, jsonargparse or the file system trip over."""


@pytest.mark.parametrize("key", ["learner.lr", "run.arms", "policy.name"])
def test_a_strange_value_is_one_line_on_the_command_line_and_in_a_file(key: str, complaint: Complaint) -> None:
    section, _, name = key.partition(".")
    for value in STRANGE:
        assert key in complaint([f"--{key}", value]), value[:20]
        if value != "\ud800":
            assert complaint(["--config", written(f"{section}:\n  {name}: {value}\n")])


@pytest.mark.parametrize("text", ["a: &a {b: *a}", "&a [*a]", "- " * 5000, "policy: !!set {a, b}", "? {a: 1}\n: 2", "a: !!bool x"])
def test_a_file_that_holds_itself_or_no_settings_is_one_line(text: str, complaint: Complaint) -> None:
    assert "job.yaml" in complaint(["--config", written(text)])
