"""Bars of systems side by side with their intervals, and what all plots share: the colours of the arms and the intervals themselves.

Figures are made without pyplot, so no display is needed and no state is shared; matplotlib is loaded by the first of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

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


def bars_png(path: Path, groups: Mapping[str, Sequence[Bar]], label: str, note: str = OVER_SEEDS) -> None:
    """Write `path`: the groups (splits, for example) side by side, in each a bar per arm with its 95 % interval and a dot per seed.

    `label` names the vertical axis, which holds 0; `note` stands below and says what intervals and dots are. A group without a bar is left
    out. Raises ValueError when there is no bar, or when an interval does not hold its mean.
    """
    from matplotlib.figure import Figure

    bars = [bar for group in groups.values() for bar in group]
    if not bars:
        raise ValueError(f"nothing to draw in {path}: no bar in any of the groups {list(groups)}")
    for bar in bars:
        if not bar.low <= bar.mean <= bar.high:
            raise ValueError(f"the interval [{bar.low}, {bar.high}] of {bar.arm} does not hold its mean {bar.mean}")
    groups = {name: group for name, group in groups.items() if group}
    arms = list(dict.fromkeys(bar.arm for bar in bars))
    width = 0.82 / max(4, len(arms))
    figure = Figure(figsize=(min(13.0, max(5.0, 1.6 + 0.5 * len(arms) * len(groups))), 4.2), dpi=130, layout="constrained")
    axes = figure.subplots()
    for g, group in enumerate(groups.values()):
        for bar in group:
            _draw_bar(axes, bar, g + (arms.index(bar.arm) - (len(arms) - 1) / 2) * width, width)
    axes.set_xticks(range(len(groups)), list(groups))
    axes.set_xlim(-0.5, len(groups) - 0.5)
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel(label)
    lowest, highest = (choose(0.0, *(value for bar in bars for value in (bar.mean, *bar.seeds))) for choose in (min, max))
    if lowest < 0:  # an interval alone does not take the axis below 0, where no accuracy is
        lowest = min(bar.low for bar in bars)
    highest = max(highest, *(bar.high for bar in bars))
    axes.set_ylim(1.12 * lowest, 1.12 * highest if highest > lowest else 1.0)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    handles = {text: patch for patch, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend([handles[arm] for arm in arms], arms, loc="outside upper center", ncols=min(4, len(arms)), frameon=False)
    figure.supxlabel(note, fontsize=8, color="#555555")
    with atomic_path(path) as temporary:
        figure.savefig(temporary)


def _draw_bar(axes: "Axes", bar: Bar, at: float, width: float) -> None:
    axes.bar(at, bar.mean, width * 0.92, color=COLOURS.get(bar.arm), label=bar.arm)
    if bar.low < bar.high:
        axes.errorbar(at, bar.mean, [[bar.mean - bar.low], [bar.high - bar.mean]], color="#222222", capsize=3, linewidth=1.2)
    axes.scatter([at] * len(bar.seeds), bar.seeds, s=14, color="white", edgecolor="#222222", linewidth=0.8, zorder=3)


def share_interval(share: float, n: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of ``n`` outputs."""
    z = 1.96
    centre, spread = share + z * z / (2 * n), z * ((share * (1 - share) + z * z / (4 * n)) / n) ** 0.5
    low, high = ((centre + sign * spread) / (1 + z * z / n) for sign in (-1, 1))
    return min(low, share), max(high, share)


def mean_interval(mean: float, error: float) -> tuple[float, float]:
    """The normal 95 % interval of a mean with its standard error."""
    return mean - 1.96 * error, mean + 1.96 * error
