"""The patterns that messages are held to: any wording, but every token as it is."""

import re

import pytest

from tests.wording import telling


@pytest.mark.parametrize("message", ["prompt p has 9 tokens, more than 8", "8 is the limit,\nand p of 9 is beyond: set --rollout.steps"])
def test_any_wording_with_every_token_fits(message: str) -> None:
    assert re.search(telling("p", 8, 9), message)


@pytest.mark.parametrize("message", ["prompt p has 9 tokens", "prompt pp has 9, more than 8", "p: 19, 8", "p: 9.5, 8", "p: 1.9, 8", ""])
def test_a_token_that_is_not_there_or_part_of_another_does_not(message: str) -> None:
    assert not re.search(telling("p", 8, 9), message)


def test_marks_at_the_ends_of_a_token_are_part_of_it() -> None:
    assert re.search(telling("--eval.splits", "edit[0]", "[4, 6, 3]", -1), "edit[0]: got -1 of [4, 6, 3] (set --eval.splits)")
    assert not re.search(telling("[4, 6, 3]"), "[4, 6, 32]")
