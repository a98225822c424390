"""Named GPUs, and which of them the actors of a run share."""

from dataclasses import dataclass

from pararl.config import Config, ConfigError


@dataclass(frozen=True, slots=True)
class Gpu:
    """What a plan needs to know of a GPU."""

    name: str
    memory: float
    """Bytes that a process can have of it: what torch reports as its total."""
    peak: float
    """Dense bfloat16 products into float32 sums, operations per second, of the data sheet."""


GIB = 2.0**30
GPUS = (
    Gpu("RTX-4090", 23.5 * GIB, 165e12),
    Gpu("A100-80GB", 79 * GIB, 312e12),
    Gpu("H100-80GB", 79 * GIB, 989e12),
    Gpu("H200", 139 * GIB, 989e12),
)
"""In the order of their memory. Peaks: NVIDIA's data sheets, SXM boards where there are several, without sparsity."""
UTILISATION = 0.4
"""Share of the peak that a run reaches, on all of them. Assumed: ``benchmarks/gpu_mmada.py`` measures yours."""
PUBLISH = 0.4e9
"""Bytes per second of a publish: two checksums and the copies between GPU, buffer and GPU. Assumed."""


def gpu(name: str) -> Gpu:
    """The GPU of which ``name`` is a part, whatever its case and hyphens. Raises ConfigError unless it is exactly one."""
    found = [g for g in GPUS if _plain(name) in _plain(g.name)]
    if len(found) != 1:
        raise ConfigError(f"--plan: unknown GPU {name!r} (known: {', '.join(g.name for g in GPUS)}; without a name: all of them)")
    return found[0]


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def placed(config: Config) -> list[list[str]]:
    """The processes on each GPU, ``rollout`` or ``learner``, one GPU after the other; what runs on the CPU is in none.

    It follows Ray's placement on one machine. A fraction goes to the fullest GPU that still has room for it. A whole number goes to free
    GPUs, of which the process uses the first.
    """
    rollout, learner = config.rollout, config.learner
    gpus: list[list[str]] = []
    free: list[float] = []
    for process, share in [("rollout", rollout.gpus)] * rollout.workers + [("learner", learner.gpus)]:
        # Three thirds fill a GPU, whatever they add up to in floating point.
        shared = [i for i, left in enumerate(free) if 0 < share < 1 and left >= share - 1e-9]
        if shared:
            place = min(shared, key=lambda i: free[i])
            gpus[place].append(process)
            free[place] -= share
        elif share:
            whole = max(1, int(share))
            gpus += [[process], *([] for _ in range(whole - 1))]
            free += [1 - share if share < 1 else 0.0] + [0.0] * (whole - 1)
    return gpus
