"""Sampling and learning of the embedded policy on one thread: with MKL's float32 products, and with oneDNN's (``policies/cpu.py``).

    python benchmarks/float32.py

Prints a table: seconds for 64 outputs of 8 denoising steps and for the gradient at 4 recorded steps of each. Beside them it has the largest
difference of a logit. The libraries take turns; the fastest of five passes each. On a machine where oneDNN is not taken it times MKL alone.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import policies
from pararl import adapter, scenes
from pararl.learner.tables import step_table
from pararl.options import Sampling
from pararl.rollout.actors import actor_env
from pararl.types import KINDS, Kind, Prompt, Rollout
from policies import cpu
from policies.policy import Policy

COUNT, GROUP, MICRO = 64, 8, 8
SAMPLING = Sampling(steps=8, recorded=4, guesses=1, choice_temperature=8.0)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def sample(policy: Policy, prompts: Sequence[Prompt]) -> list[Rollout]:
    return policy.generate(prompts, range(COUNT), SAMPLING)


def learn(policy: Policy, rollouts: Sequence[Rollout]) -> None:
    for i in range(0, COUNT, MICRO):
        step_table(policy, policy.prepare(rollouts[i : i + MICRO])).logprob.sum().backward()


def measured(policy: Policy, kind: Kind, libraries: dict[str, str]) -> list[float]:
    """Seconds to sample with each library, then to learn."""
    prompts = [scenes.prompt("id", i // GROUP, 1, *scenes.FORMS[kind]) for i in range(COUNT)]
    rollouts = sample(policy, prompts)
    times: dict[tuple[int, str], list[float]] = {}
    for _ in range(5):
        for name, precision in libraries.items():
            torch.set_float32_matmul_precision(precision)
            times.setdefault((0, name), []).append(seconds(lambda: sample(policy, prompts)))
            times.setdefault((1, name), []).append(seconds(lambda: learn(policy, rollouts)))
    return [min(took) for _, took in sorted(times.items())]


def main() -> None:
    # The allocator of the actors: it is read when a process starts.
    allocator = {name: value for name, value in actor_env(1).items() if name.startswith("MALLOC")}
    if any(os.environ.get(name) != value for name, value in allocator.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | allocator)
    torch.set_num_threads(1)
    policy = policies.load("scenes-mmada")
    adapter.attach(policy, rank=16, alpha=32)
    libraries = {"MKL": cpu.EXACT} | ({"oneDNN": cpu.ALLOWED} if cpu.one_dnn_is_faster() else {})
    logits = []
    for precision in libraries.values():
        torch.set_float32_matmul_precision(precision)
        logits.append(policy.canary())
    columns = [f"{what}, {name}" for what in ("sample", "learn") for name in sorted(libraries)]
    print(f"{'kind':18}" + "".join(f"{column:>17}" for column in columns) + f"{'ratios':>14}")
    for kind in KINDS:
        took = measured(policy, kind, libraries)
        ratios = [f"{a / b:.2f}" for a, b in zip(took[::2], took[1::2], strict=True)] if len(libraries) > 1 else []
        print(f"{kind:18}" + "".join(f"{value:17.3f}" for value in took) + f"{', '.join(ratios):>14}")
    print(f"\nlargest difference of a logit: {(logits[0] - logits[-1]).abs().max().item():.2g}")


if __name__ == "__main__":
    main()
