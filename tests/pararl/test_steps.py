"""Steps of joint outputs, against torch's own spacing and by hand."""

import pytest
import torch

from pararl.steps import CUTS, Decoding, late_updates, shared_steps


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
        with pytest.raises(ValueError, match=f"{decoding} decoding needs a number of steps divisible by {CUTS[decoding]}, got 7"):
            shared_steps(7, decoding)
