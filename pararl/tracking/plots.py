"""The plots of a run and of a study: training curves per arm, and bars with confidence intervals.

Figures are made without pyplot, so no display is needed and no state is shared; matplotlib is loaded by the first of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pararl.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS: dict[str, str] = {
    "base": "#6e6e6e",
    "pararl": "#0072b2",
    "pararl_grpo": "#56b4e9",
    "online_dpo": "#009e73",
    "offline_dpo": "#d55e00",
    "offline_stream": "#e69f00",
    "best_of_n": "#cc79a7",
    "hermesflow": "#f0e442",
}
"""One fixed colour per arm in every plot (the palette of Okabe and Ito, safe for colour-blind readers)."""

OVER_SEEDS = "bars: mean and 95 % confidence interval over seeds; dots: seeds"
OVER_PROMPTS = "bars: one run, with the 95 % sampling interval over prompts"
SMOOTHED = 5
"""Updates averaged in the bold line over a noisy curve."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One plot beside others, of one metric."""

    key: str
    """Name in metrics.jsonl."""
    label: str
    """Of the vertical axis, with the unit."""
    unit_interval: bool = False
    """Whether the vertical axis starts at 0 and shows no more than 1, where all values lie there."""
    otherwise: str = ""
    """Metric drawn in its place for an arm that has a single value of it."""

    def points(self, rows: Sequence[Mapping[str, Any]], arm: str) -> list[tuple[int, float]]:
        """Updates and values of an arm."""
        first, second = ([(r["update"], r[key]) for r in rows if r["arm"] == arm and key in r] for key in (self.key, self.otherwise))
        return second if len(first) == 1 < len(second) else first


PANELS: tuple[Panel, ...] = (
    Panel("reward/mean", "mean reward of the rollouts (0 to 1)", unit_interval=True),
    Panel("eval/id_strict", "ID strict accuracy (0 to 1)", unit_interval=True),
    Panel("eval/kl_total", "KL to the base (nats per token)", otherwise="kl/total"),
)


@dataclass(frozen=True, slots=True)
class Bar:
    """One arm of a study on one split."""

    arm: str
    mean: float
    low: float
    """Lower end of the 95 % confidence interval."""
    high: float
    """Upper end."""
    seeds: tuple[float, ...] = ()
    """The value of each seed, drawn as a dot."""


def curves_png(
    path: Path, rows: Sequence[Mapping[str, Any]], panels: Sequence[Panel] = PANELS, base: Mapping[str, float] | None = None
) -> None:
    """Draw one panel per metric with the arms overlaid, and write `path` atomically.

    `rows` are those of metrics.jsonl. `base` gives the value of the base per metric, a dashed line. By default it is that of
    `eval/id_strict` at update 0, where some arm logged it. A panel whose metric no row has is left out; ValueError when none is left.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    shown = [panel for panel in panels if any(panel.key in row for row in rows)]
    if not shown:
        known = sorted({name for row in rows for name in row} - {"arm", "update", "samples"})
        raise ValueError(
            f"nothing to draw in {path}: no row has {', '.join(p.key for p in panels)}; the rows have {', '.join(known) or 'nothing'}"
        )
    if base is None:
        start = next((row for row in rows if row["update"] == 0 and "eval/id_strict" in row), None)
        base = {} if start is None else {"eval/id_strict": start["eval/id_strict"]}
    figure = Figure(figsize=(4.6 * len(shown), 3.9), dpi=130, layout=ConstrainedLayoutEngine(w_pad=0.12))
    every = figure.subplots(1, len(shown), squeeze=False)[0]
    for axes, panel in zip(every, shown, strict=True):
        for arm in dict.fromkeys(row["arm"] for row in rows):
            if points := panel.points(rows, arm):
                _draw_curve(axes, arm, points)
        if panel.key in base:
            axes.axhline(base[panel.key], color=COLOURS["base"], linestyle="--", linewidth=1.6, label="base")
        _finish_axes(axes, panel)
    handles = {label: line for axes in every for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(list(handles.values()), list(handles), loc="outside upper center", ncols=len(handles), frameon=False)
    figure.supxlabel(
        f"faint lines: single updates; bold lines: mean of the last {SMOOTHED}; markers: evaluations", fontsize=8, color="#555555"
    )
    with atomic_path(path) as temporary:
        figure.savefig(temporary)


def bars_png(path: Path, groups: Mapping[str, Sequence[Bar]], label: str, note: str = OVER_SEEDS) -> None:
    """Write `path`: the groups (splits, for example) side by side, in each a bar per arm with its 95 % interval and a dot per seed.

    `label` names the vertical axis, which starts at 0; `note` stands below and says what intervals and dots are. Raises ValueError when
    there is no bar, or when an interval does not hold its mean.
    """
    from matplotlib.figure import Figure

    bars = [bar for group in groups.values() for bar in group]
    if not bars:
        raise ValueError(f"nothing to draw in {path}: no bar in any of the groups {list(groups)}")
    for bar in bars:
        if not bar.low <= bar.mean <= bar.high:
            raise ValueError(f"the interval [{bar.low}, {bar.high}] of {bar.arm} does not hold its mean {bar.mean}")
    arms = list(dict.fromkeys(bar.arm for bar in bars))
    width = 0.82 / max(4, len(arms))
    figure = Figure(figsize=(max(5.0, 1.6 + 0.62 * len(arms) * len(groups)), 4.2), dpi=130, layout="constrained")
    axes = figure.subplots()
    for g, group in enumerate(groups.values()):
        for bar in group:
            _draw_bar(axes, bar, g + (arms.index(bar.arm) - (len(arms) - 1) / 2) * width, width)
    axes.set_xticks(range(len(groups)), list(groups))
    axes.set_xlim(-0.5, len(groups) - 0.5)
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel(label)
    axes.set_ylim(0, 1.12 * max(value for bar in bars for value in (bar.high, *bar.seeds)))
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    handles = {text: patch for patch, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend([handles[arm] for arm in arms], arms, loc="outside upper center", ncols=min(4, len(arms)), frameon=False)
    figure.supxlabel(note, fontsize=8, color="#555555")
    with atomic_path(path) as temporary:
        figure.savefig(temporary)


def _draw_curve(axes: "Axes", arm: str, points: Sequence[tuple[int, float]]) -> None:
    """A dense curve as a faint line under its running mean, a sparse one with markers."""
    updates, values = zip(*sorted(points), strict=True)
    colour = COLOURS.get(arm)
    if len(points) < 3 * SMOOTHED:
        axes.plot(updates, values, color=colour, marker="o", markersize=4, linewidth=1.8, label=arm)
        return
    windows = [values[max(0, i + 1 - SMOOTHED) : i + 1] for i in range(len(values))]
    axes.plot(updates, values, color=colour, alpha=0.25, linewidth=1.0)
    axes.plot(updates, [sum(w) / len(w) for w in windows], color=colour, linewidth=1.8, label=arm)


def _finish_axes(axes: "Axes", panel: Panel) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("update")
    axes.set_ylabel(panel.label)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    low, high = axes.dataLim.intervaly
    if panel.unit_interval and 0 <= low and high <= 1:  # a user's own reward may have any size
        axes.set_ylim(0, min(1.02, axes.get_ylim()[1] * 1.05))


def _draw_bar(axes: "Axes", bar: Bar, at: float, width: float) -> None:
    axes.bar(at, bar.mean, width * 0.92, color=COLOURS.get(bar.arm), label=bar.arm)
    axes.errorbar(at, bar.mean, [[bar.mean - bar.low], [bar.high - bar.mean]], color="#222222", capsize=3, linewidth=1.2)
    axes.scatter([at] * len(bar.seeds), bar.seeds, s=14, color="white", edgecolor="#222222", linewidth=0.8, zorder=3)


def share_bar(arm: str, share: float, n: int) -> Bar:
    """The bar of a share of `n` prompts with its 95 % Wilson interval."""
    z = 1.96
    centre, spread = share + z * z / (2 * n), z * ((share * (1 - share) + z * z / (4 * n)) / n) ** 0.5
    low, high = ((centre + sign * spread) / (1 + z * z / n) for sign in (-1, 1))
    return Bar(arm, share, min(low, share), max(high, share))
