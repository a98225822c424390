"""Examine policies in detail: a finished run's base and adapters, or any policy and adapters.

    python pipelines/evaluate.py --run outputs/RUN
    python pipelines/evaluate.py --policy scenes-mmada [--adapter DIR ...] --curriculum.tasks t2i,edit,i2t
    python pipelines/evaluate.py --run outputs/RUN --eval.file prompts.jsonl --eval.splits id

Every setting of a run (pipelines/pararl.py --help all) may be given and wins over the run's own: --eval.prompts 512, --eval.splits id,para,
--rollout.guidance 1, ... With the run's own settings, accuracies are those of its summary.json. Adapters are checked before anything is
measured: every tensor there, none left over, all finite and of this policy.

Writes OUT/table.txt, OUT/worst-SYSTEM.png with the worst failures, and OUT/evaluation.json. The last has strict, soft and geometric-mean
accuracy, ParaBench's six axes, cycle consistency, diversity, KL to the base and paired differences to it. They are given by kind of prompt,
split, tag, skill and number of atoms, with bootstrap intervals over prompts.
"""

import sys
from pathlib import Path

if not (__package__ or sys.flags.safe_path):
    import _root  # noqa: F401

import argparse
import time
from typing import TYPE_CHECKING, Any

from pararl.adapter_files import START, check
from pararl.cli.input_checks import check_inputs
from pararl.cli.parse import as_dict, parse
from pararl.cli.program import options
from pararl.cli.validation import policy_directory
from pararl.config import Config
from pararl.errors import fail, told
from pararl.files import atomic_folder, write_json
from pararl.terminal import no_bars_in_logs

if TYPE_CHECKING:
    from pararl.evaluation.examiner import Examination


def examine(config: Config, name: str, adapter: Path | None, args: argparse.Namespace) -> "Examination":
    """What the base (no adapter) or one adapter directory does."""
    import policies
    from pararl.adapter import load
    from pararl.evaluation.examiner import Examiner

    # Anew for every system: PEFT leaves the layers of an earlier adapter in the model.
    policy = policies.load(config.policy.name)
    model = None if adapter is None else load(policy, adapter)
    if config.rollout.gpus:
        policy.to("cuda")
    return Examiner(config, policy, model, name).examine(config.eval.prompts, args.diversity, args.samples)


def arguments() -> tuple[argparse.Namespace, list[str]]:
    """This program's own options, and those that are settings of a run."""
    parser = options(__doc__)
    parser.add_argument("--run", type=Path, help="folder of a run: its settings, its base and all its adapters")
    parser.add_argument("--policy", help="policy to examine where no run is given")
    parser.add_argument("--adapter", type=Path, action="append", default=[], help="adapter directory of --policy; may be repeated")
    parser.add_argument("--diversity", type=int, default=32, help="prompts of the first split, per kind, that are sampled several times")
    parser.add_argument("--samples", type=int, default=4, help="how often each of these is sampled")
    parser.add_argument("--out", type=Path, help="folder of the results; default RUN/evaluation, or outputs/evaluation-TIME")
    args, settings = parser.parse_known_args()
    if (args.run is None) == (args.policy is None):
        fail("give --run outputs/NAME or --policy NAME, one of the two (see --help)")
    if args.run and not (args.run / "config.yaml").exists():
        fail(f"{args.run} is not a run folder: it has no config.yaml (pass --run outputs/NAME)")
    if args.diversity < 0 or args.samples < 1:
        fail("--diversity must be 0 or more, --samples 1 or more")
    return args, settings


@told
def main() -> None:
    """Examine what the command line names."""
    no_bars_in_logs()
    args, settings = arguments()
    given = ["--config", str(args.run / "config.yaml"), "--run.name", ""] if args.run else ["--policy.name", args.policy]
    if args.run and (args.run / START).is_dir():  # the one that was named may be gone
        given += ["--policy.adapter", str(args.run / START)]
    config = parse([*given, *settings]).config
    # Folders with a dot in front are what a killed writer left.
    adapters = sorted(p for p in args.run.glob("adapters/[!.]*") if p.is_dir()) if args.run else args.adapter
    if args.run and not adapters:
        fail(f"{args.run} has no adapters yet: let an arm finish first (--resume {args.run})")
    systems = {"base": None} | {folder.name: folder for folder in adapters}
    if len(systems) <= len(adapters):
        fail(f"adapters are told apart by the names of their folders, which must differ and not be base: {', '.join(map(str, adapters))}")
    out: Path = args.out or (args.run / "evaluation" if args.run else Path("outputs") / f"evaluation-{time.strftime('%Y%m%d-%H%M%S')}")
    if out.exists():
        fail(f"{out} exists already and is never overwritten (set --out)")

    for folder in adapters:
        check(folder, policy_directory(config))
    check_inputs(config)

    sys.path.append(str(Path.cwd()))  # as Ray lets its workers import from here
    # Loads torch: what can be refused has been refused above.
    from policies import cpu

    cpu.use(config.rollout.threads)
    began = time.monotonic()
    found = {name: examine(config, name, folder, args) for name, folder in systems.items()}
    seconds = round(time.monotonic() - began, 1)
    shown = write(out, config, found, {"diversity": args.diversity, "samples": args.samples, "seconds": seconds})
    print(f"{shown}\n\nin {out}: evaluation.json, table.txt, worst-*.png")


def write(out: Path, config: Config, found: dict[str, "Examination"], facts: dict[str, Any]) -> str:
    """The results as the folder ``out``, which appears whole or not at all; returns the table."""
    from pararl.evaluation.evaluation import sample_row
    from pararl.evaluation.report import LEGEND, differences, table
    from pararl.tracking.pictures import samples_png

    base = found["base"].scored
    gains = {
        name: {kind: {split: differences(s, base[kind][split]) for split, s in splits.items()} for kind, splits in f.scored.items()}
        for name, f in found.items()
        if name != "base"
    }
    results = {name: f.report for name, f in found.items()}
    shown = f"{table(results)}\n\n{LEGEND}"
    with atomic_folder(out) as part:
        for name, f in found.items():
            if failures := f.worst(4):
                rows = [sample_row(s.prompt, s.output, s.score, all_claims=True) for s in failures]
                samples_png(part / f"worst-{name}.png", [name], rows)
        (part / "table.txt").write_text(shown + "\n", encoding="utf-8")
        write_json(part / "evaluation.json", {"config": as_dict(config), **facts, "results": results, "gains": gains})
    return shown


if __name__ == "__main__":
    main()
