"""What a run tells of an adapter in its model card: the table of its results and the recipe, as Markdown."""

from collections.abc import Sequence

import yaml

from pararl.card import TOLD, Told
from pararl.cli.parse import as_dict
from pararl.config import Config, changed, for_arm
from pararl.evaluation.summary import ArmResult, BaseResult, SplitResult

LEFT_OUT = {"run": ("dir", "name", "checkpoint_every", "patience", "timeout"), "reward": ("timeout",)}
"""Settings that say where a run lies and when it gives up, not what it does."""


def told(config: Config, arm: str, base: BaseResult, result: ArmResult, commit: str) -> Told:
    """Results and recipe of an arm of a run, whose base had the results ``base``."""
    spent = f"{result.updates} updates, {result.reward_calls:,} reward calls, {result.seconds:.0f} s of training, seed {config.run.seed}"
    parts = [
        TOLD,
        results(base, result, arm),
        f"\nKL to the base {result.kl:.4f} nats. {_errors(base)}\n",
        "## Recipe\n",
        f"Arm `{arm}` of pararl: {spent}. All settings, as `pipelines/pararl.py --config` reads them:\n",
        f"<details>\n\n```yaml\n{recipe(config, arm)}```\n\n</details>\n",
    ]
    return Told(arm, "\n".join(parts), commit)


def results(base: BaseResult, result: ArmResult, arm: str) -> str:
    """Accuracies of the base and of an arm as a Markdown table; by kind of prompt too, where there are several."""
    rows = [("all, in distribution", base.id, result.id), ("all, held out", base.ood, result.ood)]
    if len(base.kinds) > 1:
        rows += [
            (f"{kind}, {split}", before, result.kinds.get(kind, {}).get(split))
            for kind, splits in base.kinds.items()
            for split, before in splits.items()
        ]
    lines = ["| prompts | n | base, strict | base, soft | `" + arm + "`, strict | `" + arm + "`, soft |", "|---" * 6 + "|"]
    lines += [_row(what, before, after) for what, before, after in rows if before and after]
    return "\n".join(lines)


def recipe(config: Config, arm: str) -> str:
    """The settings of an arm as YAML: what it set for itself stands among the others."""
    sections = as_dict(changed(for_arm(config, arm), {"run.arms": (arm,)}))
    kept = {
        name: {key: value for key, value in section.items() if key not in LEFT_OUT.get(name, ())}
        for name, section in sections.items()
        if name not in ("arm", "track")
    }
    return yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)


def _row(what: str, before: SplitResult, after: SplitResult) -> str:
    numbers: Sequence[float | None] = (before.strict, before.soft, after.strict, after.soft)
    return f"| {what} | {after.n} | " + " | ".join("-" if x is None else f"{x:.3f}" for x in numbers) + " |"


def _errors(base: BaseResult) -> str:
    """Binomial error at p = 0.5, its largest."""
    if base.id.strict is None:
        return "The reward has soft scores alone."
    return f"The 95 % sampling error of a strict accuracy near one half is {1.96 * (0.25 / base.id.n) ** 0.5:.3f} in distribution."
