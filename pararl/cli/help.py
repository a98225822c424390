"""What ``--help`` says: the settings that matter most, ``--help all`` every one of them, ``--help SECTION`` those of a section."""

import shutil
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from textwrap import fill
from typing import Any, Literal

from pararl.cli.validation import embedded_policies
from pararl.config import INHERITED, SECTIONS, SETTINGS, ConfigError
from pararl.releases import RELEASES

CONFIGS = Path(__file__).resolve().parents[2] / "pipelines" / "configs"
"""The configurations that come with the program: ``--config`` takes their names from any folder."""
USAGE = "[--config NAME] [--section.key VALUE ...] [--resume RUN] [--plan [GPU]]"
DESCRIPTION = "Align a unified multimodal model on-policy, next to its offline DPO baseline. Lists are written a,b or [a, b]."
OPTIONS = (
    ("--config", "NAME", "Settings to start from: a YAML file, or a configuration below by its name. The options below win over it."),
    ("--resume", "RUN", "Folder of a run to go on with, with the settings saved there."),
    (
        "--plan",
        "[GPU]",
        "Load and start nothing: print what the run takes (parameters, bytes, operations, expected seconds) on that GPU, or on each named "
        "one. Exit code 1 where it cannot fit.",
    ),
    (
        "--arm.NAME.SECTION.KEY",
        "VALUE",
        "Set learner.*, prefer.* or reward.*_mix for the arm NAME alone: --arm.offline_dpo.learner.lr 3e-4.",
    ),
    ("--version", "", "Print the version."),
)
FIRST = tuple(
    "policy.name curriculum.tasks curriculum.file reward.name run.arms run.updates run.seed run.name rollout.prompts rollout.group "
    "rollout.steps learner.lr learner.beta eval.file eval.prompts".split()
)
"""The settings that matter most, in the order of ``--help``."""
WORDS = {int: "N", float: "X", str: "TEXT", bool: "true|false"}


def help_text(topic: str, program: str, values: Mapping[str, Any], meanings: Mapping[str, str]) -> str:
    """The help on ``topic``: "" = what matters most, "all", or a section. ``values`` are the defaults in force.

    Raises ConfigError for another topic.
    """
    sections = ", ".join(SECTIONS)
    if topic not in ("", "all", *SECTIONS):
        raise ConfigError(f"--help {topic}: there is help on all settings (--help all) and on those of a section ({sections})")
    entries = {key: (f"--{key} {placeholder(key)}", f"{meanings[key]} (default: {written(values[key])})") for key in SETTINGS}
    if topic in SECTIONS:
        return _section(topic, entries)
    parts = [f"usage: {program} {USAGE}", _paragraph(DESCRIPTION)]
    if topic == "all":
        parts += [_section(name, entries) for name in SECTIONS]
    else:
        parts.append(_listed("The settings that matter most", (entries[key] for key in FIRST)))
    parts.append(_listed("Options", ((f"{name} {value}", text) for name, value, text in OPTIONS)))
    parts += [
        _paragraph(f"Policies (--policy.name): {', '.join(embedded_policies())}; releases by name: {', '.join(RELEASES)}; or a directory."),
        _paragraph(f"Configurations (--config): {', '.join(configurations())}."),
    ]
    if topic != "all":
        parts.append(_paragraph(f"All {len(SETTINGS)} settings: --help all. Those of a section: --help SECTION ({sections})."))
    return "\n\n".join(parts)


def configurations() -> list[str]:
    """The names of the configurations that come with the program."""
    return sorted(file.stem for file in CONFIGS.glob("*.yaml"))


def placeholder(setting: str) -> str:
    """What stands for the value of a setting: its choices, or a letter for its type."""
    kind = SETTINGS[setting]
    origin, choices = typing.get_origin(kind), typing.get_args(kind)
    return "|".join(map(str, choices)) if origin is Literal else "A,B,..." if origin is tuple else WORDS[kind]


def written(value: Any) -> str:
    """A value as the command line takes it."""
    if isinstance(value, bool):
        return str(value).lower()
    text = ",".join(value) if isinstance(value, tuple) else str(value)
    return text or "empty"


def _section(name: str, entries: Mapping[str, tuple[str, str]]) -> str:
    """The settings of a section, those that policies have as well behind its own."""
    keys = sorted((key for key in SETTINGS if key.partition(".")[0] == name), key=lambda key: key in INHERITED)
    return _listed((SECTIONS[name].__doc__ or name).splitlines()[0].rstrip("."), (entries[key] for key in keys))


def _listed(title: str, entries: Iterable[tuple[str, str]]) -> str:
    return "\n".join([f"{title}:", *(f"  {name}\n{_paragraph(text, ' ' * 8)}" for name, text in entries)])


def _paragraph(text: str, indent: str = "") -> str:
    width = min(100, shutil.get_terminal_size().columns)
    return fill(
        " ".join(text.split()), width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
    )
