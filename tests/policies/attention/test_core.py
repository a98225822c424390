"""Attention written out is torch's own."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from policies import cpu
from policies.attention.core import attention


@pytest.fixture
def allowed() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(cpu.ALLOWED)
    yield
    torch.set_float32_matmul_precision(before)


def heads(kv: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(3, h, 11, 8, generator=generator, dtype=torch.float64) for h in (4, kv, kv))  # type: ignore[return-value]


@pytest.mark.parametrize("kv", [1, 2, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_written_out_is_that_of_torch(allowed: None, kv: int, masked: bool) -> None:
    q, k, v = heads(kv)
    mask = (
        (torch.rand(3, 1, 11, 11, generator=torch.Generator().manual_seed(1)) < 0.6) | torch.eye(11, dtype=torch.bool) if masked else None
    )
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=kv < 4)
    torch.testing.assert_close(attention(q, k, v, mask), expected, rtol=1e-12, atol=1e-12)


def test_a_key_that_is_not_seen_has_no_part(allowed: None) -> None:
    q, k, v = heads(4)
    mask = torch.ones(1, 1, 11, 11, dtype=torch.bool)
    mask[..., 5] = False
    before = attention(q, k, v, mask)
    k[:, :, 5], v[:, :, 5] = 100.0, -100.0
    assert torch.equal(attention(q, k, v, mask), before)
    assert not torch.allclose(attention(q, k, v), before)
