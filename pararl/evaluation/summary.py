"""What a run found: `summary.json` as records that check themselves, and the same metrics as a table for the terminal."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import PurePath
from typing import Any, Self

from pararl.config import ARMS, RENAMED
from pararl.types import Metrics


@dataclass(frozen=True, slots=True)
class SplitResult:
    """Accuracy on one split, or on several pooled."""

    soft: float
    """Mean soft score; in [0, 1] for the rewards that come with pararl, of any finite size for a user's own."""
    strict: float | None
    """Share of outputs for which everything asked holds, in [0, 1]; None where the reward has no strict notion."""
    n: int
    """Outputs measured."""
    error: float | None = None
    """Standard error of ``soft`` over outputs; None in results of versions that kept none."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.soft):
            raise ValueError(f"soft = {self.soft} of a split is not finite")
        if self.error is not None and not 0.0 <= self.error < math.inf:
            raise ValueError(f"error = {self.error} of a split: a standard error is finite and at least 0")
        if self.strict is not None and not 0.0 <= self.strict <= 1.0:
            raise ValueError(f"strict = {self.strict} of a split is outside [0, 1]: average the scores before they are reported")
        if self.n < 1:
            raise ValueError(f"n = {self.n} of a split: a result needs at least one output")

    def metrics(self, split: str) -> Metrics:
        """``eval/<split>_strict`` and ``eval/<split>_soft``, as they are logged, with the number of outputs ``..._n`` and the standard
        error of the soft one ``..._error``; no strict one where the reward has none."""
        found = {"strict": self.strict, "soft": self.soft, "n": float(self.n), "error": self.error}
        return {f"eval/{split}_{kind}": value for kind, value in found.items() if value is not None}


Kinds = dict[str, dict[str, SplitResult]]
"""Per kind of prompt, per split, what was measured."""


def pooled(splits: Sequence[SplitResult]) -> SplitResult:
    """Several splits as one, each weighted by its number of outputs. Raises ValueError when there are none."""
    if not splits:
        raise ValueError("no split to pool: name at least one held-out split in eval.splits")
    n = sum(split.n for split in splits)
    strict = [s.strict * s.n for s in splits if s.strict is not None]
    errors = [s.error * s.n for s in splits if s.error is not None]
    return SplitResult(
        sum(s.soft * s.n for s in splits) / n,
        sum(strict) / n if len(strict) == len(splits) else None,
        n,
        math.hypot(*errors) / n if len(errors) == len(splits) else None,
    )


@dataclass(frozen=True, slots=True)
class BaseResult:
    """The policy before any update."""

    id: SplitResult
    """All kinds of prompts, pooled."""
    ood: SplitResult | None
    """The held-out splits, pooled; None where none was measured."""
    kinds: Kinds = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BestResult:
    """The best of an arm's evaluations during training, and the adapter that it had then."""

    update: int
    id: SplitResult
    """On the prompts of those evaluations, which chose it: of a few prompts, and the highest of several."""
    adapter: str
    """Its folder, relative to the run folder."""

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: str = "best") -> Self:
        """The record from its JSON values. Raises ValueError, naming ``where``, when a key is missing or not known."""
        _check_keys(value, cls, where)
        return cls(value["update"], _split(value["id"], f"{where}.id"), value["adapter"])


@dataclass(frozen=True, slots=True)
class ArmResult:
    """One arm after its last update."""

    id: SplitResult
    ood: SplitResult | None
    updates: int
    reward_calls: int
    """Outputs and guesses that were scored for training, evaluation not counted."""
    seconds: float
    """Wall-clock time of training."""
    kl: float
    """KL to the base at the end, in nats; an estimate, hence it may be slightly negative."""
    adapter: str
    """Folder of the adapter, relative to the run folder."""
    kinds: Kinds = field(default_factory=dict)
    best: BestResult | None = None
    """None where nothing was measured during training."""

    def __post_init__(self) -> None:
        for name in ("updates", "reward_calls", "seconds"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} = {getattr(self, name)} of an arm: it must be finite and at least 0")
        if not math.isfinite(self.kl):
            raise ValueError(f"kl = {self.kl} of an arm is not finite: its training diverged, lower learner.lr")
        if not self.adapter or PurePath(self.adapter).is_absolute():
            raise ValueError(f"adapter = {self.adapter!r}: give it relative to the run folder, so that the folder can be moved")

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: str = "arm") -> Self:
        """The record from its JSON values. Raises ValueError, naming ``where``, when a key is missing or not known."""
        value = {"best": None, **value}  # results of earlier versions have none
        _check_keys(value, cls, where)
        best = value["best"] and BestResult.from_json(value["best"], f"{where}.best")
        return cls(**{**value, **_results(value, where), "best": best})


@dataclass(frozen=True, slots=True)
class Summary:
    """The content of `summary.json`."""

    seed: int
    base: BaseResult
    arms: Mapping[str, ArmResult]
    start: BaseResult | None = None
    """The policy with the adapter that the run started from; None where it started from the base."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.arms) - set(ARMS))
        if unknown:
            raise ValueError(f"unknown arms {unknown} in a summary; known: {', '.join(ARMS)}")

    def to_json(self) -> dict[str, Any]:
        """The summary as JSON values, in the shape of the file."""
        arms = {arm: asdict(result) for arm, result in self.arms.items()}
        return {"seed": self.seed, "base": asdict(self.base), "arms": arms, "start": self.start and asdict(self.start)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`, arms by their names of today. Raises ValueError when a key is missing or not known."""
        value = {"start": None, **value}  # summaries of earlier versions have none
        _check_keys(value, cls, "summary")
        before = {name: value[name] and _base(value[name], name) for name in ("base", "start")}
        # A study may read runs of earlier versions.
        arms = {RENAMED.get(arm, arm): ArmResult.from_json(result, f"arms.{arm}") for arm, result in value["arms"].items()}
        return cls(seed=value["seed"], arms=arms, **before)


def table(summary: Summary) -> str:
    """The base and every arm as a plain-text table, one line each, with the sampling error of the accuracies below it."""
    head = ["", "ID strict", "ID soft", "OOD strict", "OOD soft", "updates", "reward calls", "seconds", "KL"]
    lines = [["base", *_accuracies(summary.base), "-", "-", "-", "-"]]
    if summary.start:
        lines.append(["start", *_accuracies(summary.start), "-", "-", "-", "-"])
    for arm, result in summary.arms.items():
        budget = [str(result.updates), f"{result.reward_calls:,}", f"{result.seconds:.0f}", f"{result.kl:.4f}"]
        lines.append([arm, *_accuracies(result), *budget])
    widths = [max(len(line[column]) for line in [head, *lines]) for column in range(len(head))]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    parts = [_aligned(head, widths), rule, *(_aligned(line, widths) for line in lines), rule, _error_note(summary.base)]
    parts += [_best_note(arm, result.best) for arm, result in summary.arms.items() if result.best]
    return "\n".join([*parts, *(["", kinds_table(summary)] if len(summary.base.kinds) > 1 else [])])


def kinds_table(summary: Summary) -> str:
    """A line for every kind of prompt and split: the base and every arm, with the gain over the base. Strict accuracy, or the soft score
    where the base has no strict one."""
    lines = [[f"{'soft' if summary.base.id.strict is None else 'strict'} by kind", "n", "base", *summary.arms]]
    for kind, results in summary.base.kinds.items():
        for split, base in results.items():
            name = "soft" if base.strict is None else "strict"
            cells = [f"{kind}, {split}", str(base.n), f"{getattr(base, name):.3f}"]
            for arm in summary.arms.values():
                value = getattr(arm.kinds[kind][split], name) if split in arm.kinds.get(kind, {}) else None
                cells.append("-" if value is None else f"{value:.3f} ({value - getattr(base, name):+.3f})")
            lines.append(cells)
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(_aligned(line, widths) for line in lines)


def _accuracies(result: BaseResult | ArmResult) -> list[str]:
    values = [value for split in (result.id, result.ood) for value in ((None, None) if split is None else (split.strict, split.soft))]
    return ["-" if value is None else f"{value:.3f}" for value in values]


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *rest = (cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(cells, widths, strict=True)))
    return "  ".join([first, *rest])


def _error_note(base: BaseResult) -> str:
    """Of strict accuracies the binomial error at p = 0.5, its largest: 1.96 sqrt(0.25 / n). Without them that of the base's soft score."""
    soft = base.id.strict is None
    errors = []
    for name, split in (("ID", base.id), ("OOD", base.ood)):
        if split:
            error = split.error if soft else math.sqrt(0.25 / split.n)
            errors.append(f"{name} n = {split.n}" + ("" if error is None else f" (+/- {1.96 * error:.3f})"))
    return f"{', '.join(errors)}: 95 % sampling error of {'the soft score of the base' if soft else 'a strict accuracy near one half'}"


def _best_note(arm: str, best: BestResult) -> str:
    """One line beside the table: it was measured on other prompts, and chosen by them."""
    kind, value = ("soft", best.id.soft) if best.id.strict is None else ("strict", best.id.strict)
    return f"{arm}, best during training: update {best.update}, ID {kind} {value:.3f} (n = {best.id.n}), {best.adapter}"


def _results(value: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields that the base and every arm have."""
    kinds = {
        kind: {split: _split(result, f"{where}.kinds.{kind}.{split}") for split, result in results.items()}
        for kind, results in value["kinds"].items()
    }
    ood = None if value["ood"] is None else _split(value["ood"], f"{where}.ood")
    return {"id": _split(value["id"], f"{where}.id"), "ood": ood, "kinds": kinds}


def _base(value: Mapping[str, Any], where: str) -> BaseResult:
    _check_keys(value, BaseResult, where)
    return BaseResult(**_results(value, where))


def _split(value: Mapping[str, Any], where: str) -> SplitResult:
    value = {"error": None, **value}  # earlier versions kept none
    _check_keys(value, SplitResult, where)
    return SplitResult(**value)


def _check_keys(value: Mapping[str, Any], record: type, where: str) -> None:
    expected = {field.name for field in fields(record)}
    if set(value) != expected:
        missing, unknown = sorted(expected - set(value)), sorted(set(value) - expected)
        raise ValueError(f"{where} of summary.json: missing keys {missing}, unknown keys {unknown}; was it written by another version?")
