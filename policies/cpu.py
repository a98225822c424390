"""Computing on a CPU: its threads, and float32 products by the faster of the two libraries that torch holds.

torch multiplies float32 matrices with MKL, which runs its AVX2 kernels on processors that are not Intel's. On AMD ones with AVX-512 oneDNN
takes half as long or less (``benchmarks/float32.py``). torch uses it where a lower precision is allowed. This module allows that only where
the products come out in float32 all the same.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

EXACT, ALLOWED = "highest", "medium"
"""torch's names: float32 products in float32; in bfloat16, where a backend likes."""


@contextmanager
def computing(threads: int) -> Iterator[None]:
    """Within the block torch runs with ``threads`` threads and, on a CPU, with the faster float32 products.

    Results equal bit for bit only where the number of threads and the library do.
    """
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    use(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.set_float32_matmul_precision(before[1])


def use(threads: int) -> None:
    """The same from here on. On a machine with a GPU products stay as they are: torch's allowance would be the GPU's as well."""
    torch.set_num_threads(threads)
    if not torch.cuda.is_available() and one_dnn_is_faster():
        torch.set_float32_matmul_precision(ALLOWED)


@cache
def one_dnn_is_faster() -> bool:
    """Whether this is an AMD processor with AVX-512 on which oneDNN, allowed less, multiplies in float32: a property of the machine."""
    cpu = Path("/proc/cpuinfo")
    # The allowance may mean bfloat16, so the products are tried as well.
    return cpu.exists() and "AuthenticAMD" in cpu.read_text() and torch.backends.cpu.get_cpu_capability() == "AVX512" and _is_float32()


def _is_float32() -> bool:
    """Whether products under the allowance are off by no more than rounding to float32 explains (bfloat16: 2,000 times as much)."""
    generator = torch.Generator().manual_seed(0)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(ALLOWED)
    try:
        gaps = []
        for rows, inner, columns in ((2, 8, 8), (64, 128, 16), (512, 128, 384), (512, 384, 128)):
            a, b = torch.randn(rows, inner, generator=generator), torch.randn(inner, columns, generator=generator)
            exact = a.double() @ b.double()
            gaps.append(((a @ b - exact).abs().max() / exact.square().mean().sqrt()).item())
    finally:
        torch.set_float32_matmul_precision(before)
    return max(gaps) < 1e-5
