"""Several runs as one result: means over seeds with 95 % intervals, and the differences that the runs were made for."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pararl.evaluation.summary import ArmResult, BaseResult, SplitResult, Summary
from pararl.tracking.plots import Bar

T_95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093),
)
"""Two-sided 95 % quantiles of Student's t for 1 .. 19 degrees of freedom; the last serves for more (7 % too wide at most)."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over seeds and the half-width of its 95 % interval (Student's t); None for a single seed."""

    mean: float
    half: float | None
    values: tuple[float, ...]

    def __str__(self) -> str:
        return f"{self.mean:.3f}" + ("" if self.half is None else f" ± {self.half:.3f}")


LABELS = {"strict": "strict accuracy", "soft": "mean score"}
"""What a plot calls the two accuracies."""
SystemMetrics = dict[str, dict[str, Interval]]
"""The metrics of each system by name, the base first."""


def interval(values: Sequence[float]) -> Interval:
    """Mean and 95 % interval of a metric that has one value per seed."""
    n = len(values)
    # ddof 1, because Student's t is for the deviation of a sample.
    half = None if n < 2 else T_95[min(n - 1, len(T_95)) - 1] * float(np.std(values, ddof=1)) / math.sqrt(n)
    return Interval(float(np.mean(values)), half, tuple(values))


def metrics(summaries: Sequence[Summary]) -> SystemMetrics:
    """Intervals per system, the base first: ``id`` and ``ood`` strict and soft accuracy, KL, reward calls and seconds. ``<kind>, <split>``
    is the strict accuracy of a kind and split, or the soft one where the reward has no strict notion.

    Raises ValueError where the runs do not hold the same arms, kinds of prompts and splits.
    """
    arms = list(summaries[0].arms)
    if any(set(s.arms) != set(arms) for s in summaries):
        raise ValueError("the runs of a study must hold the same arms; finish the unfinished ones with --resume")
    measured: list[BaseResult | ArmResult] = [*(s.base for s in summaries), *(r for s in summaries for r in s.arms.values())]
    forms = [{kind: set(splits) for kind, splits in result.kinds.items()} for result in measured]
    if any(kinds != forms[0] for kinds in forms):
        raise ValueError("the runs of a study must measure the same kinds of prompts and splits: give those of one study")
    out = {"base": _accuracies([s.base for s in summaries])}
    for arm in arms:
        results = [s.arms[arm] for s in summaries]
        out[arm] = _accuracies(results)
        for name in ("kl", "reward_calls", "updates", "seconds"):
            out[arm][name] = interval([float(getattr(r, name)) for r in results])
    return out


def _accuracies(results: Sequence[BaseResult | ArmResult]) -> dict[str, Interval]:
    found = {}
    for split in ("id", "ood"):
        for kind in ("strict", "soft"):
            values = [getattr(getattr(r, split), kind, None) for r in results]
            if None not in values:
                found[f"{split} {kind}"] = interval([float(v) for v in values if v is not None])
    for kind, splits in results[0].kinds.items():
        for split in splits:
            parts: list[SplitResult] = [r.kinds[kind][split] for r in results]
            found[f"{kind}, {split}"] = interval([part.soft if part.strict is None else part.strict for part in parts])
    return found


def kinds_markdown(found: Mapping[str, Mapping[str, Interval]]) -> str:
    """A row for every kind of prompt and split, with the base and every arm's paired gain over it. Empty for a single kind."""
    rows = [name for name in found["base"] if ", " in name]
    if len(rows) < 2:
        return ""
    arms = [system for system in found if system != "base"]
    lines = ["| kind, split | base | " + " | ".join(f"{arm} | gain | per seed" for arm in arms) + " |", "|" + "---|" * (2 + 3 * len(arms))]
    for row in rows:
        base = found["base"][row]
        cells = [str(base)]
        for arm in arms:
            if row not in found[arm]:
                cells += ["-"] * 3
                continue
            gains = [a - b for a, b in zip(found[arm][row].values, base.values, strict=True)]
            cells += [str(found[arm][row]), str(interval(gains)), ", ".join(f"{g:+.3f}" for g in gains)]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def accuracy_of(found: Mapping[str, Mapping[str, Interval]]) -> Literal["strict", "soft"]:
    """Which accuracy systems are compared by: ``soft`` where the reward has no strict notion."""
    return "strict" if "id strict" in found["base"] else "soft"


def bars(found: Mapping[str, Mapping[str, Interval]]) -> dict[str, list[Bar]]:
    """The bars of every system on ID and OOD prompts and, where there are several kinds of prompts, on the ID prompts of each."""
    accuracy, kinds = accuracy_of(found), [name for name in found["base"] if name.endswith(", id")]
    names = {"ID": f"id {accuracy}", "OOD": f"ood {accuracy}"} | ({name[: -len(", id")]: name for name in kinds} if len(kinds) > 1 else {})
    return {
        title: [
            Bar(system, value.mean, value.mean - (value.half or 0.0), value.mean + (value.half or 0.0), value.values)
            for system, values in found.items()
            if (value := values.get(name))
        ]
        for title, name in names.items()
    }


def markdown(found: Mapping[str, Mapping[str, Interval]], seeds: Sequence[int]) -> str:
    """The metrics as a Markdown table, and every arm's paired difference to ``offline_dpo`` where that arm ran, of strict accuracy,
    or of the soft one where the reward has no strict notion."""
    known = ("id strict", "ood strict", "id soft", "ood soft", "kl", "updates", "reward_calls", "seconds")
    columns = [name for name in known if any(name in values for values in found.values())]
    lines = ["| arm | " + " | ".join(columns) + " |", "|" + "---|" * (len(columns) + 1)]
    for system, values in found.items():
        cells = [_cell(name, values[name]) if name in values else "-" for name in columns]
        lines.append(f"| {system} | " + " | ".join(cells) + " |")
    lines += ["", f"Seeds {', '.join(map(str, seeds))}; mean ± half-width of the 95 % interval over seeds (Student's t)."]
    accuracy = f"id {accuracy_of(found)}"
    compared = [system for system in found if system not in ("base", "offline_dpo")]
    if accuracy in found.get("offline_dpo", {}) and compared:
        lines += ["", f"| difference to `offline_dpo`, {accuracy} | mean | per seed |", "|---|---|---|"]
        baseline = found["offline_dpo"][accuracy].values
        for system in compared:
            gaps = [a - b for a, b in zip(found[system][accuracy].values, baseline, strict=True)]
            lines.append(f"| {system} | {interval(gaps)} | {', '.join(f'{g:+.3f}' for g in gaps)} |")
    kinds = kinds_markdown(found)
    return "\n".join([*lines, *(["", kinds.rstrip()] if kinds else [])]) + "\n"


def sweep_markdown(labels: Sequence[str], found: Sequence[SystemMetrics], arms: Sequence[str]) -> str:
    """ID accuracy of every arm (columns) under every setting (rows), the best setting of each arm in bold."""
    kind = f"id {accuracy_of(found[0])}"
    means = {arm: [values[arm][kind].mean for values in found] for arm in arms}
    lines = ["| settings | " + " | ".join(arms) + " |", "|" + "---|" * (len(arms) + 1)]
    for row, (name, values) in enumerate(zip(labels, found, strict=True)):
        cells = [str(values[arm][kind]) for arm in arms]
        marked = [f"**{cell}**" if means[arm][row] == max(means[arm]) else cell for arm, cell in zip(arms, cells, strict=True)]
        lines.append(f"| {name} | " + " | ".join(marked) + " |")
    base = found[0]["base"][kind]
    lines += ["", f"{kind.replace('id', 'ID')} accuracy; base {base}. Bold: the best setting of each arm."]
    rows = list(dict.fromkeys(name for values in found for name in values["base"] if ", " in name))
    for arm in arms if len(rows) > 1 else ():
        lines += ["", f"| {arm}: {accuracy_of(found[0])} by kind | " + " | ".join(rows) + " |", "|" + "---|" * (len(rows) + 1)]
        for name, system, values in [("base", "base", found[0]), *((label, arm, f) for label, f in zip(labels, found, strict=True))]:
            lines.append(f"| {name} | " + " | ".join(str(values[system].get(row, "-")) for row in rows) + " |")
    return "\n".join(lines) + "\n"


def _cell(name: str, value: Interval) -> str:
    return f"{value.mean:,.0f}" if name in ("updates", "reward_calls", "seconds") else str(value)
