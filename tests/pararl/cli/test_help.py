"""The help shows what matters most first, every setting where it is asked for, and no type of Python's."""

import re

import pytest

from pararl import __version__
from pararl.cli import parse as cli
from pararl.cli.help import FIRST, configurations, placeholder, written
from pararl.config import SECTIONS, SETTINGS
from pararl.releases import RELEASES
from policies.sources import CHECKPOINTS
from tests.pararl.conftest import Complaint
from tests.pararl.conftest import written as file_of

ENTRY = re.compile(r"^  --([a-z_]+\.[a-z_]+) (.+)$", re.MULTILINE)
"""The first line of a setting: its name, and what stands for its value."""


def shown(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        cli.parse(list(argv))
    assert stopped.value.code == 0
    return capsys.readouterr().out


def test_help_shows_the_fifteen_settings_that_matter_most_before_all_else(capsys: pytest.CaptureFixture[str]) -> None:
    for flag in ("--help", "-h"):
        text = shown(capsys, flag)
        assert tuple(name for name, _ in ENTRY.findall(text)) == FIRST and len(FIRST) == 15
        assert text.index("--eval.prompts") < text.index("\n  --resume RUN") and "--help all" in text
        assert text.startswith("usage: ")


@pytest.mark.usefixtures("elsewhere")
def test_help_on_all_shows_every_setting_with_its_meaning_and_the_default_in_force(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "--help", "all", "--config", file_of("learner:\n  lr: 0.125\n"))
    found = [name for name, _ in ENTRY.findall(text)]
    assert sorted(found) == sorted(SETTINGS)
    assert [name.partition(".")[0] for name in found] == sorted((n.partition(".")[0] for n in found), key=list(SECTIONS).index)
    assert "AdamW learning rate. (default: 0.125)" in text
    assert "Gumbel temperature of the confidence" in text and "default: 8.0" in text, "inherited, with the default of a run"
    assert found.index("rollout.prompts") < found.index("rollout.steps") < found.index("rollout.recorded")
    assert text.count("(default:") == len(SETTINGS)


def test_every_setting_has_a_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(shown(capsys, "--help", "all").split())
    assert [key for key in SETTINGS if re.search(rf"--{re.escape(key)} \S+ \(default", text)] == []


def test_help_on_a_section_shows_its_settings_alone(capsys: pytest.CaptureFixture[str]) -> None:
    for section in SECTIONS:
        found = [name for name, _ in ENTRY.findall(shown(capsys, f"--help={section}"))]
        assert sorted(found) == sorted(key for key in SETTINGS if key.startswith(f"{section}."))


def test_types_are_told_by_choices_and_letters(capsys: pytest.CaptureFixture[str]) -> None:
    kinds = dict(ENTRY.findall(text := shown(capsys, "--help", "all")))
    assert not any(word in text for word in ("Literal", "tuple", "type:", "str,", "None:"))
    assert kinds["learner.schedule"] == "constant|linear" and kinds["curriculum.rest"] == "true|false"
    assert (kinds["run.updates"], kinds["learner.lr"], kinds["run.arms"]) == ("N", "X", "A,B,...")
    assert {key for key in SETTINGS if placeholder(key) != kinds[key]} == set()


def test_a_default_is_written_as_the_command_line_takes_it() -> None:
    assert [written(value) for value in (("a", "b"), True, "", (), 0.001, 3)] == ["a,b", "true", "empty", "empty", "0.001", "3"]


def test_help_lists_the_policies_and_the_configurations(capsys: pytest.CaptureFixture[str]) -> None:
    words = {word.strip(",;.") for word in shown(capsys, "--help").split()}
    assert words >= {path.name for path in CHECKPOINTS.iterdir() if path.is_dir()}
    assert words >= set(RELEASES) and words >= set(configurations()) >= {"default", "scenes_smoke"}


def test_help_on_what_is_not_there_is_one_line_with_what_there_is(complaint: Complaint) -> None:
    told = complaint(["--help", "learning"])
    assert "learning" in told and "learner" in told and "all" in told


def test_the_version_is_printed_whatever_else_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["--version"], ["--run.updates", "3", "--version"]):
        assert shown(capsys, *argv).split() == ["pararl", __version__]
