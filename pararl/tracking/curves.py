"""The training curves of a run: a panel per metric, the arms overlaid, and how sure each measured point is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pararl.arms import ARM_SPECS
from pararl.files import atomic_path
from pararl.tracking.plots import COLOURS, mean_interval, share_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SMOOTHED = 5
"""Updates averaged in the bold line over a noisy curve."""
SIDESTEP = 0.014
"""Distance of two arms' marks at one update, as a share of the updates: their error bars would hide each other."""
LARGE, SMALL = {"marker": "s", "markersize": 5.5}, {"marker": "o", "markersize": 5.0, "markerfacecolor": "white"}
"""Marks of the evaluations of most prompts, and of those of fewer."""
INTERVALS = "bars, band: 95 % sampling intervals over prompts"


@dataclass(frozen=True, slots=True)
class Point:
    """A value at an update, with its 95 % sampling interval and the number of outputs it was measured on, where they are known."""

    update: int
    value: float
    interval: tuple[float, float] | None = None
    n: float | None = None


@dataclass(frozen=True, slots=True)
class Panel:
    """One plot beside others, of one metric."""

    key: str
    """Name in metrics.jsonl."""
    label: str
    """Of the vertical axis, with the unit."""
    evaluation: str = ""
    """Prefix of the evaluation that the metric is of: ``<prefix>_n`` and ``<prefix>_error`` stand beside it. "" = it is of updates."""
    part: str = ""
    """Prefix of the same evaluation on the prompts of smaller ones alone, which is a point of their curve."""
    otherwise: str = ""
    """Metric drawn in its place for an arm that has a single value of it."""
    unless: str = ""
    """The panel is left out where any row has this metric."""
    zero: bool = False
    """Whether the metric is 0 at update 0 where no row says otherwise, as those of a run from an adapter do. It is then a curve through
    all evaluations: no sampling error is known."""

    def point(self, row: Mapping[str, Any], prefix: str) -> Point | None:
        """The value of the evaluation ``prefix`` in a row. Shares have Wilson's interval, means that of their standard error."""
        key, n, error = self.key.replace(self.evaluation, prefix, 1), row.get(f"{prefix}_n"), row.get(f"{prefix}_error")
        if key not in row:
            return None
        interval = None
        if key.endswith("_strict") and n:
            interval = share_interval(row[key], n)
        elif key.endswith("_soft") and error is not None:
            interval = mean_interval(row[key], error)
        return Point(row["update"], row[key], interval, n)

    def points(self, rows: Sequence[Mapping[str, Any]], arm: str) -> list[Point]:
        """What an arm has, in the order of the updates."""
        every = [row for row in rows if row["arm"] == arm]
        own = [row for row in every if row["update"] or not self.zero]
        prefixes = [self.evaluation, self.part] if self.part else [self.evaluation]
        found = [point for row in own for prefix in prefixes if (point := self.point(row, prefix))]
        if self.otherwise and len(found) <= 1:
            instead = [Point(row["update"], row[self.otherwise]) for row in own if self.otherwise in row]
            found = instead if len(instead) > 1 else found
        before = [row[self.key] for row in every if row["update"] == 0 and self.key in row]
        start = [Point(0, before[0] if before else 0.0)] if self.zero and found else []
        return start + sorted(found, key=lambda point: point.update)


PANELS: tuple[Panel, ...] = (
    Panel("reward/mean", "mean reward of the rollouts"),
    Panel("eval/id_strict", "ID strict accuracy", evaluation="eval/id", part="eval/during"),
    Panel("eval/id_soft", "ID mean score", evaluation="eval/id", part="eval/during", unless="eval/id_strict"),
    Panel("eval/kl_total", "KL to the base (nats per token)", evaluation="eval/id", otherwise="kl/total", zero=True),
)


def curves_png(
    path: Path, rows: Sequence[Mapping[str, Any]], panels: Sequence[Panel] = PANELS, base: Mapping[str, float] | None = None
) -> None:
    """Draw one panel per metric with the arms overlaid, and write `path` atomically.

    `rows` are those of metrics.jsonl. `base` holds the metrics of the base, a dashed line with its interval as a band. By default it is the
    first row of update 0 with an evaluation. Marks of evaluations on different numbers of prompts differ, and no line joins them. A panel
    without a value is left out; ValueError when none is left.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    arms = list(dict.fromkeys(row["arm"] for row in rows))
    names = {name for row in rows for name in row}
    shown = [
        panel for panel in panels if panel.unless not in names and any(point.update for arm in arms for point in panel.points(rows, arm))
    ]
    if not shown:
        known = sorted(names - {"arm", "update", "samples"})
        raise ValueError(
            f"nothing to draw in {path}: no row has {', '.join(p.key for p in panels)}; the rows have {', '.join(known) or 'nothing'}"
        )
    if base is None:
        base = next((row for row in rows if row["update"] == 0 and any(name.startswith("eval/") for name in row)), {})
    figure = Figure(figsize=(4.6 * len(shown), 3.9), dpi=130, layout=ConstrainedLayoutEngine(w_pad=0.12))
    every = figure.subplots(1, len(shown), squeeze=False)[0]
    notes: dict[str, None] = {}
    for axes, panel in zip(every, shown, strict=True):
        notes |= dict.fromkeys(_draw_panel(axes, panel, rows, arms, {"update": 0, **base}))
    handles = {label: line for axes in every for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(list(handles.values()), list(handles), loc="outside upper center", ncols=min(8, len(handles)), frameon=False)
    figure.supxlabel("; ".join(notes), fontsize=8, color="#555555")
    with atomic_path(path) as temporary:
        figure.savefig(temporary)


def _draw_panel(axes: "Axes", panel: Panel, rows: Sequence[Mapping[str, Any]], arms: Sequence[str], base: Mapping[str, Any]) -> list[str]:
    """Draw the arms and the base; returns what must be said of the marks and lines in it."""
    curves = {arm: found for arm in arms if (found := panel.points(rows, arm))}
    last = max(row["update"] for row in rows)
    most = max((point.n or 0 for found in curves.values() for point in found), default=0)
    start = panel.point(base, panel.evaluation) if panel.evaluation and not panel.zero else None
    notes = _draw_base(axes, start) if start else []
    for place, (arm, found) in enumerate(curves.items()):
        if panel.evaluation and len(found) < 3 * SMOOTHED:
            aside = SIDESTEP * last if any(point.interval for point in found) else 0.0
            places = aside * (place - (len(curves) - 1) / 2), aside * (place + (len(curves) + 1) / 2)
            notes += _draw_evaluations(axes, arm, found, panel.zero, most, places)
        else:
            notes += _draw_updates(axes, arm, found)
    _finish_axes(axes, panel, last, len(arms))
    return notes


def _draw_base(axes: "Axes", point: Point) -> list[str]:
    axes.axhline(point.value, color=COLOURS["base"], linestyle="--", linewidth=1.6, label="base")
    if not point.interval:
        return []
    axes.axhspan(*point.interval, color=COLOURS["base"], alpha=0.12, linewidth=0)
    return [INTERVALS]


def _draw_evaluations(axes: "Axes", arm: str, points: Sequence[Point], joined: bool, most: float, places: tuple[float, float]) -> list[str]:
    """A mark for each evaluation, with its interval. A line joins those of one size, the smaller where there are several; ``joined``: all.

    ``places``: how far beside its update the marks of the arm stand, and those of the larger evaluations beside smaller ones.
    """
    notes = list[str]()
    small = [point for point in points if (point.n or most) != most]
    line, aside = points if joined or not small else small, places[0]
    axes.plot([_place(p, aside) for p in line], [p.value for p in line], color=COLOURS.get(arm), linewidth=1.8, zorder=2, label=arm)
    for point in points:
        look = SMALL if point in small else LARGE
        if point.update == 0 and look is LARGE:  # the dashed line of the base, or no change at all
            continue
        at = _place(point, places[1] if look is LARGE and point.update in {other.update for other in small} else aside)
        colour = COLOURS.get(arm if point.update else "base")
        axes.plot([at], [point.value], color=colour, linestyle="", zorder=3, **look)  # type: ignore[arg-type]
        if point.interval:
            axes.vlines(at, *point.interval, color=colour, linewidth=1.1, zorder=2.5)
            notes.append(INTERVALS)
        if point.n:
            notes.append(f"{'filled squares' if look is LARGE else 'hollow circles'}: {point.n:,.0f} prompts")
    return notes


def _place(point: Point, aside: float) -> float:
    """Where a point stands; that of the base is the same for every arm."""
    return point.update + aside if point.update else 0.0


def _draw_updates(axes: "Axes", arm: str, points: Sequence[Point]) -> list[str]:
    """A dense curve as a faint line under its running mean, a sparse one as a line with dots."""
    updates, values = [point.update for point in points], [point.value for point in points]
    of_base = any(spec.data != "current" for name, spec in ARM_SPECS.items() if name == arm)
    colour, style, notes = COLOURS.get(arm), ":" if of_base else "-", ["dotted: samples of the base"] if of_base else []
    if len(points) < 3 * SMOOTHED:
        axes.plot(updates, values, color=colour, marker=".", linewidth=1.8, linestyle=style, label=arm)
        return notes
    windows = [values[max(0, i + 1 - SMOOTHED) : i + 1] for i in range(len(values))]
    axes.plot(updates, values, color=colour, alpha=0.25, linewidth=1.0)
    axes.plot(updates, [sum(w) / len(w) for w in windows], color=colour, linewidth=1.8, linestyle=style, label=arm)
    return [f"faint: single updates, bold: mean of the last {SMOOTHED}", *notes]


def _finish_axes(axes: "Axes", panel: Panel, last: int, arms: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlim(-0.04 * max(last, 1), (1.04 + 1.5 * SIDESTEP * arms) * max(last, 1))
    axes.set_xlabel("update")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    low, high = axes.dataLim.intervaly
    within = not panel.zero and 0 <= low and high <= 1  # a user's own reward may have any size
    axes.set_ylabel(f"{panel.label} (0 to 1)" if within else panel.label)
    if within:
        axes.set_ylim(0, min(1.02, axes.get_ylim()[1] * 1.05))
