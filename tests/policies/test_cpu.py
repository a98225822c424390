"""Float32 products of either library, against float64."""

from collections.abc import Iterator

import pytest
import torch

from policies import cpu

only_here = pytest.mark.skipif(not cpu.one_dnn_is_faster(), reason="this machine multiplies with MKL throughout")


@pytest.fixture
def allowed() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(cpu.ALLOWED)
    yield
    torch.set_float32_matmul_precision(before)


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
