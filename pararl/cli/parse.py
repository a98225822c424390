"""From a command line and a YAML file to a checked ``Config``, and back to YAML.

jsonargparse gives every setting its option, its help and its type. This module adds what a user needs to be told in one line: which
setting, in which file, what was wrong and what to do. Nothing here imports torch or Ray, so a mistake is told within a second.
"""

import argparse
import os
import re
import sys
import time
import typing
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

from pararl.adapter_files import START, start_of
from pararl.cli.help import CONFIGS, configurations, help_text
from pararl.cli.program import program, version
from pararl.cli.validation import validate
from pararl.config import ARMS, PER_ARM, RENAMED, SECTIONS, SETTINGS, Config, ConfigError, arm_defaults, changed, flat, for_arm
from pararl.errors import fail
from pararl.files import atomic_path
from pararl.readers import parse_yaml, read_yaml, told

ALONE = ("config", "resume", "plan", "help", "version")
"""Options that are no settings."""
BARE = ("plan", "help", "version")
"""Those among them that may stand without a value."""
ON_COMMAND_LINE = "on the command line"
FREE_ON_RESUME = tuple(
    "run.dir run.name run.checkpoint_every run.patience run.timeout rollout.workers rollout.gpus reward.workers reward.timeout "
    "learner.gpus learner.gradient_checkpointing track.mode track.project".split()
)
"""Settings that a resumed run may change, because its figures do not depend on them."""


@dataclass(frozen=True, slots=True)
class Invocation:
    """What the user asked for."""

    config: Config
    stem: str
    """Name of the configuration file without its ending; "default" when none was given."""
    resume: Path | None = None
    """Folder of the run to go on with, or None for a new run."""
    plan: str | None = None
    """The GPU whose plan is asked for in place of the run, "" for all named ones; None = run."""
    longer: bool = False
    """Whether the run that is gone on with gets more updates than it was to have."""


def parse(argv: list[str] | None = None, default: Path | None = None) -> Invocation:
    """The checked invocation for ``argv`` (None = this process's arguments).

    The command line wins over the YAML file, the file over the defaults. ``default`` is the file that is read when neither
    ``--config`` nor ``--resume`` is given. Prints one line to stderr and exits with code 2 on a mistake, 0 after ``--help``.
    """
    try:
        return _invocation(sys.argv[1:] if argv is None else argv, default)
    except ConfigError as error:
        fail(str(error))


def note(message: str) -> None:
    """Print ``message`` as one line that is no error."""
    print(f"pararl: note: {' '.join(message.split())}", file=sys.stderr)


def run_folder(config: Config, stem: str) -> Path:
    """The folder of a new run, not made yet: ``run.dir``/``run.name``, by default ``run.dir``/<time>-<stem>.

    Exits with one line when it exists already: no run is ever overwritten.
    """
    folder = Path(config.run.dir) / (config.run.name or f"{time.strftime('%Y%m%d-%H%M%S')}-{stem}")
    if not config.run.name and folder.exists():  # another run of this second
        folder = folder.with_name(f"{folder.name}-{os.getpid()}")
    if folder.exists():
        fail(f"{folder} exists already and is never overwritten (set --run.name or --run.dir, or go on with it: --resume {folder})")
    blocked = next((parent for parent in folder.parents if parent.exists() and not parent.is_dir()), None)
    if blocked:
        fail(f"run.dir: {blocked} is a file, not a folder (set --run.dir)")
    above = next(parent for parent in folder.absolute().parents if parent.exists())
    if not os.access(above, os.W_OK | os.X_OK):
        fail(f"run.dir: {above} cannot be written to (set --run.dir)")
    return folder


def as_dict(config: Config) -> dict[str, dict[str, Any]]:
    """``config`` as nested plain dictionaries and lists, for YAML, JSON and W&B."""
    return {
        name: {key: list(value) if isinstance(value, tuple) else value for key, value in section.items()}
        for name, section in asdict(config).items()
    }


def save(config: Config, path: Path) -> None:
    """Write every setting to ``path`` as YAML that ``--config`` reads back to an equal ``Config``; the file appears whole or not at all."""
    with atomic_path(path) as part:
        part.write_text(yaml.safe_dump(as_dict(config), sort_keys=False, allow_unicode=True), encoding="utf-8")


def _invocation(argv: list[str], default: Path | None) -> Invocation:
    """``parse`` without the exit; raises ConfigError."""
    pairs = list(_options(argv))
    options = dict(pairs)
    for name in ALONE:
        if [key for key, _ in pairs].count(name) > 1:
            raise ConfigError(f"--{name} is given more than once")
    if "version" in options:
        print(version())
        raise SystemExit(0)
    resume = Path(options.pop("resume")) if "resume" in options else None
    given = configuration(options.pop("config")) if "config" in options else None
    plan, topic = options.pop("plan", None), options.pop("help", None)
    source = given or (None if resume else default)
    parser = _parser()
    config = _saved(parser, resume) if resume else Config()
    base = config
    if source:
        config = _layer(parser, config, _read(source), f"in {source}")
    config = _layer(parser, config, options, ON_COMMAND_LINE)
    if config.policy.adapter and not resume:
        config = _of_its_adapter(config, {**(_read(source) if source else {}), **options})
    if topic is not None:
        print(help_text(topic, program(), flat(config), {action.dest: action.help or "" for action in parser._actions}))
        raise SystemExit(0)
    for line in validate(started_in(config, resume) if resume else config, files=plan is None):
        note(line)
    if resume:
        _same_run(base, config, resume)
        return Invocation(config, resume.name, resume, plan, longer=config.run.updates > base.run.updates)
    stem = source.stem if source else "default"
    if config.run.name and plan is None:
        run_folder(config, stem)
    return Invocation(config, stem, plan=plan)


def configuration(name: str) -> Path:
    """The file that ``--config`` names: one that is there, else a configuration that comes with the program."""
    shipped = CONFIGS / f"{name.removesuffix('.yaml')}.yaml"
    return shipped if not Path(name).is_file() and Path(name).name == name and shipped.is_file() else Path(name)


def _parser() -> ArgumentParser:
    """One option per setting; the help text is the string under each field."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(exit_on_error=False, default_env=False)
    for name, section in SECTIONS.items():
        parser.add_class_arguments(section, name)
    return parser


def _options(argv: list[str]) -> Iterator[tuple[str, str]]:
    """``argv`` as (name, value): ``--key value``, ``--key=value``, and ``--key a b`` for lists. Raises ConfigError."""
    place = 0
    while place < len(argv):
        name, equals, value = argv[place].partition("=")
        place += 1
        name = "--help" if name == "-h" else name
        if not name.startswith("--"):
            raise ConfigError(f"unexpected argument {name!r} (options are written --section.key VALUE; see --help)")
        words = [value] if equals else []
        while not equals and place < len(argv) and not argv[place].startswith("--") and argv[place] != "-h":
            words.append(argv[place])
            place += 1
        key = name.removeprefix("--")
        if key not in ALONE and not key.startswith("arm."):
            _check_known(key, ON_COMMAND_LINE)
        if key in BARE:
            words = words or [""]
        elif not words or (key in ALONE and not words[0]):
            raise ConfigError(f"{name} needs a value (see --help)")
        if len(words) > 1 and not _is_list(key):
            raise ConfigError(f"unexpected argument {words[1]!r} after {name} {words[0]} (options are written --section.key VALUE)")
        yield key, ",".join(words)


def _read(path: Path) -> dict[str, Any]:
    """The YAML file as ``{"section.key": value}``. Raises ConfigError when it is missing or not a mapping of settings."""
    if not path.exists():
        raise ConfigError(f"no configuration file {path} (set --config; by name there are {', '.join(configurations())})")
    content = read_yaml(path, "mend it, or set --config")
    if content is not None and not isinstance(content, dict):
        raise ConfigError(f"{path} must hold sections of settings (learner: ...), got {told(content)}")
    try:
        return dict(_leaves(content or {}))
    except RecursionError:
        raise ConfigError(f"{path} holds a section that is part of itself (mend it, or set --config)") from None


def _leaves(content: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested sections as dotted keys; a section without content (every line of it a comment) has none."""
    for name, value in content.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and key not in SETTINGS:
            yield from _leaves(value, f"{key}.")
        elif value is not None or not (key in (*SECTIONS, "arm") or key.removeprefix("arm.") in (*ARMS, *RENAMED)):
            yield key, value


def _layer(parser: ArgumentParser, config: Config, values: Mapping[str, Any], source: str) -> Config:
    """``config`` with ``values`` (from ``source``) over it, each turned into its declared type. Raises ConfigError."""
    values, settings = _named_as_today(values, source), dict[str, Any]()
    arms = {arm: dict(own) for arm, own in config.arm.items()}
    for key, value in sorted(values.items(), key=lambda item: item[0].startswith("arm.")):
        if not key.startswith("arm."):
            _check_known(key, source)
            settings[key] = _typed(parser, key, key, value, source)
            # What is asked for by name wins over an arm's built-in default, never over what was asked for that arm.
            for arm, own in arm_defaults().items():
                if key in own and arms.get(arm, {}).get(key) == own[key]:
                    del arms[arm][key]
            continue
        _, arm, setting = (*key.split(".", 2), "")[:3]
        if arm not in ARMS:
            raise ConfigError(f"{key} {source}: unknown arm {arm!r} (known: {', '.join(ARMS)})")
        if setting not in PER_ARM:
            raise ConfigError(f"{key} {source}: an arm may set learner.*, prefer.* and reward.*_mix only{_hint(setting, PER_ARM)}")
        arms.setdefault(arm, {})[setting] = _typed(parser, setting, key, value, source)
    return replace(changed(config, settings), arm=arms)


def _named_as_today(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """``values`` with the names that arms have today; says so where one had another."""
    found, used = dict[str, Any](), dict[str, str]()
    for key, value in values.items():
        for was, now in RENAMED.items():
            if key.startswith(f"arm.{was}."):
                key, used[was] = f"arm.{now}{key.removeprefix(f'arm.{was}')}", now
            elif key == "run.arms" and isinstance(value, str) and re.search(rf"\b{was}\b", value):
                value, used[was] = re.sub(rf"\b{was}\b", now, value), now
            elif key == "run.arms" and isinstance(value, list) and was in value:
                value, used[was] = [now if name == was else name for name in value], now
        found[key] = value
    if used:
        note(f"{source}: {', '.join(f'arm {was} is called {now} now' for was, now in used.items())}")
    return found


def _check_known(key: str, source: str) -> None:
    """Raise ConfigError unless ``key`` is a setting."""
    if key in (*SECTIONS, "arm"):
        raise ConfigError(f"{key} {source} is a section, not a setting: name what to set ({key}.KEY, see --help)")
    if key not in SETTINGS:
        raise ConfigError(f"unknown setting {key} {source}{_hint(key, tuple(SETTINGS)) or ' (see --help)'}")


def _hint(key: str, known: tuple[str, ...]) -> str:
    """The known setting that ``key`` resembles, by its last part or by its letters, as a question; empty when there is none."""
    same_name = [name for name in known if name.partition(".")[2] == key.rpartition(".")[2]]
    similar = [*same_name, *get_close_matches(key, known, n=1)]
    return f" (did you mean {similar[0]}?)" if similar else ""


def _is_list(key: str) -> bool:
    """Whether the setting takes several values."""
    return typing.get_origin(SETTINGS.get(key)) is tuple


def _typed(parser: ArgumentParser, setting: str, key: str, value: Any, source: str) -> Any:
    """``value`` in the declared type of ``setting``, which the user wrote as ``key``. Raises ConfigError."""
    if any("\ud800" <= mark <= "\udfff" for mark in str(value)):  # bytes of another encoding, which no file of ours could hold
        raise ConfigError(f"{key} {source} must be text in UTF-8, got {told(value)}")
    if type(value) is SETTINGS[setting]:
        return value
    section, _, name = setting.partition(".")
    try:
        if _is_list(setting) and isinstance(value, str):
            value = parse_yaml(value) if value.startswith("[") else [part.strip() for part in value.split(",")]
        typed = getattr(getattr(parser.parse_object({section: {name: value}}), section), name)
    except (argparse.ArgumentError, yaml.YAMLError, RecursionError, ValueError, TypeError, AttributeError, KeyError):
        typed = None
    if typed is None:  # no setting is optional, so a YAML null is a mistake too
        origin, choices = typing.get_origin(SETTINGS[setting]), typing.get_args(SETTINGS[setting])
        words = {int: "a whole number", float: "a number", str: "text", bool: "true or false", tuple: "a list such as [a, b]"}
        wanted = f"one of {', '.join(choices)}" if origin is Literal else words[origin or SETTINGS[setting]]
        raise ConfigError(f"{key} {source} must be {wanted}, got {told(value)}")
    return typed


def _saved(parser: ArgumentParser, run: Path) -> Config:
    """The settings of the run in the folder ``run``, which may have been moved since. Raises ConfigError."""
    file = run / "config.yaml"
    if not file.is_file():
        raise ConfigError(f"--resume {run}: no run there ({file} is missing)")
    config = _layer(parser, replace(Config(), arm={}), _read(file), f"in {file}")
    place = run if run.name not in ("", "..") else run.resolve()
    return changed(config, {"run.dir": str(place.parent), "run.name": run.resolve().name})


def _same_run(saved: Config, asked: Config, run: Path) -> None:
    """Raise ConfigError unless ``asked`` goes on with the run ``saved``: a run that changes half-way is two runs."""
    folder = Path(asked.run.dir) / asked.run.name
    if folder.resolve() != run.resolve():
        raise ConfigError(f"--resume {run} goes on in that folder, but run.dir and run.name ask for {folder} (leave them out)")
    found = [d for d in differences(saved, asked) if d[0] != "run.updates"]
    if found:
        told = ", and ".join(f"{key} was {was} and is now {now}" for key, was, now in found)
        raise ConfigError(f"--resume {run} keeps its settings, but {told} (leave that out, or start a new run)")
    _extendable(saved, asked, run)


def started_in(config: Config, run: Path) -> Config:
    """The settings of a run whose ``policy.adapter`` is the copy in its folder, which does not go with the one that was named."""
    own = run / START
    return changed(config, {"policy.adapter": str(own)}) if config.policy.adapter and own.is_dir() else config


def _of_its_adapter(config: Config, given: Mapping[str, Any]) -> Config:
    """``config`` with rank and alpha of the adapter that it starts from. Raises ConfigError where they were ``given``, and others."""
    try:
        rank, alpha = start_of(Path(config.policy.adapter))
    except ConfigError as error:
        raise ConfigError(f"policy.adapter: {error} (set --policy.adapter)") from error
    for key, own, asked in (("policy.lora_rank", rank, config.policy.lora_rank), ("policy.lora_alpha", alpha, config.policy.lora_alpha)):
        if key in given and asked != own:
            raise ConfigError(f"{key} is {asked}, but policy.adapter {config.policy.adapter} has {own} (leave it out)")
    return changed(config, {"policy.lora_rank": rank, "policy.lora_alpha": alpha})


def _extendable(saved: Config, asked: Config, run: Path) -> None:
    """Raise ConfigError unless the run ``saved`` can have as many updates as are asked for, and be what it would have been with them."""
    was, now = saved.run.updates, asked.run.updates
    if now < was:
        raise ConfigError(f"--resume {run}: run.updates was {was} and is now {now}: a run gets longer, never shorter (start a new run)")
    falling = [arm for arm in asked.run.arms if for_arm(asked, arm).learner.schedule != "constant"]
    if now > was and falling:
        raise ConfigError(
            f"--resume {run}: run.updates was {was} and is now {now}, but learner.schedule of {', '.join(falling)} ends at update {was}: "
            "with more updates it would have had other learning rates from the first on (start a new run, with --policy.adapter from "
            f"{run / 'adapters' / falling[0]})"
        )


def differences(saved: Config, asked: Config) -> Iterator[tuple[str, Any, Any]]:
    """Settings on which a run's figures depend and in which two configurations differ: (name, of the first, of the second).

    Those of single arms as ``arm.NAME.section.key``, with the values that the arm has.
    """
    before, after = flat(saved), flat(asked)
    for key, value in before.items():
        if after[key] != value and key not in FREE_ON_RESUME:
            yield key, value, after[key]
    for arm in ARMS:
        own = [key for key in PER_ARM if key in saved.arm.get(arm, {}) or key in asked.arm.get(arm, {})]
        was, now = flat(for_arm(saved, arm)), flat(for_arm(asked, arm))
        for key in own:
            if was[key] != now[key] and key not in FREE_ON_RESUME:
                yield f"arm.{arm}.{key}", was[key], now[key]


def lengthen(file: Path, updates: int) -> None:
    """Give the run whose settings are saved in ``file`` that many updates; the file is whole at any moment."""
    settings = read_yaml(file)
    settings.setdefault("run", {})["updates"] = updates
    with atomic_path(file) as part:
        part.write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding="utf-8")
