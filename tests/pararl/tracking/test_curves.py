"""Curves show the logged values and how sure they are: evaluations of different sizes are told apart, and never joined."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pararl.tracking.curves import PANELS, Panel, curves_png
from pararl.tracking.plots import COLOURS, share_interval

STRICT = {20: 0.5, 40: 0.25, 50: 0.375}
"""Accuracies of an arm at its evaluations: 64 prompts during training, 256 at the end."""


def run(arm: str, updates: int = 50, name: str = "strict") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {"arm": arm, "update": 0, "samples": 0, f"eval/id_{name}": 0.25, "eval/id_n": 256.0, "eval/id_error": 0.02}
    ]
    for update in range(1, updates + 1):
        row: dict[str, Any] = {"arm": arm, "update": update, "samples": 0, "reward/mean": 0.4 + 0.01 * update}
        if update in STRICT:
            n = 256.0 if update == 50 else 64.0
            row |= {f"eval/id_{name}": STRICT[update], "eval/id_n": n, "eval/id_error": 0.03, "eval/kl_total": 0.01 * update}
        rows.append(row)
    return rows


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


def lines(axes: Any, arm: str) -> list[tuple[list[float], list[float]]]:
    """The joined points of an arm, without marks that stand alone."""
    found = [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.get_lines() if line.get_color() == COLOURS[arm]]
    return [(x, y) for x, y in found if len(x) > 1]


def marks(axes: Any, arm: str) -> list[tuple[float, float, str, bool]]:
    """(update, value, shape, whether filled) of each mark of an arm."""
    alone = [line for line in axes.get_lines() if line.get_color() == COLOURS[arm] and len(line.get_xdata()) == 1]
    return [(line.get_xdata()[0], line.get_ydata()[0], line.get_marker(), line.get_markerfacecolor() == COLOURS[arm]) for line in alone]


def intervals(axes: Any, arm: str) -> list[list[float]]:
    return [
        segment[:, 1].tolist()
        for bars in axes.collections
        if hasattr(bars, "get_segments") and (bars.get_edgecolor()[0][:3] == pytest.approx(np.array(rgb(COLOURS[arm])) / 255))
        for segment in bars.get_segments()
    ]


def test_evaluations_of_different_sizes_have_their_own_marks_and_intervals_and_no_line_joins_them(tmp_path: Path, drawn: list[Any]) -> None:
    curves_png(tmp_path / "curves.png", run("pararl"))
    _, strict, _ = drawn[0].axes
    assert lines(strict, "pararl") == [([20, 40], [0.5, 0.25])]
    small, other, large = marks(strict, "pararl")
    assert small[:2] == (20, 0.5) and other[:2] == (40, 0.25) and large[:2] == (50, 0.375)
    assert small[2:] == other[2:] != large[2:] and large[3] and not small[3]
    assert intervals(strict, "pararl") == [pytest.approx(share_interval(STRICT[u], n)) for u, n in ((20, 64), (40, 64), (50, 256))]
    assert "64 prompts" in drawn[0].get_supxlabel() and "256 prompts" in drawn[0].get_supxlabel()


def test_the_curve_of_small_evaluations_begins_and_ends_with_the_same_prompts_of_the_large_ones(tmp_path: Path, drawn: list[Any]) -> None:
    def row(update: int, value: float) -> dict[str, Any]:
        return {"arm": "pararl", "update": update, "eval/during_strict": value, "eval/during_n": 64.0}

    rows = [r | ({0: row(0, 0.125), 50: row(50, 0.4375)}.get(r["update"], {})) for r in run("pararl")]
    curves_png(tmp_path / "curves.png", rows)
    strict = drawn[0].axes[1]
    assert lines(strict, "pararl") == [([0, 20, 40, 50], [0.125, 0.5, 0.25, 0.4375])]
    assert marks(strict, "base") == [(0.0, 0.125, "o", False)], "the same for every arm"
    end = {value: (place, shape) for place, value, shape, _ in marks(strict, "pararl") if place > 45}
    assert set(end) == {0.4375, 0.375} and end[0.375][0] > end[0.4375][0] and end[0.375][1] != end[0.4375][1]
    assert end[0.375][0] < strict.get_xlim()[1]


def test_evaluations_of_one_size_are_one_curve_from_the_base_on(tmp_path: Path, drawn: list[Any]) -> None:
    rows = [row | ({"eval/id_n": 256.0} if "eval/id_n" in row else {}) for row in run("pararl")]
    curves_png(tmp_path / "curves.png", rows)
    assert lines(drawn[0].axes[1], "pararl") == [([0, 20, 40, 50], [0.25, 0.5, 0.25, 0.375])]
    assert len({mark[2:] for mark in marks(drawn[0].axes[1], "pararl")}) == 1


def test_the_base_is_a_dashed_line_with_its_interval(tmp_path: Path, drawn: list[Any]) -> None:
    curves_png(tmp_path / "curves.png", [*run("pararl"), *run("offline_dpo")])
    reward, strict, kl = drawn[0].axes
    dashed = {axes: [list(line.get_ydata()) for line in axes.get_lines() if line.get_linestyle() == "--"] for axes in drawn[0].axes}
    assert dashed == {reward: [], strict: [[0.25, 0.25]], kl: []}
    (band,) = strict.patches
    assert (band.get_y(), band.get_y() + band.get_height()) == pytest.approx(share_interval(0.25, 256))
    (legend,) = drawn[0].legends
    assert sorted(text.get_text() for text in legend.get_texts()) == ["base", "offline_dpo", "pararl"]


def test_the_bars_of_two_arms_stand_beside_each_other(tmp_path: Path, drawn: list[Any]) -> None:
    curves_png(tmp_path / "curves.png", [*run("pararl"), *run("offline_dpo")])
    one, other = ([mark[0] for mark in marks(drawn[0].axes[1], arm)] for arm in ("pararl", "offline_dpo"))
    assert all(0 < b - a < 2 for a, b in zip(one, other, strict=True)) and (one[0] + other[0]) / 2 == pytest.approx(20)


def test_the_mark_of_the_base_stands_at_nought_for_every_arm(tmp_path: Path, drawn: list[Any]) -> None:
    arms = ("pararl", "offline_dpo")
    before = [{"arm": arm, "update": 0, "eval/during_strict": 0.125, "eval/during_n": 64.0} for arm in arms]
    curves_png(tmp_path / "curves.png", [*before, *run(arms[0]), *run(arms[1])])
    assert [mark[0] for mark in marks(drawn[0].axes[1], "base")] == [0.0, 0.0]
    assert [xs[0] for arm in arms for xs, _ in lines(drawn[0].axes[1], arm)] == [0.0, 0.0]


def test_the_kl_starts_at_nothing_and_ends_where_it_was_measured(tmp_path: Path, drawn: list[Any]) -> None:
    curves_png(tmp_path / "curves.png", run("pararl"))
    assert lines(drawn[0].axes[2], "pararl") == [([0, 20, 40, 50], [0.0, 0.2, 0.4, 0.5])]


def test_an_arm_measured_once_shows_the_kl_of_its_updates(tmp_path: Path, drawn: list[Any]) -> None:
    rows = [{"arm": "pararl", "update": u, "reward/mean": 0.5, "kl/total": 0.1 * u} for u in range(2, 6)]
    rows += [{"arm": arm, "update": 5, "eval/kl_total": 0.7} for arm in ("pararl", "offline_dpo")]
    curves_png(tmp_path / "curves.png", rows)
    kl = drawn[0].axes[1]
    assert {arm: sorted({y for _, ys in lines(kl, arm) for y in ys}) for arm in ("pararl", "offline_dpo")} == {
        "pararl": [0.0, *(0.1 * u for u in range(2, 6))],
        "offline_dpo": [0.0, 0.7],
    }


def test_the_reward_of_every_update_lies_under_the_mean_of_the_last_five(tmp_path: Path, drawn: list[Any]) -> None:
    curves_png(tmp_path / "curves.png", run("pararl"))
    (updates, raw), (_, smooth) = lines(drawn[0].axes[0], "pararl")
    assert updates == list(range(1, 51)) and raw == [0.4 + 0.01 * u for u in updates]
    assert smooth[-1] == pytest.approx(np.mean([0.4 + 0.01 * u for u in range(46, 51)])) and smooth[0] == raw[0]


def test_samples_of_the_base_look_otherwise_than_those_of_the_policy(tmp_path: Path, drawn: list[Any]) -> None:
    curves_png(tmp_path / "curves.png", [*run("pararl"), *run("offline_dpo")])
    styles = {line.get_label(): line.get_linestyle() for line in drawn[0].axes[0].get_lines()}
    assert styles["pararl"] != styles["offline_dpo"] and "samples of the base" in drawn[0].get_supxlabel()


@pytest.mark.parametrize("last", [1, 3, 7, 50])
def test_ticks_are_whole_updates_and_all_panels_have_the_same(tmp_path: Path, drawn: list[Any], last: int) -> None:
    curves_png(tmp_path / "curves.png", [row | ({"eval/kl_total": 0.1} if row["update"] == last else {}) for row in run("pararl", last)])
    ticks = [axes.get_xticks().tolist() for axes in drawn[0].axes]
    assert len(drawn[0].axes) > 1 and all(x == ticks[0] for x in ticks)
    assert all(tick == round(tick) for tick in ticks[0]) and len([tick for tick in ticks[0] if 0 <= tick <= last]) > 1


def test_a_panel_without_a_value_of_a_trained_policy_is_left_out(tmp_path: Path, drawn: list[Any]) -> None:
    curves_png(tmp_path / "curves.png", run("pararl", updates=10))  # measured before training alone
    assert [axes.get_ylabel().partition(" (")[0] for axes in drawn[0].axes] == [PANELS[0].label]


def test_a_reward_without_a_strict_notion_has_the_mean_score_with_its_interval(tmp_path: Path, drawn: list[Any]) -> None:
    curves_png(tmp_path / "curves.png", run("pararl", name="soft"))
    score = drawn[0].axes[1]
    assert [mark[:2] for mark in marks(score, "pararl")] == list(STRICT.items())
    assert intervals(score, "pararl") == [pytest.approx([v - 1.96 * 0.03, v + 1.96 * 0.03]) for v in STRICT.values()]
    assert len(drawn[0].axes) == 3


def test_rows_of_an_older_version_have_no_intervals(tmp_path: Path, drawn: list[Any]) -> None:
    rows = [{name: value for name, value in row.items() if name not in ("eval/id_n", "eval/id_error")} for row in run("pararl")]
    curves_png(tmp_path / "curves.png", rows)
    assert [mark[:2] for mark in marks(drawn[0].axes[1], "pararl")] == list(STRICT.items())
    assert intervals(drawn[0].axes[1], "pararl") == [] and "bars" not in drawn[0].get_supxlabel()


def test_curves_are_a_png_in_the_colours_of_the_arms_and_nothing_else_is_left(tmp_path: Path) -> None:
    curves_png(tmp_path / "curves.png", [*run("pararl"), *run("offline_dpo")])
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]
    with Image.open(tmp_path / "curves.png") as picture:
        image = np.asarray(picture.convert("RGB"))
    for name in ("pararl", "offline_dpo", "base"):
        assert (image == rgb(COLOURS[name])).all(-1).sum() > 100
    assert (image == rgb(COLOURS["online_dpo"])).all(-1).sum() == 0


def test_other_metrics_and_a_given_base_can_be_drawn(tmp_path: Path, drawn: list[Any]) -> None:
    panels = (Panel("eval/para_soft", "paraphrases", evaluation="eval/para"), Panel("kl/absent", "?"))
    curves_png(tmp_path / "c.png", [{"arm": "pararl", "update": 2, "eval/para_soft": 0.5}], panels, base={"eval/para_soft": 0.35})
    (axes,) = drawn[0].axes
    assert [list(line.get_ydata()) for line in axes.get_lines() if line.get_linestyle() == "--"] == [[0.35, 0.35]]


def test_nothing_to_draw_names_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no row has kl/image; the rows have .*eval/id_strict, eval/kl_total, reward/mean"):
        curves_png(tmp_path / "c.png", run("pararl"), panels=(Panel("kl/image", "KL"),))
    assert list(tmp_path.iterdir()) == []
