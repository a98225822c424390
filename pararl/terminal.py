"""Whether a person looks on: bars of libraries are for terminals, and fill a log file with thousands of carriage returns."""

import os
import sys

NO_BARS = {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
"""Environment without bars: tqdm's, which transformers, peft and trl use, and those of libraries that switch theirs on by themselves."""


def no_bars_in_logs() -> None:
    """Where standard error is no terminal, keep libraries from drawing bars. What the user has set stands (an empty TQDM_DISABLE).

    Call it before they are imported. Our own bars (``pararl/tracking/progress.py``) print lines there.
    """
    if not sys.stderr.isatty():
        for name, value in NO_BARS.items():
            os.environ.setdefault(name, value)
