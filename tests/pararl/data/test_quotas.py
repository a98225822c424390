"""Task quotas: exact sums, nobody left out, mistakes named."""

import itertools

import pytest

from pararl.data.quotas import quotas, task_shares
from pararl.types import KINDS, Kind
from tests.wording import telling


def test_every_batch_is_full_holds_every_kind_and_is_as_near_the_shares_as_whole_numbers_can_be() -> None:
    kinds: tuple[Kind, ...] = ("t2i", "edit", "i2t")
    for shares in itertools.product((1, 2, 3, 7), repeat=3):
        for total in range(3, 25):
            found = quotas(dict(zip(kinds, shares, strict=True)), total)
            assert sum(found.values()) == total and min(found.values()) >= 1
            exact = [total * share / sum(shares) for share in shares]
            error = sum(abs(n - x) for n, x in zip(found.values(), exact, strict=True))
            options = [c for c in itertools.product(range(1, total), repeat=3) if sum(c) == total]
            assert error == pytest.approx(min(sum(abs(n - x) for n, x in zip(c, exact, strict=True)) for c in options))


def test_shares_are_read_from_names_and_numbers() -> None:
    assert task_shares(["t2i", "edit:3", " i2t : 2 "]) == {"t2i": 1, "edit": 3, "i2t": 2}
    assert list(task_shares(KINDS)) == list(KINDS)


@pytest.mark.parametrize(
    ("entries", "told"),
    [(["t2v"], ("'t2v'",)), (["t2i", "t2i:2"], ("'t2i'",)), (["t2i:0"], ("t2i", "'0'")), (["t2i:x"], ("t2i", "'x'"))],
)
def test_mistakes_are_named(entries: list[str], told: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=telling(*told)):
        task_shares(entries)


def test_a_batch_that_is_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match=telling(2, 3, "t2i", "edit", "i2t")):
        quotas({"t2i": 1, "edit": 1, "i2t": 1}, 2)
