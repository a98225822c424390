"""Curves and bars show the numbers they were given, in the fixed colours."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from pararl.config import ARMS
from pararl.tracking.plots import COLOURS, Bar, Panel, bars_png, curves_png, share_bar
from tests.wording import telling

ROWS: list[dict[str, Any]] = [
    {"arm": arm, "update": update, "samples": 0, "reward/mean": 0.4 + gain * update, "eval/kl_total": 0.01 * update}
    | ({"eval/id_strict": 0.3 + gain * update} if update % 20 == 0 else {})
    for arm, gain in (("pararl", 0.01), ("offline_dpo", 0.002))
    for update in range(41)
]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that were saved, for a look at what is in them."""
    figures: list[Any] = []
    save = Figure.savefig

    def keep_and_save(figure: Figure, *arguments: Any, **more: Any) -> None:
        figures.append(figure)
        save(figure, *arguments, **more)

    monkeypatch.setattr(Figure, "savefig", keep_and_save)
    return figures


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


def test_every_arm_has_its_own_colour() -> None:
    assert set(COLOURS) == {"base", *ARMS}
    assert len(set(COLOURS.values())) == len(COLOURS)


def test_curves_hold_the_logged_values_per_arm_with_the_base_dashed(tmp_path: Path, drawn: list[Any]) -> None:
    curves_png(tmp_path / "curves.png", ROWS)
    reward, strict, kl = drawn[0].axes
    for axes, name, updates in (
        (reward, "reward/mean", range(41)),
        (strict, "eval/id_strict", (0, 20, 40)),
        (kl, "eval/kl_total", range(41)),
    ):
        for arm in ("pararl", "offline_dpo"):
            raw = [line for line in axes.get_lines() if line.get_color() == COLOURS[arm]][0]
            assert list(raw.get_xdata()) == list(updates)
            assert list(raw.get_ydata()) == [row[name] for row in ROWS if row["arm"] == arm and name in row]
        assert axes.get_xlabel() == "update"
        assert "(" in axes.get_ylabel()
    bold = [line for line in reward.get_lines() if line.get_label() == "pararl"][0]
    assert bold.get_ydata()[-1] == pytest.approx(np.mean([0.4 + 0.01 * update for update in range(36, 41)]))
    dashed = {axes: [list(line.get_ydata()) for line in axes.get_lines() if line.get_linestyle() == "--"] for axes in drawn[0].axes}
    assert dashed == {reward: [], strict: [[0.3, 0.3]], kl: []}
    (legend,) = drawn[0].legends
    assert sorted(text.get_text() for text in legend.get_texts()) == ["base", "offline_dpo", "pararl"]


def test_an_arm_measured_once_shows_the_kl_of_its_updates(tmp_path: Path, drawn: list[Any]) -> None:
    rows = [{"arm": "pararl", "update": u, "reward/mean": 0.5, "kl/total": 0.1 * u} for u in range(2, 6)]
    rows += [{"arm": arm, "update": 5, "eval/kl_total": 0.7} for arm in ("pararl", "offline_dpo")]
    curves_png(tmp_path / "curves.png", rows)
    shown = {line.get_label(): list(line.get_ydata()) for line in drawn[0].axes[1].get_lines()}
    assert shown == {"pararl": [0.1 * u for u in range(2, 6)], "offline_dpo": [0.7]}


def test_curves_are_a_png_in_the_colours_of_the_arms_and_nothing_else_is_left(tmp_path: Path) -> None:
    curves_png(tmp_path / "curves.png", ROWS)
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]
    with Image.open(tmp_path / "curves.png") as picture:
        image = np.asarray(picture.convert("RGB"))
    for name in ("pararl", "offline_dpo", "base"):
        assert (image == rgb(COLOURS[name])).all(-1).sum() > 100
    assert (image == rgb(COLOURS["online_dpo"])).all(-1).sum() == 0


def test_other_metrics_and_a_given_base_can_be_drawn(tmp_path: Path, drawn: list[Any]) -> None:
    curves_png(
        tmp_path / "c.png", ROWS, panels=(Panel("reward/mean", "reward (0 to 1)"), Panel("kl/absent", "?")), base={"reward/mean": 0.35}
    )
    (axes,) = drawn[0].axes
    assert [list(line.get_ydata()) for line in axes.get_lines() if line.get_linestyle() == "--"] == [[0.35, 0.35]]


def test_nothing_to_draw_names_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=telling("kl/image", "eval/id_strict", "eval/kl_total", "reward/mean")):
        curves_png(tmp_path / "c.png", ROWS, panels=(Panel("kl/image", "KL"),))
    with pytest.raises(ValueError, match=telling(tmp_path / "b.png", "'ID'")):
        bars_png(tmp_path / "b.png", {"ID": []}, "strict accuracy")
    with pytest.raises(ValueError, match=telling("[0.5, 0.6]", "pararl", 0.4)):
        bars_png(tmp_path / "b.png", {"ID": [Bar("pararl", 0.4, 0.5, 0.6)]}, "strict accuracy")
    assert list(tmp_path.iterdir()) == []


def test_bars_show_mean_interval_and_seeds(tmp_path: Path, drawn: list[Any]) -> None:
    bars = [Bar("base", 0.3, 0.25, 0.35), Bar("pararl", 0.7, 0.55, 0.8, (0.65, 0.75))]
    bars_png(tmp_path / "bars.png", {"ID": bars, "OOD": bars[1:]}, "strict accuracy (0 to 1)")
    (axes,) = drawn[0].axes
    assert [patch.get_height() for patch in axes.patches] == [0.3, 0.7, 0.7]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["ID", "OOD"]
    ends = [segment[:, 1].tolist() for bar in axes.containers if hasattr(bar, "has_yerr") for segment in bar.lines[2][0].get_segments()]
    assert ends == [pytest.approx([0.25, 0.35]), pytest.approx([0.55, 0.8]), pytest.approx([0.55, 0.8])]
    dots = [
        points.get_offsets()[:, 1].tolist() for points in axes.collections if len(points.get_offsets()) == 2 and points.get_sizes().size
    ]
    assert dots == [[0.65, 0.75], [0.65, 0.75]]
    with Image.open(tmp_path / "bars.png") as picture:
        assert picture.format == "PNG"


def test_the_interval_of_a_share_is_wilsons() -> None:
    # Wilson's interval solves |p - share| = 1.96 sqrt(p (1 - p) / n) for p.
    for share, n in ((0.25, 256), (0.0, 64), (1.0, 64), (0.5, 16)):
        bar = share_bar("base", share, n)
        assert bar.low <= share <= bar.high
        for p in (bar.low, bar.high):
            if 1e-9 < p < 1 - 1e-9:
                assert abs(p - share) == pytest.approx(1.96 * math.sqrt(p * (1 - p) / n))
