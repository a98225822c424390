"""What is wrong with the prompts of a run: the user's files, and the pictures of the scene world for a policy of another size.

Files are read here, so that a bad line is told before any worker starts. Nothing is imported that a run without files does not need.
"""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pararl.arms import ARM_SPECS
from pararl.config import Config, ConfigError, measuring
from pararl.data.quotas import quotas, task_shares
from pararl.policy_files import check_files, policy_directory
from pararl.releases import release_of
from pararl.types import Kind, Prompt
from policies.traits import ANSWERS

if TYPE_CHECKING:
    from pararl.data.own import Key

SHOWN: tuple[Kind, ...] = ("i2t", "edit", "interleaved_edit")
"""Kinds of prompts with a picture."""


def prompt_problems(config: Config) -> tuple[list[str], list[str]]:
    """What is wrong with the prompts of a run, and what should be known of them."""
    from pararl.data.fits import READ, Texts, image_size

    files: dict[Key, str] = {"curriculum.file": config.curriculum.file, "eval.file": config.eval.file}
    name, directory = config.policy.name, policy_directory(config)
    # A release's tokenizer may still be on the hub; its vocabulary is open.
    lacking = [] if release_of(name) else [part for part in READ if not (directory / part).is_file()]
    try:
        problems = _world(config, image_size(name, directory))
        texts = None
        if any(files.values()) and not lacking and not release_of(name):
            check_files(name, directory)
            texts = Texts(directory)
    except ConfigError as error:
        return [f"policy.name: {error}"], []
    if not any(files.values()):
        return problems, []
    from pararl.data.own import Own, in_both

    found: dict[str, list[Prompt]] = {}
    for key in (key for key, file in files.items() if file):
        try:
            found[key] = Own.of(config, key).prompts(texts)
        except ConfigError as error:
            problems.append(f"{key}: {error}")
            continue
        problems += _too_few(config, key, found[key])
    if lacking:
        problems.append(f"policy.name: {directory} lacks {', '.join(lacking)}, which Policy.save writes (set --policy.name)")
    both = in_both(*found.values()) if len(found) == 2 else []
    if not both:
        return problems, []
    return problems, [
        f"{len(both)} of the {len(found['eval.file'])} prompts in eval.file are in curriculum.file as well, first {both[0].id}: "
        "measured on them, a policy is measured on what it was trained on"
    ]


def _world(config: Config, size: tuple[int, int] | None) -> list[str]:
    """What is wrong where the scene world's prompts, or its reward, have pictures of another size than the policy's."""
    from pararl.scenes.pixels import SIDE

    if size in (None, (SIDE, SIDE)):
        return []
    trained, measured = task_shares(config.curriculum.tasks), task_shares(config.eval.tasks or config.curriculum.tasks)
    sizes = f"[{SIDE}, {SIDE}] pixels, {config.policy.name} reads and draws {list(size or ())}"
    problems = []
    for key, file, kinds in (("curriculum.file", config.curriculum.file, trained), ("eval.file", config.eval.file, measured)):
        if shown := [kind for kind in kinds if kind in SHOWN and not file]:
            problems.append(f"{key}: the pictures of the scene world, which prompts of kind {', '.join(shown)} show, have {sizes}")
    for key, reward, kinds in (("reward.name", config.reward.name, trained), ("eval.reward", measuring(config), measured)):
        if reward == "scenes" and (drawn := [kind for kind in kinds if kind not in ANSWERS]):
            problems.append(f"{key}: scenes scores pictures, which prompts of kind {', '.join(drawn)} ask for, of {sizes}")
    return [f"{problem} (set --{problem.partition(':')[0]})" for problem in problems]


def _too_few(config: Config, key: "Key", prompts: Sequence[Prompt]) -> list[str]:
    """Kinds of prompts, or pairs of them, of which a file has fewer than a batch or an evaluation takes."""
    if key == "curriculum.file":
        source, kinds = config.curriculum.file, quotas_of(config)
        prompts = [prompt for prompt in prompts if prompt.spec.get("tag") not in config.curriculum.canaries]
    else:
        measured = task_shares(config.eval.tasks or config.curriculum.tasks)
        source, kinds = config.eval.file, dict.fromkeys(measured, 1 + config.eval.first)
    counts = Counter(prompt.kind for prompt in prompts)
    problems = [
        f"{key}: {count} prompts of kind {kind} are wanted, {source} has {counts[kind]} (set --{key} or --curriculum.tasks)"
        for kind, count in kinds.items()
        if counts[kind] < count
    ]
    pairing = [arm for arm in config.run.arms if ARM_SPECS[arm].paired]  # type: ignore[index]
    if key == "curriculum.file" and pairing:
        from pararl.data.prompts import paired

        if (shared := len(paired(prompts)["t2i"])) < (wanted := config.rollout.prompts // 2):
            problems.append(
                f"{key}: arm {pairing[0]} wants {wanted} pairs of prompts of kinds i2t and t2i with the same id, {source} has {shared} "
                f"(set --{key} or --run.arms)"
            )
    return problems


def quotas_of(config: Config) -> dict[Kind, int]:
    """The largest number of prompts of each kind in a batch."""
    shares = task_shares(config.curriculum.tasks)
    if config.curriculum.order == "alternate":
        return dict.fromkeys(shares, config.rollout.prompts)
    return quotas(shares, config.rollout.prompts)
