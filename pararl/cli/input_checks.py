"""Whether what a run reads can be read: the files of its policy, and its rewards. Nothing here loads torch or a model."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from pararl import scenes
from pararl.adapter_files import check
from pararl.cli.validation import policy_directory
from pararl.config import Config, ConfigError, checking, measuring
from pararl.data.prompts import read_prompts
from pararl.data.quotas import task_shares
from pararl.policy_files import check_files
from pararl.types import Kind
from rewards.check import Looked, look

WITHOUT_TEXT: tuple[Kind, ...] = ("t2i", "edit")
"""Kinds of prompts whose outputs are an image alone."""


def check_inputs(config: Config) -> None:
    """Raise one ConfigError with everything that ``input_problems`` finds."""
    if problems := list(input_problems(config)):
        raise ConfigError("; ".join(problems))


def input_problems(config: Config) -> Iterator[str]:
    """What of a run's policy and rewards cannot be read, or does not fit its prompts."""
    try:
        check_files(config.policy.name, policy_directory(config))
    except ConfigError as error:
        yield f"policy.name: {error}"
    else:
        yield from _adapter_problems(config)
    yield from reward_problems(config)


def _adapter_problems(config: Config) -> Iterator[str]:
    """Whether the adapter that the run starts from is one of its policy."""
    if config.policy.adapter:
        try:
            check(Path(config.policy.adapter), policy_directory(config))
        except ConfigError as error:
            yield f"policy.adapter: {error}"


def reward_problems(config: Config) -> Iterator[str]:
    """What is wrong with the rewards: names, imports, signatures, and columns that the prompts do not have."""
    trained, measured = (list(task_shares(tasks)) for tasks in (config.curriculum.tasks, config.eval.tasks or config.curriculum.tasks))
    files = (config.curriculum.file, config.eval.file)
    asked = [("reward.name", config.reward.name, trained, files[0], checking(config))]
    if measuring(config) != config.reward.name:
        asked.append(("eval.reward", measuring(config), measured, files[1], measuring(config)))
    elif files[1] != files[0]:
        asked.append(("reward.name", config.reward.name, measured, files[1], measuring(config)))
    seen: dict[str, Looked] = {}
    for key, name, kinds, file, checked in asked:
        found = seen[name] = seen.get(name) or look(name)
        told = found.problem or _unscored(name, found, kinds) or _lacking(name, found, kinds, file, checked)
        if told:
            yield f"{key}: {told} (set --{key})"
        if found.problem:
            return


def _unscored(name: str, found: Looked, kinds: Sequence[Kind]) -> str | None:
    """A function of texts has no say on images."""
    if found.form == "outputs" or not (silent := [kind for kind in kinds if kind in WITHOUT_TEXT]):
        return None
    return (
        f"reward {name!r} takes texts by the annotation of its completions, and an output of kind {', '.join(silent)} has none (leave the "
        "annotation out to get outputs with their images"
    )


def _lacking(name: str, found: Looked, kinds: Sequence[Kind], file: str, checked: str) -> str | None:
    """A column that a function asks for by name must be one of the prompts'."""
    if not found.wanted:
        return None
    if file:
        specs = [prompt.spec for prompt in read_prompts(file, checked) if prompt.kind in kinds]
    else:
        specs = [scenes.prompt("train", index, 0, *scenes.FORMS[kind]).spec for kind in kinds for index in range(32)]
    there = dict.fromkeys(key for spec in specs for key in spec)
    if not (lacking := [column for column in found.wanted if column not in there]):
        return None
    return (
        f"reward {name!r} needs the column{'s' * (len(lacking) > 1)} {', '.join(lacking)}, which the prompts of {file or 'the scene world'}"
        f" do not have (they have {', '.join(there) or 'none'}); give it a default, or add it to the prompts"
    )
