"""The same job under several seeds, or several settings, and one table of what came out.

    python pipelines/study.py [--config FILE.yaml] [--seeds 0,1,2] [--out outputs/study] [--section.key value ...]
    python pipelines/study.py --vary learner.lr=1e-4,3e-4,1e-3 --vary learner.beta=0.3,3 --seeds 0 --out outputs/sweep

Each seed is an ordinary run OUT/seed-N of pipelines/pararl.py. With --vary, every combination of the values is such a study in
OUT/key=value,.../, and every arm gets the same values. What was interrupted goes on where it stopped: finished runs are kept, an unfinished
one is resumed. Writes OUT/results.md, results.json and arms.png (OUT/sweep.md for a sweep).
"""

import sys
from pathlib import Path

if not (__package__ or sys.flags.safe_path):
    import _root  # noqa: F401

import argparse
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from typing import TYPE_CHECKING

from pararl.cli.help import CONFIGS
from pararl.cli.parse import differences, parse
from pararl.cli.program import options
from pararl.config import PER_ARM
from pararl.errors import fail, told
from pararl.files import atomic_path, write_json
from pararl.readers import read_json, record_of

if TYPE_CHECKING:
    from pararl.evaluation.study import SystemMetrics
    from pararl.evaluation.summary import Summary

HERE = Path(__file__).resolve().parent
Setting = tuple[tuple[str, str], ...]
"""One combination of the values under comparison: (section.key, value) pairs."""


def combinations(varied: Sequence[str]) -> list[Setting]:
    """Every combination of ``key=a,b,c`` texts; one empty combination when there are none."""
    axes = []
    for text in varied:
        key, equals, values = text.partition("=")
        if not (equals and key and all(values.split(","))):
            fail(f"--vary {text!r}: write section.key=value,value,...")
        axes.append([(key, value) for value in values.split(",")])
    return list(product(*axes))


def label(setting: Setting) -> str:
    """The combination as a folder name."""
    return ",".join(f"{key.partition('.')[2]}={value}" for key, value in setting)


def overrides_of(setting: Setting, arms: Sequence[str]) -> list[str]:
    """The combination as command line options; what arms may set for themselves is set for each, over its own default."""
    found: list[str] = []
    for key, value in setting:
        # The file may give an arm a value of its own, which no plain setting replaces: the study would compare nothing there.
        for name in [f"arm.{arm}.{key}" for arm in arms] if key in PER_ARM else [key]:
            found += [f"--{name}", value]
    return found


def run_seed(config: Path, out: Path, seed: int, overrides: list[str]) -> None:
    """Make or finish the run of one seed. A run of other settings that lies in its place is a mistake of the user's."""
    folder = out / f"seed-{seed}"
    if (folder / "config.yaml").exists():
        saved = parse(["--resume", str(folder)]).config
        for key, was, now in differences(saved, parse(["--config", str(config), "--run.seed", str(seed), *overrides]).config):
            fail(f"{folder} is a run with {key} {was}, but {now} is asked for (choose another --out)")
    if (folder / "summary.json").exists():
        print(f"{folder}: finished before")
        return
    command = [sys.executable, str(HERE / "pararl.py")]
    if (folder / "config.yaml").exists():
        command += ["--resume", str(folder)]
    else:
        command += ["--config", str(config), "--run.dir", str(out), "--run.name", folder.name, "--run.seed", str(seed), *overrides]
    print(f"{folder}: {' '.join(command[1:])}", flush=True)
    # An ordinary run in a process of its own, so that it may be killed, and resumed, like any other.
    code = subprocess.run(command, check=False).returncode
    if code:
        fail(f"{folder} ended with exit code {code}; run the same command again to go on from its last checkpoint")


def summary_of(file: Path) -> "Summary":
    """The summary of a finished run. Raises FileError where it cannot be read."""
    from pararl.evaluation.summary import Summary

    remedy = f"remove it, and run the same command again: {file.parent} writes it anew"
    found: Summary = record_of(Summary.from_json, read_json(file, remedy), file, remedy)
    return found


def report(out: Path, seeds: list[int]) -> "SystemMetrics":
    """Write the table and the picture of the finished runs; returns their metrics."""
    from pararl.evaluation.study import LABELS, accuracy_of, bars, markdown, metrics
    from pararl.tracking.plots import OVER_SEEDS, bars_png

    summaries = [summary_of(out / f"seed-{seed}" / "summary.json") for seed in seeds]
    found = metrics(summaries)
    text = markdown(found, seeds)
    with atomic_path(out / "results.md") as path:
        path.write_text(text, encoding="utf-8")
    write_json(out / "results.json", {system: {name: asdict(v) for name, v in values.items()} for system, values in found.items()})
    bars_png(out / "arms.png", bars(found), LABELS[accuracy_of(found)], OVER_SEEDS if len(seeds) > 1 else "bars: one seed")
    print(f"\n{text}\nin {out}: results.md, results.json, arms.png")
    return found


@told
def main() -> None:
    """Run what is missing, then report."""
    parser = options(__doc__)
    parser.add_argument(
        "--config",
        type=Path,
        default=CONFIGS / "scenes_study.yaml",
        help="configuration of every run: a YAML file, or a shipped one by its name",
    )
    parser.add_argument("--seeds", default="0,1,2", help="seeds, separated by commas")
    parser.add_argument("--vary", action="append", default=[], metavar="KEY=A,B", help="values to compare; several give every combination")
    parser.add_argument("--out", type=Path, default=Path("outputs") / "study", help="folder of the study")
    args, overrides = parser.parse_known_args()
    try:
        seeds = [int(seed) for seed in args.seeds.split(",")]
    except ValueError:
        fail(f"--seeds {args.seeds!r}: give whole numbers separated by commas, for example 0,1,2")
    if len(set(seeds)) < len(seeds):
        fail(f"--seeds {args.seeds!r} names a seed twice: one run would count as two in the intervals; give every seed once")
    settings = combinations(args.vary)
    own = ["--config", str(args.config), *overrides]
    arms = parse(own).config.run.arms
    for setting in settings:
        parse([*own, *overrides_of(setting, arms)])  # every mistake is told before the first run
    folders = [args.out / label(setting) / f"seed-{seed}" for setting in settings for seed in seeds]
    for file in (folder / "summary.json" for folder in folders):
        if file.exists():
            summary_of(file)  # so that one that cannot be read is told before the first run
    run_all(args, settings, seeds, overrides, arms)


def run_all(args: argparse.Namespace, settings: list[Setting], seeds: list[int], overrides: list[str], arms: Sequence[str]) -> None:
    """Make what is missing, setting by setting, and the tables."""
    found = []
    for setting in settings:
        out = args.out / label(setting)
        for seed in seeds:
            run_seed(args.config, out, seed, [*overrides, *overrides_of(setting, arms)])
        found.append(report(out, seeds))
    if args.vary:
        from pararl.evaluation.study import sweep_markdown

        text = sweep_markdown([label(setting) for setting in settings], found, arms)
        with atomic_path(args.out / "sweep.md") as path:
            path.write_text(text, encoding="utf-8")
        print(f"\n{text}\nin {args.out}: sweep.md")


if __name__ == "__main__":
    main()
