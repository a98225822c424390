"""Float32 products of either library, and attention written out, against float64 and torch's own."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from policies import cpu

only_here = pytest.mark.skipif(not cpu.one_dnn_is_faster(), reason="this machine multiplies with MKL throughout")


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
    torch.testing.assert_close(cpu.attention(q, k, v, mask), expected, rtol=1e-12, atol=1e-12)


def test_a_key_that_is_not_seen_has_no_part(allowed: None) -> None:
    q, k, v = heads(4)
    mask = torch.ones(1, 1, 11, 11, dtype=torch.bool)
    mask[..., 5] = False
    before = cpu.attention(q, k, v, mask)
    k[:, :, 5], v[:, :, 5] = 100.0, -100.0
    assert torch.equal(cpu.attention(q, k, v, mask), before)
    assert not torch.allclose(cpu.attention(q, k, v), before)


def test_what_was_set_before_comes_back(allowed: None) -> None:
    torch.set_float32_matmul_precision("high")
    threads = torch.get_num_threads()
    with pytest.raises(RuntimeError), cpu.computing(threads + 1):
        assert torch.get_num_threads() == threads + 1
        raise RuntimeError
    assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == (threads, "high")


def test_products_stay_those_of_float32() -> None:
    a, b = (torch.randn(256, 256, generator=torch.Generator().manual_seed(seed)) for seed in (2, 3))
    exact = a.double() @ b.double()
    with cpu.computing(1):
        gap = (a @ b - exact).abs().max()
    assert gap < 1e-5 * exact.abs().max()
    assert (a.bfloat16() @ b.bfloat16() - exact).abs().max() > 1e-3 * exact.abs().max()


@only_here
def test_the_check_tells_a_lower_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cpu._is_float32()
    multiply = torch.Tensor.__matmul__
    monkeypatch.setattr(
        torch.Tensor, "__matmul__", lambda a, b: multiply(a.bfloat16(), b.bfloat16()) if a.dtype is torch.float32 else multiply(a, b)
    )
    assert not cpu._is_float32()
