"""Several evaluations, one per seed, as one table: means over seeds with 95 % intervals, and paired differences to the base.

    python pipelines/report.py outputs/study/seed-*/evaluation --metrics strict,axes.image_alignment [--kinds interleaved] [--out FILE.md]

A metric is a path into the reports of evaluation.json: strict, soft, geometric, axes.output_alignment, cycle.strict, diversity.unique,
by_skill.color, by_tag.caption.strict, kl.kl/total, ... Metrics of text against image (axes.output_alignment) are in evaluations of
interleaved prompts alone.
"""

import sys
from pathlib import Path

if not (__package__ or sys.flags.safe_path):
    import _root  # noqa: F401

import json
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

from pararl.cli.program import options
from pararl.errors import fail, told
from pararl.files import atomic_path
from pararl.readers import FileError, read_json, record_of


def metric(report: dict[str, Any], path: str) -> float | None:
    """The metric at a dotted path of one report; None where it has none."""
    value: Any = report
    for key in path.split("."):
        if not isinstance(value, dict) or key not in value:
            return None
        value = value[key]
    value = value.get("mean") if isinstance(value, dict) else value
    return float(value) if isinstance(value, int | float) else None


def evaluation_of(folder: Path) -> dict[str, Any]:
    """What ``pipelines/evaluate.py`` wrote. Raises FileError for a file that cannot be read, or is another thing."""
    file, remedy = folder / "evaluation.json", "make it anew with pipelines/evaluate.py"
    evaluation = read_json(file, remedy, keys=("results",))
    reports = [
        split
        for kinds in record_of(lambda results: [results["base"], *results.values()], evaluation["results"], file, remedy)
        for splits in record_of(lambda kinds: kinds.values(), kinds, file, remedy)
        for split in record_of(lambda splits: splits.values(), splits, file, remedy)
    ]
    if not reports or not all(isinstance(report, dict) for report in reports):
        raise FileError(file, "holds no reports of kinds of prompts and splits", remedy)
    return evaluation


def metrics_of(evaluations: Sequence[dict[str, Any]], kinds: Sequence[str]) -> list[str]:
    """The paths of all metrics that the reports of some kinds (none = all) have."""

    def paths(value: Any, path: str) -> Iterator[str]:
        if not isinstance(value, dict) or "mean" in value:
            yield path
        else:
            for key, below in value.items():
                yield from paths(below, f"{path}.{key}" if path else key)

    systems = [system for evaluation in evaluations for system in evaluation["results"].values()]
    reports = [report for system in systems for kind, splits in system.items() if kind in kinds or not kinds for report in splits.values()]
    return list(dict.fromkeys(path for report in reports for path in paths(report, "")))


def twice(folders: Sequence[Path], evaluations: Sequence[dict[str, Any]]) -> Iterator[tuple[Path, Path]]:
    """Pairs of folders with the same evaluation: one folder, or a copy with the same results."""
    for (one, a), (other, b) in combinations(zip(folders, evaluations, strict=True), 2):
        if one.resolve() == other.resolve() or a["results"] == b["results"]:
            yield one, other


def markdown(evaluations: Sequence[dict[str, Any]], metrics: Sequence[str], kinds: Sequence[str]) -> str:
    """A row for every metric, kind of prompt and split, a column for every system, with its gain over the base."""
    from pararl.evaluation.study import interval

    results = [evaluation["results"] for evaluation in evaluations]
    systems = list(results[0])
    lines = ["| metric, kind, split | " + " | ".join(systems) + " |", "|" + "---|" * (len(systems) + 1)]
    for path in metrics:
        for kind, splits in results[0]["base"].items():
            for split in splits if kind in kinds or not kinds else ():
                cells, base = [], [metric(r["base"][kind][split], path) for r in results]
                for system in systems:
                    values = [metric(r[system][kind][split], path) for r in results]
                    known = [v for v in values if v is not None]
                    cells.append(str(interval(known)) if len(known) == len(results) else "-")
                    if system != "base" and cells[-1] != "-" and None not in base:
                        cells[-1] += f" (gain {interval([a - b for a, b in zip(known, base, strict=True)])})"  # type: ignore[operator]
                if set(cells) != {"-"}:
                    lines.append(f"| {path}, {kind}, {split} | " + " | ".join(cells) + " |")
    count = f"{len(results)} evaluation{'s' if len(results) > 1 else ''}"
    return "\n".join([*lines, "", f"Means ± half-widths of 95 % intervals (Student's t) over {count}."]) + "\n"


@told
def main() -> None:
    """Print the table that the command line asks for."""
    parser = options(__doc__)
    parser.add_argument("evaluations", type=Path, nargs="+", help="folders that pipelines/evaluate.py wrote")
    # --figures is its name in the commands of earlier versions
    parser.add_argument("--metrics", "--figures", default="strict", help="paths of metrics, separated by commas")
    parser.add_argument("--kinds", default="", help="kinds of prompts, separated by commas; default: all")
    parser.add_argument("--out", type=Path, help="file for the table; it must not exist")
    args = parser.parse_args()
    if missing := [folder for folder in args.evaluations if not (folder / "evaluation.json").exists()]:
        fail(f"{missing[0]} has no evaluation.json: make it with pipelines/evaluate.py")
    if args.out and args.out.exists():
        fail(f"{args.out} exists already and is never overwritten (set --out)")
    evaluations = [evaluation_of(folder) for folder in args.evaluations]
    if same := next(twice(args.evaluations, evaluations), None):
        fail(f"{same[1]} is the same evaluation as {same[0]}: it would count as two in the intervals; give every one once")
    # An interval over seeds is of one metric of one system in all of them.
    if len({json.dumps({s: {k: list(v) for k, v in kinds.items()} for s, kinds in e["results"].items()}) for e in evaluations}) > 1:
        fail("the evaluations hold different systems, kinds of prompts or splits: give those of one study")
    kinds, known = [kind for kind in args.kinds.split(",") if kind], list(evaluations[0]["results"]["base"])
    if unknown := [kind for kind in kinds if kind not in known]:
        fail(f"--kinds: unknown {', '.join(unknown)} (these evaluations have {', '.join(known)})")
    text = markdown(evaluations, args.metrics.split(","), kinds)
    if nowhere := [path for path in args.metrics.split(",") if f"| {path}, " not in text]:
        fail(f"--metrics: no report has {', '.join(nowhere)}; there are {', '.join(metrics_of(evaluations, kinds))}")
    if args.out:
        with atomic_path(args.out) as path:
            path.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
