"""The benchmark of a GPU, at tiny size on the CPU: every part runs, and its operations are those that torch counts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
PARTS = ["t2i rollout, base", "learner update", "publish", "t2i rollout, adapter", "parallel rollout, adapter"]
RELEASED = ["released t2i, a row", "released -M, a row", "released -A, a row"]


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(ROOT / "benchmarks" / "gpu_mmada.py"), *arguments], cwd=cwd, capture_output=True, text=True)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_every_part_of_an_update_is_measured_and_nothing_is_written(dtype: str, tmp_path: Path) -> None:
    done = run("--size", "tiny", "--device", "cpu", "--dtype", dtype, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert [part["name"] for part in found["parts"]] == PARTS + RELEASED
    assert all(part["seconds"] > 0 for part in found["parts"]) and found["ceiling_flops"] > 0
    assert found["logprob_gap"] < (1e-4 if dtype == "float32" else 0.1)
    # 8 rollouts of 8 steps with and without prompt, 2 layers of width 64 on 6 + 3 + 18 tokens; the head on 16 tokens and 64 codes.
    by_hand = 8 * 8 * 2 * (2 * 2 * (4 * 64**2 + 3 * 64 * 192) * 27 + 4 * 2 * 64 * 27**2 + 2 * 64 * 64 * 16)
    # The second layer is computed for the 16 image tokens alone, but for its keys and values.
    spared = 8 * 8 * 2 * (2 * (2 * 64**2 + 3 * 64 * 192) + 4 * 64 * 27) * (27 - 16)
    assert found["parts"][0]["flops"] == by_hand - spared
    assert all(name in done.stdout for name in PARTS) and not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_to_do(tmp_path: Path) -> None:
    done = run(cwd=tmp_path)
    assert done.returncode == 2 and "--size tiny --device cpu" in done.stderr
