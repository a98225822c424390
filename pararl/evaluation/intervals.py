"""Means over prompts with percentile-bootstrap intervals (Efron 1979): what an evaluation reports for every metric."""

from collections.abc import Sequence

import numpy as np

RESAMPLES = 1000
"""Resamples of one interval."""
Metric = dict[str, float]
"""``mean``, ``low`` and ``high`` of the 95 % interval, ``n``."""


def bootstrap(values: Sequence[float], seed: int = 0) -> Metric:
    """Mean of the values (one per prompt) and its 95 % interval over resampled prompts. Raises ValueError without any."""
    array = np.asarray(values, np.float64)
    if not len(array):
        raise ValueError("no values to take a mean of")
    # A fixed seed: a report that is made again has the same intervals.
    index = np.random.default_rng(seed).integers(0, len(array), (RESAMPLES, len(array)))
    low, high = np.quantile(array[index].mean(1), (0.025, 0.975))
    return {"mean": float(array.mean()), "low": float(low), "high": float(high), "n": len(array)}


def paired(values: Sequence[float], baseline: Sequence[float], seed: int = 0) -> Metric:
    """The mean difference of two systems on the same prompts, with its interval. Raises ValueError for unequal lengths."""
    return bootstrap([a - b for a, b in zip(values, baseline, strict=True)], seed)
