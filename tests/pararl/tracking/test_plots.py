"""Bars show the numbers they were given, in the fixed colours; intervals are those of the books."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pararl.config import ARMS
from pararl.tracking.plots import COLOURS, Bar, bars_png, mean_interval, share_interval
from tests.wording import telling


def test_every_arm_has_its_own_colour() -> None:
    assert set(COLOURS) == {"base", *ARMS}
    assert len(set(COLOURS.values())) == len(COLOURS)


def test_nothing_to_draw_names_what_there_is(tmp_path: Path) -> None:
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


def test_scores_of_any_size_are_within_the_axes_and_a_group_without_a_bar_takes_no_room(tmp_path: Path, drawn: list[Any]) -> None:
    bars_png(tmp_path / "b.png", {"ID": [Bar("base", -3.0, -4.0, -2.0), Bar("pararl", 1.5, 1.5, 1.5)], "OOD": []}, "soft accuracy")
    (axes,) = drawn[0].axes
    low, high = axes.get_ylim()
    assert low < -4.0 and high > 1.5 and [tick.get_text() for tick in axes.get_xticklabels()] == ["ID"]
    bars_png(tmp_path / "zero.png", {"ID": [Bar("base", 0.0, 0.0, 0.0)]}, "strict accuracy")
    assert drawn[1].axes[0].get_ylim() == (0.0, 1.0)


def test_the_interval_of_a_share_is_wilsons() -> None:
    # Wilson's interval solves |p - share| = 1.96 sqrt(p (1 - p) / n) for p.
    for share, n in ((0.25, 256), (0.0, 64), (1.0, 64), (0.5, 16)):
        low, high = share_interval(share, n)
        assert low <= share <= high
        for p in (low, high):
            if 1e-9 < p < 1 - 1e-9:
                assert abs(p - share) == pytest.approx(1.96 * math.sqrt(p * (1 - p) / n))


def test_the_interval_of_a_mean_holds_it_nineteen_times_in_twenty() -> None:
    draws = np.random.default_rng(0).normal(3.0, 2.0, (4000, 50))
    ends = [mean_interval(row.mean(), row.std(ddof=1) / 50**0.5) for row in draws]
    assert np.mean([low <= 3.0 <= high for low, high in ends]) == pytest.approx(0.95, abs=0.015)
