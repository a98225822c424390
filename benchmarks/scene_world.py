"""How long the embedded world takes to draw, to read and to score, kind by kind, beside one forward of the embedded policy.

    python benchmarks/scene_world.py

Prints a table. A run asks for a prompt per group and for a score per rollout and scored guess: next to a forward both should be small.
"""

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import policies
from pararl import scenes
from pararl.types import KINDS, Kind, Output

COUNT = 256


def milliseconds(work: Callable[[], object], passes: int = 5) -> float:
    """Of the fastest pass: another process beside it can only slow one down."""
    took = []
    for _ in range(passes):
        start = time.perf_counter()
        work()
        took.append(time.perf_counter() - start)
    return 1000 * min(took)


def ask(kind: Kind) -> None:
    for index in range(COUNT):
        scenes.prompt("id", index, 1, *scenes.FORMS[kind])


def grade(kind: Kind, shown: Sequence[scenes.Example], outputs: Sequence[Output], seen: Sequence[scenes.Parsed | None]) -> None:
    for example, output, parsed in zip(shown, outputs, seen, strict=True):
        scenes.score(scenes.FORMS[kind][0], example.prompt.spec, output, parsed)


def main() -> None:
    torch.set_num_threads(1)
    policy = policies.load("scenes-mmada")
    ids = torch.zeros(COUNT, 128, dtype=torch.long)
    with torch.no_grad():
        forward = milliseconds(lambda: policy.model(ids), passes=3) / COUNT
    print(f"milliseconds each, over {COUNT}; a forward of 128 tokens takes {forward:.3f} on one thread\n")
    print(f"{'kind':18}{'prompt':>9}{'parse':>9}{'score':>9}{'(parse + score) / forward':>28}")
    for kind in KINDS:
        task, form = scenes.FORMS[kind]
        shown = [scenes.example("train", i, 1, task, form) for i in range(COUNT)]
        others = [example.output for example in shown[1:] + shown[:1]]
        images = [output.image for output in others if output.image is not None]
        seen = scenes.parse_batch(images) if images else [None] * COUNT
        prompt = milliseconds(partial(ask, kind)) / COUNT
        parse = milliseconds(partial(scenes.parse_batch, images)) / COUNT if images else 0.0
        score = milliseconds(partial(grade, kind, shown, others, seen)) / COUNT
        print(f"{kind:18}{prompt:9.3f}{parse:9.3f}{score:9.3f}{(parse + score) / forward:28.3f}")


if __name__ == "__main__":
    main()
