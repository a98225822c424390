"""Schedules equal the released ones' recorded tables and always add up."""

import json
from pathlib import Path
from typing import Any

import pytest

from pararl.steps import spread
from policies.sampling.schedules import block_counts, remaining, transfer_counts
from tests.wording import telling


@pytest.fixture(scope="module")
def tables(golden: Path) -> dict[str, list[dict[str, Any]]]:
    return json.loads((golden / "schedules" / "schedules.json").read_text())


def test_tokens_left_masked_equal_the_recorded_ones_before_the_last_step(tables: dict[str, list[dict[str, Any]]]) -> None:
    """The released sampler keeps one token masked to the end and returns its sampled ids; ours commits all of them at the last step."""
    assert len(tables["maskgit_cosine"]) >= 3
    for case in tables["maskgit_cosine"]:
        ours = remaining(case["N"], case["T"])
        assert ours[:-1] == case["mask_len_after_step"][:-1] and ours[-1] == 0, (case["N"], case["T"])


def test_partly_known_images_follow_the_recorded_schedule(tables: dict[str, list[dict[str, Any]]]) -> None:
    assert tables["maskgit_partially_known"]
    for case in tables["maskgit_partially_known"]:
        ours = remaining(case["N"], case["T"], case["known_at_start"])
        assert ours[:-1] == case["mask_len_after_step"][:-1] and ours[-1] == 0


@pytest.mark.parametrize("tokens", [1, 2, 5, 16, 40])
@pytest.mark.parametrize("steps", [1, 2, 7, 16, 50])
@pytest.mark.parametrize("known", [0, 1])
def test_something_is_committed_at_every_step_until_one_is_left_for_the_last(tokens: int, steps: int, known: int) -> None:
    before, left = tokens - known, remaining(tokens, steps, known)
    assert len(left) == steps and left[-1] == 0
    for after in left[:-1]:
        assert after < before or before <= 1
        assert after >= 1 or before == 0
        before = after


def test_transfer_counts_equal_the_recorded_ones(tables: dict[str, list[dict[str, Any]]]) -> None:
    assert len(tables["num_transfer_tokens_llada"]) >= 3
    for case in tables["num_transfer_tokens_llada"]:
        assert transfer_counts(case["masked"], case["steps"]) == case["table"]


@pytest.mark.parametrize(
    ("tokens", "steps", "block"), [(16, 8, 8), (24, 8, 12), (256, 128, 64), (255, 128, 64), (12, 6, 12), (12, 36, 4), (10, 6, 4)]
)
def test_blocks_are_filled_one_behind_the_other(tokens: int, steps: int, block: int) -> None:
    commits, window = block_counts(tokens, steps, block)
    assert len(commits) == len(window) == steps and sum(commits) == tokens
    done = 0
    for count, end in zip(commits, window, strict=True):
        assert end == min((done // block + 1) * block, tokens) or (count == 0 and end == done), (
            "the window is the first block that is not full"
        )
        done += count
        assert done <= end


@pytest.mark.parametrize(("tokens", "steps", "block"), [(10, 4, 4), (16, 3, 4), (16, 2, 4)])
def test_blocks_that_do_not_divide_are_an_error(tokens: int, steps: int, block: int) -> None:
    with pytest.raises(ValueError, match=telling(tokens, block, steps)):
        block_counts(tokens, steps, block)


@pytest.mark.parametrize(("updates", "steps"), [(1, 1), (1, 8), (3, 8), (7, 8), (8, 8), (30, 128)])
def test_spread_updates_are_distinct_even_and_end_with_the_last_step(updates: int, steps: int) -> None:
    places = spread(updates, steps)
    assert len(set(places)) == updates and places == sorted(places) and places[-1] == steps - 1
    gaps = [b - a for a, b in zip([-1, *places], places, strict=False)]
    assert max(gaps) - min(gaps) <= 1


def test_more_updates_than_steps_are_an_error() -> None:
    with pytest.raises(ValueError, match=telling(9, 8)):
        spread(9, 8)
