"""The benchmark of Show-o's text, in little: both ways come to the same tokens, and a ratio is printed."""

import json
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks import autoregressive_text as benchmark

ROOT = Path(__file__).resolve().parents[2]


def test_both_ways_are_timed_and_their_ratio_is_printed(tmp_path: Path) -> None:
    sizes = ["--width", "64", "--layers", "2", "--batch", "3", "--tokens", "24", "--passes", "2"]
    script = str(ROOT / "benchmarks" / "autoregressive_text.py")
    done = subprocess.run([sys.executable, script, *sizes], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert all(rate > 0 for rate in found["tokens/s"].values()) and len(found["tokens/s"]) == 2
    kept, whole = found["tokens/s"].values()
    assert found["times as fast"] == kept / whole > 1 and found["different texts"] == 3
    assert not list(tmp_path.iterdir())


def test_each_text_has_as_many_tokens_as_asked_for_and_the_two_agree() -> None:
    policy = benchmark.random_policy(32, 2)  # two layers: what earlier tokens see of later ones is felt
    with torch.no_grad():  # so that end tokens are said
        policy.model.showo.lm_head.bias[list(policy.layout.text.ends)] += 4.0
    ids, real = benchmark.questions(policy, 4)
    assert (~real).any() and (ids == policy.settings.specials.soi).any(1).all(), "of different lengths, each with an image"
    noise = torch.rand(4, 40, generator=torch.Generator().manual_seed(1))
    kept, whole = benchmark.kept(policy, ids, real, noise), benchmark.whole(policy, ids, real, noise)
    assert kept.shape == (4, 40) and torch.equal(kept, whole)
    for end in policy.layout.text.ends:  # also where a token says that an image begins, which no image follows
        said = (kept == end).int()
        assert (said.cumsum(1)[:, :-1] * (1 - said[:, 1:])).any(), "end tokens are among them and end nothing"
