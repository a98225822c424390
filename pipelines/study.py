"""The same job under several seeds, and one table of what came out.

    python pipelines/study.py [--config pipelines/configs/scenes_study.yaml] [--seeds 0,1,2] [--out outputs/study] [--section.key value ...]

Each seed is an ordinary run OUT/seed-N of pipelines/pararl.py. A study that was interrupted goes on where it stopped: finished runs are
kept, an unfinished one is resumed. Writes OUT/results.md, results.json and arms.png.
"""

import sys
from pathlib import Path

# See pipelines/pararl.py: this folder must not stand first on the path.
ROOT = Path(__file__).resolve().parent.parent
sys.path[:] = [str(ROOT), *(entry for entry in sys.path if Path(entry).resolve() not in (ROOT, ROOT / "pipelines"))]

import argparse
import json
import subprocess
from dataclasses import asdict

from pararl.cli import fail
from pararl.files import atomic_path, write_json


def run_seed(config: Path, out: Path, seed: int, overrides: list[str]) -> None:
    """Make or finish the run of one seed."""
    folder = out / f"seed-{seed}"
    if (folder / "summary.json").exists():
        print(f"seed {seed}: finished before")
        return
    command = [sys.executable, str(ROOT / "pipelines" / "pararl.py")]
    if (folder / "config.yaml").exists():
        command += ["--resume", str(folder)]
    else:
        command += ["--config", str(config), "--run.dir", str(out), "--run.name", folder.name, "--run.seed", str(seed), *overrides]
    print(f"seed {seed}: {' '.join(command[1:])}", flush=True)
    code = subprocess.run(command, check=False).returncode
    if code:
        fail(f"seed {seed} ended with exit code {code}; run the same command again to go on from its last checkpoint")


def report(out: Path, seeds: list[int]) -> None:
    """Write the table and the picture of the finished runs."""
    from pararl.plots import Bar, bars_png
    from pararl.study import figures, markdown
    from pararl.summary import Summary

    summaries = [Summary.from_json(json.loads((out / f"seed-{seed}" / "summary.json").read_text(encoding="utf-8"))) for seed in seeds]
    found = figures(summaries)
    text = markdown(found, seeds)
    with atomic_path(out / "results.md") as path:
        path.write_text(text, encoding="utf-8")
    write_json(out / "results.json", {system: {name: asdict(v) for name, v in values.items()} for system, values in found.items()})
    groups = {
        split.upper(): [
            Bar(system, v.mean, v.mean - (v.half or 0), v.mean + (v.half or 0), v.values)
            for system, values in found.items()
            if (v := values[f"{split} strict"])
        ]
        for split in ("id", "ood")
    }
    bars_png(out / "arms.png", groups, "strict accuracy")
    print(f"\n{text}\nin {out}: results.md, results.json, arms.png")


def main() -> None:
    """Run the seeds that are missing, then report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument(
        "--config", type=Path, default=ROOT / "pipelines" / "configs" / "scenes_study.yaml", help="configuration of every run"
    )
    parser.add_argument("--seeds", default="0,1,2", help="seeds, separated by commas")
    parser.add_argument("--out", type=Path, default=Path("outputs") / "study", help="folder of the study")
    args, overrides = parser.parse_known_args()
    try:
        seeds = [int(seed) for seed in args.seeds.split(",")]
    except ValueError:
        fail(f"--seeds {args.seeds!r}: give whole numbers separated by commas, for example 0,1,2")
    for seed in seeds:
        run_seed(args.config, args.out, seed, overrides)
    report(args.out, seeds)


if __name__ == "__main__":
    main()
