"""Steps of joint outputs, against torch's own spacing and by hand."""

import pytest
import torch

from pararl.steps import CUTS, Decoding, advances, late_updates, shared_steps, stretch
from tests.wording import telling


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8, 12, 31, 64, 127, 128])
def test_late_updates_are_the_rounded_points_of_torchs_linspace(steps: int) -> None:
    """As the released samplers make them; their recorded tables are in tests/policies/test_parity.py."""
    for updates in range(1, steps + 1):
        points = torch.linspace(steps // 4, steps - 1, updates).round().int().tolist()
        assert late_updates(steps, updates) == sorted(set(points))


@pytest.mark.parametrize(
    ("decoding", "text", "image"),
    [
        ("parallel", range(8), range(8)),
        ("released", range(8), range(8)),
        ("semi_parallel", range(6), range(2, 8)),
        ("sequential", range(4), range(4, 8)),
    ],
)
def test_parts_share_the_steps(decoding: Decoding, text: range, image: range) -> None:
    assert shared_steps(8, decoding) == (text, image)
    if CUTS[decoding] > 1:
        with pytest.raises(ValueError, match=telling(decoding, CUTS[decoding], 7)):
            shared_steps(7, decoding)


@pytest.mark.parametrize(
    ("decoding", "image_steps", "text", "image"),
    [
        ("parallel", 0, range(8), range(8)),
        ("parallel", 4, range(8), [1, 3, 5, 7]),
        ("semi_parallel", 3, range(6), [3, 5, 7]),
        ("sequential", 0, range(4), range(4, 8)),
        ("released", 4, range(8), [2, 4, 5, 7]),  # 2 to 7 in even steps of 5 / 3, rounded
    ],
)
def test_segments_advance_where_it_is_worked_out_by_hand(decoding: Decoding, image_steps: int, text: list[int], image: list[int]) -> None:
    assert advances("text", True, 8, decoding, image_steps) == list(text)
    assert advances("image", True, 8, decoding, image_steps) == list(image)
    assert stretch("image", True, 8, decoding, image_steps)[1] == len(image)


def test_a_segment_alone_advances_at_every_step_whatever_joint_ones_do() -> None:
    assert advances("image", False, 7, "sequential", 2) == advances("text", False, 7, "released", 2) == list(range(7))
    with pytest.raises(ValueError, match=telling(5, 4)):
        advances("image", True, 8, "sequential", 5)
