"""What a configuration must satisfy, checked before a model is loaded or an actor started."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import rewards.names
from pararl import policy_files
from pararl.adapter_files import start_of
from pararl.cli.arm_checks import arm_problems
from pararl.cli.family_checks import family_problems
from pararl.cli.prompt_checks import prompt_problems
from pararl.cli.trl_checks import trl_problems
from pararl.config import ARMS, PER_ARM, Config, ConfigError, flat, measuring
from pararl.data.quotas import task_shares
from pararl.plan.shapes import held_bytes
from pararl.policy_files import family_of, policy_directory, settings_of
from pararl.readers import FileError
from pararl.releases import RELEASES, release_of
from pararl.steps import CUTS, shared_steps
from pararl.types import TASKS, Kind
from policies.traits import ANSWERS, Traits, traits_of

SPLITS = ("id", "ood_pair", "ood_rel", "ood_count", "ood_ops", "para", "canary")
"""The splits of the scene world (``pararl/scenes``) that a policy is measured on; all but the first and the last are held out. Kinds of
prompts that have no such split are left out of it."""

Bound = tuple[str, Callable[[float], bool]]
"""A range in words, and whether a number lies in it."""

_ANY: Bound = ("a number", lambda value: True)
_POSITIVE: Bound = ("> 0", lambda value: value > 0)
_AT_LEAST_0: Bound = (">= 0", lambda value: value >= 0)
_AT_LEAST_1: Bound = (">= 1", lambda value: value >= 1)
_GPUS: Bound = (">= 0 and <= 1, because a process uses one GPU", lambda value: 0 <= value <= 1)
_SHARE: Bound = (">= 0 and <= 1", lambda value: 0 <= value <= 1)
_LOWEST: Bound = ("between 0 and 1, or -1 for the policy's own", lambda value: value == -1 or 0 <= value <= 1)
_SEED: Bound = ("between 0 and 2**32 - 1", lambda value: 0 <= value < 2**32)

LONGEST_NAME = 255
"""Bytes of a name on the file systems in use. Where the folder above is not there yet, nothing says so until a run makes its own."""
LONGEST_PATH = 4095
"""Bytes of a whole path."""
BOUNDS: dict[str, Bound] = {
    "run.seed": _SEED,
    "run.updates": _AT_LEAST_1,
    "run.checkpoint_every": _AT_LEAST_1,
    "run.patience": _AT_LEAST_0,
    "run.timeout": _AT_LEAST_0,
    "policy.lora_rank": _AT_LEAST_1,
    "policy.lora_alpha": _AT_LEAST_1,
    "rollout.prompts": _AT_LEAST_1,
    "rollout.group": (">= 2 (a group of one has no pair)", lambda value: value >= 2),
    "rollout.steps": _AT_LEAST_1,
    "rollout.recorded": _AT_LEAST_1,
    "rollout.scored": _AT_LEAST_0,
    "rollout.temperature": _POSITIVE,
    "rollout.choice_temperature": _AT_LEAST_0,
    "rollout.flow_noise": (">= 0 and <= 1.41 (sqrt 2)", lambda value: 0 <= value <= 2**0.5),
    "rollout.guidance": _AT_LEAST_0,
    "rollout.text_guidance": _ANY,
    "rollout.input_guidance": _AT_LEAST_0,
    "rollout.image_steps": _AT_LEAST_0,
    "rollout.workers": _AT_LEAST_1,
    "rollout.threads": _AT_LEAST_1,
    "rollout.chunk": _AT_LEAST_1,
    "rollout.gpus": _GPUS,
    "reward.workers": _AT_LEAST_1,
    "reward.timeout": _AT_LEAST_0,
    "reward.calibration": ("0, or >= 2 (one score has no deviation)", lambda value: value == 0 or value >= 2),
    "reward.step_mix": _SHARE,
    "prefer.credit": (">= 0", lambda value: value >= 0),
    "reward.strict_mix": _SHARE,
    "prefer.min_margin": _AT_LEAST_0,
    "prefer.min_best": _SHARE,
    "learner.lr": _POSITIVE,
    "learner.weight_decay": _AT_LEAST_0,
    "learner.clip_norm": _POSITIVE,
    "learner.beta": _POSITIVE,
    "learner.reference_every": _AT_LEAST_0,
    "learner.kl": _AT_LEAST_0,
    "learner.clip_ratio": ("> 0 and < 1", lambda value: 0 < value < 1),
    "learner.nll": _AT_LEAST_0,
    "learner.draws": _AT_LEAST_1,
    "learner.image_ratio": _LOWEST,
    "learner.text_ratio": _LOWEST,
    "learner.spg_mix": _SHARE,
    "learner.spg_beta": _AT_LEAST_1,
    "learner.micro": _AT_LEAST_1,
    "learner.threads": _AT_LEAST_1,
    "learner.gpus": _GPUS,
    "learner.text_weight": _AT_LEAST_0,
    "learner.image_weight": _AT_LEAST_0,
    "eval.prompts": _AT_LEAST_1,
    "eval.every": _AT_LEAST_0,
    "eval.first": _AT_LEAST_0,
    "eval.during": _AT_LEAST_1,
    "eval.seed": _SEED,
    "track.images": _AT_LEAST_0,
}
"""The range of every number in the configuration."""


def validate(config: Config, files: bool = True) -> list[str]:
    """Raise one ConfigError with everything in ``config`` that cannot be; loads and starts nothing.

    ``files``: whether the user's prompt files are read as well. Returns what can be, but should be known.
    """
    values = flat(config)
    numbers = [_out_of_range(key, key, values[key]) for key in BOUNDS]
    problems = [problem for problem in numbers if problem] + _steps(config) + _lists(config) + _names(config) + _overrides(config)
    # One after the other: later checks compute with numbers and names that earlier ones have found sound.
    problems = problems or _curriculum(config) or arm_problems(config)
    problems = problems or _policy(config)
    wrong, notes = prompt_problems(config) if files and not problems else ([], [])
    if problems + wrong:
        raise ConfigError("; ".join(problems + wrong))
    return notes


def _out_of_range(name: str, key: str, value: float) -> str | None:
    """What is wrong with the number ``value`` of the setting ``key``, which the user wrote as ``name``; None = nothing."""
    words, holds = BOUNDS[key]
    if math.isfinite(value) and holds(value):
        return None
    return f"{name} must be {words if math.isfinite(value) else 'finite'}, got {value} (set --{name})"


def _steps(config: Config) -> list[str]:
    """What is wrong with settings that limit each other."""
    problems = []
    steps, recorded, learner = config.rollout.steps, config.rollout.recorded, config.learner
    if recorded > steps:
        problems.append(f"rollout.recorded must be <= rollout.steps ({steps}), got {recorded} (set --rollout.recorded)")
    if config.rollout.scored > recorded:
        problems.append(f"rollout.scored must be <= rollout.recorded ({recorded}), got {config.rollout.scored} (set --rollout.scored)")
    if config.rollout.image_sampler == "emerge" and config.rollout.decoding == "released":
        problems.append(
            "rollout.image_sampler emerge does not go with rollout.decoding released, which says itself how much of an image comes when "
            "(set --rollout.image_sampler maskgit)"
        )
    if learner.text_weight == learner.image_weight == 0:
        problems.append("learner.text_weight and learner.image_weight must not both be 0 (set --learner.image_weight)")
    return problems


def _lists(config: Config) -> list[str]:
    """What is wrong with the lists of names: empty, unknown or given twice."""
    problems = []
    for key, values, known in (("run.arms", config.run.arms, ARMS), ("eval.splits", config.eval.splits, SPLITS)):
        names = dict.fromkeys(values)
        unknown = ", ".join(repr(name) for name in names if name not in known)
        twice = ", ".join(repr(name) for name in names if values.count(name) > 1)
        if not values:
            problems.append(f"{key} must name at least one of {', '.join(known)} (set --{key})")
        elif key == "eval.splits" and values[0] != "id" and not unknown:
            problems.append(f"eval.splits must begin with id: pictures and curves show it (set --eval.splits id,{','.join(values)})")
        if unknown:
            problems.append(f"{key}: unknown {unknown} (known: {', '.join(known)}; set --{key})")
        if twice:
            problems.append(f"{key} names {twice} more than once (set --{key})")
    return problems


def _names(config: Config) -> list[str]:
    """What is wrong with the settings that name one thing."""
    if problems := _too_long(config):
        return problems
    for key, reward in (("reward.name", config.reward.name), ("eval.reward", config.eval.reward)):
        # One of the user's own is imported by the reward worker, which says what is wrong with it.
        wrong = rewards.names.problem(reward) if reward or key == "reward.name" else None
        if wrong:
            problems.append(f"{key}: {wrong} (set --{key})")
    for key, value in (("run.dir", config.run.dir), ("track.project", config.track.project)):
        if not value.strip():
            problems.append(f"{key} must not be empty (set --{key})")
    name = config.run.name
    if name in (".", "..") or name != name.strip() or any(mark in name for mark in "/\\\0\n"):
        problems.append(f"run.name must be a plain folder name, got {name!r} (the folder above it is --run.dir)")
    embedded, policy = embedded_policies(), config.policy.name
    if policy not in embedded and not release_of(policy) and not (policy and Path(policy).is_dir()):
        known_policies = ", ".join(embedded) or "none"
        problems.append(
            f"policy.name: {policy!r} is neither an embedded policy ({known_policies}) nor a directory, nor a release "
            f"({', '.join(RELEASES)}; set --policy.name)"
        )
    return problems


def embedded_policies() -> list[str]:
    """The names of the policies that come with the program."""
    return sorted(path.name for path in policy_files.EMBEDDED.iterdir() if path.is_dir()) if policy_files.EMBEDDED.is_dir() else []


def _too_long(config: Config) -> list[str]:
    """Names that no file system takes: even asking for them is an error."""
    keys = ("run.dir", "run.name", "policy.name", "reward.name", "eval.reward", "curriculum.file", "eval.file")
    values = flat(config)
    longest = {key: max((len(part.encode()) for part in Path(values[key]).parts), default=0) for key in keys}
    return [
        f"{key}: a name of a folder or file has at most {LONGEST_NAME} bytes, got one of {longest[key]} (set --{key})"
        for key in keys
        if longest[key] > LONGEST_NAME
    ] + [f"{key}: a path has at most {LONGEST_PATH} bytes (set --{key})" for key in keys if len(values[key].encode()) > LONGEST_PATH]


def _overrides(config: Config) -> list[str]:
    """What is wrong with the overrides of single arms."""
    problems = []
    for arm, own in config.arm.items():
        if arm not in ARMS:
            problems.append(f"arm.{arm}: unknown arm {arm!r} (known: {', '.join(ARMS)})")
        for key, value in own.items():
            name = f"arm.{arm}.{key}"
            if key not in PER_ARM:
                problems.append(f"{name}: an arm may set learner.*, prefer.* and reward.*_mix only")
            elif key in BOUNDS and (problem := _out_of_range(name, key, value)):
                problems.append(problem)
    return problems


def _curriculum(config: Config) -> list[str]:
    """What is wrong with the kinds of prompts that are trained on and measured."""
    from pararl.scenes import TAGS  # numpy only

    problems = []
    shares: dict[str, dict[Kind, int]] = {}
    for key, entries in (("curriculum.tasks", config.curriculum.tasks), ("eval.tasks", config.eval.tasks)):
        try:
            shares[key] = task_shares(entries)
        except ValueError as error:
            problems.append(f"{key}: {error} (set --{key})")
    if problems:
        return problems
    trained = shares["curriculum.tasks"]
    if not trained:
        problems.append("curriculum.tasks must name at least one kind of prompt (set --curriculum.tasks)")
    elif config.curriculum.order == "joint" and config.rollout.prompts < len(trained):
        problems.append(
            f"rollout.prompts must be >= {len(trained)}, one of each kind in curriculum.tasks, got {config.rollout.prompts} "
            "(set --rollout.prompts, or --curriculum.order alternate)"
        )
    canaries = config.curriculum.canaries
    known = dict.fromkeys(tag for tags in TAGS.values() for tag in tags)
    if unknown := [tag for tag in canaries if tag not in known]:
        problems.append(f"curriculum.canaries: unknown {', '.join(map(repr, unknown))} (known: {', '.join(known)})")
    problems += [
        f"curriculum.canaries leave no prompt of kind {kind} to train on (its tags: {', '.join(TAGS[kind])})"
        for kind in trained
        if set(TAGS[kind]) <= set(canaries)
    ]
    problems += [
        f"curriculum.canaries leave no prompt of kind {kind} for split id; kinds that are not trained on need none (set --eval.tasks)"
        for kind in shares["eval.tasks"]
        if kind not in trained and set(TAGS[kind]) <= set(canaries)
    ]
    measured = shares["eval.tasks"] or trained
    for key, name, kinds in (("reward.name", config.reward.name, trained), ("eval.reward", measuring(config), measured)):
        # A CLIP reward gives None for these kinds, which would be known only after a whole batch was sampled.
        if unscored := rewards.names.unscored(name, tuple(kinds)):
            problems.append(f"{key}: {name} scores no prompt of kind {', '.join(unscored)} (set --{key})")
    if "canary" in config.eval.splits and canaries and not set(canaries) & {tag for kind in measured for tag in TAGS[kind]}:
        problems.append(f"eval.splits: no kind that is measured has a prompt with a tag of curriculum.canaries ({', '.join(canaries)})")
    if "canary" in config.eval.splits and not canaries:
        problems.append("eval.splits: canary needs tags that are never trained on (set --curriculum.canaries)")
    if config.eval.file and config.eval.splits != ("id",):
        problems.append("eval.file has the split id alone (set --eval.splits id)")
    return problems


def _policy(config: Config) -> list[str]:
    """What the settings ask of the policy that its ``policy.json`` or its family rules out."""
    name, directory = config.policy.name, policy_directory(config)
    try:
        settings, traits, family = settings_of(name, directory), traits_of(name, directory), family_of(name, directory)
    except FileError as error:
        return [f"policy.name: {error}"]
    except ConfigError as error:
        return [str(error)]
    if settings is None or traits is None or family is None:
        return [f"policy.name: {directory} has no policy.json, so it is no directory that policies.load reads (set --policy.name)"]
    problems = _adapter(config) + _sizes(config, settings, traits)
    return problems + family_problems(config, family, traits) + trl_problems(config, family, traits)


def _adapter(config: Config) -> list[str]:
    """What is wrong with the adapter that the run is to start from."""
    if not config.policy.adapter:
        return []
    try:
        found = start_of(Path(config.policy.adapter))
    except ConfigError as error:
        return [f"policy.adapter: {error} (set --policy.adapter)"]
    asked = config.policy.lora_rank, config.policy.lora_alpha
    if found == asked:
        return []
    return [f"policy.lora_rank and policy.lora_alpha are {asked}, but policy.adapter {config.policy.adapter} has {found} (leave them out)"]


def _sizes(config: Config, settings: Mapping[str, Any], traits: Traits) -> list[str]:
    """What the settings ask of the tasks, steps and blocks of the policy that its settings rule out."""
    kinds = dict.fromkeys((*task_shares(config.curriculum.tasks), *task_shares(config.eval.tasks)))
    can = settings.get("tasks", TASKS)
    # interleaved_edit is a form of the task interleaved.
    if unable := [kind for kind in kinds if kind.partition("_")[0] not in can]:
        return [f"{config.policy.name} was not trained for {', '.join(unable)}; it does {', '.join(can)} (set --curriculum.tasks)"]
    windows: dict[str, tuple[str, int]] = {}
    steps, problems = config.rollout.steps, _one_dtype(config)
    if traits.text != "masked":  # which has neither steps nor blocks of its own
        return problems
    if any(kind.startswith("interleaved") for kind in kinds):
        decoding = config.rollout.decoding
        if steps % CUTS[decoding]:
            return [*problems, f"rollout.steps must be a multiple of {CUTS[decoding]} for {decoding} decoding, got {steps}"]
        given, image = map(len, shared_steps(steps, decoding))
        if config.rollout.image_steps > image:
            problems.append(f"rollout.image_steps must be at most {image}, the steps of an image, got {config.rollout.image_steps}")
        if decoding != "released":  # which has no text blocks
            windows["text"] = ("interleaved", given)
    if kinds.keys() & set(ANSWERS):
        windows["answer"] = ("text alone", steps)
    for name, (what, given) in windows.items():
        if {f"{name}_tokens", f"{name}_block"} <= settings.keys():
            # Rounded up: the last block may be shorter.
            blocks = -(-settings[f"{name}_tokens"] // settings[f"{name}_block"])
            if given % blocks:
                problems.append(
                    f"rollout.steps must be such that the text of {what} outputs gets a multiple of {blocks} steps, the text blocks of "
                    f"{config.policy.name}; {steps} give it {given}"
                )
    return problems


def _one_dtype(config: Config) -> list[str]:
    """What is wrong where only rollout workers or only the learner have a GPU: auto would give them different models."""
    if config.policy.dtype != "auto" or bool(config.rollout.gpus) == bool(config.learner.gpus):
        return []
    held = held_bytes(config.policy.name, policy_directory(config))
    # Where the checkpoint holds float32, auto is float32 on a GPU too, and there is one model.
    if held == 4 or (held is None and not release_of(config.policy.name)):
        return []
    return [
        "policy.dtype auto gives rollout workers and learner different models, float32 on a CPU and less on a GPU "
        "(set --policy.dtype, or both --rollout.gpus and --learner.gpus)"
    ]
