"""Measure a finished run again, from its saved adapters: the base against every arm, on all splits.

    python pipelines/evaluate.py --run outputs/RUN [--prompts 512] [--out FILE.json]

Adapters are loaded as a user would load them, through PEFT onto a fresh base. With the run's own number of prompts the figures are those of
its ``summary.json``.
"""

import sys
from pathlib import Path

# See pipelines/pararl.py: this folder must not stand first on the path.
ROOT = Path(__file__).resolve().parent.parent
sys.path[:] = [str(ROOT), *(entry for entry in sys.path if Path(entry).resolve() not in (ROOT, ROOT / "pipelines"))]

import argparse
import math
from dataclasses import asdict, replace
from typing import Any

from pararl.cli import fail, parse
from pararl.config import Config
from pararl.files import write_json


def measure(config: Config, adapter: Path | None, count: int) -> dict[str, Any]:
    """Figures of every split for the base (None) or one adapter directory."""
    from peft import PeftModel
    from tqdm import tqdm

    import policies
    import rewards
    from pararl.evaluation import eval_sampling, evaluate
    from pararl.fleet import chunks_of, requests_of
    from pararl.types import Prompt, Rollout

    policy = policies.load(config.policy.name)
    if adapter is not None:
        PeftModel.from_pretrained(policy.model, str(adapter))
        policy.model.eval()
    r = config.rollout
    sampling = eval_sampling(r)
    reward = rewards.load(config.reward.name)

    def generate(prompts: list[Prompt]) -> list[Rollout]:
        chunks = chunks_of(requests_of(prompts, 1, config.eval.seed, 0), r.chunk)
        name = prompts[0].split
        bar = tqdm(chunks, desc=f"{adapter.name if adapter else 'base'} {name}", leave=False)
        return [x for chunk in bar for x in policy.generate([c.prompt for c in chunk], [c.seed for c in chunk], sampling)]

    done = evaluate(generate, lambda rollouts: rewards.score_rollouts(reward, rollouts), config, config.eval.splits, count)  # type: ignore[arg-type]
    return {split: asdict(result) for split, result in done.splits.items()}


def table(results: dict[str, dict[str, Any]]) -> str:
    """Strict accuracy with its 95 % sampling error, a row per policy and a column per split."""
    splits = list(next(iter(results.values())))
    lines = [f"{'strict accuracy':<16}" + "".join(f"{split:>16}" for split in splits)]
    for name, result in results.items():
        cells = []
        for split in splits:
            p, n = result[split]["strict"], result[split]["n"]
            shown = f"soft {result[split]['soft']:.3f}" if p is None else f"{p:.3f} +/- {1.96 * math.sqrt(p * (1 - p) / n):.3f}"
            cells.append(shown.rjust(16))
        lines.append(f"{name:<16}" + "".join(cells))
    return "\n".join(lines)


def main() -> None:
    """Evaluate the run that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of the run")
    parser.add_argument("--prompts", type=int, default=0, help="prompts per split; 0 = as many as the run used")
    parser.add_argument(
        "--threads", type=int, default=0, help="threads of the sampler; 0 = as the run's workers had: other numbers round otherwise"
    )
    parser.add_argument("--guidance", type=float, default=None, help="classifier-free guidance scale; default: as the run had")
    parser.add_argument("--splits", default=None, help="splits, separated by commas; default: as the run had")
    parser.add_argument("--out", type=Path, default=None, help="where the figures go as JSON; default RUN/evaluation.json")
    args = parser.parse_args()
    if not (args.run / "config.yaml").exists():
        fail(f"{args.run} is not a run folder: it has no config.yaml (pass --run outputs/NAME)")
    if args.prompts < 0 or args.threads < 0:
        fail("--prompts and --threads must be 0 (as the run had) or more")
    config = parse(["--resume", str(args.run)]).config
    asked = [f"--{key}={value}" for key, value in (("rollout.guidance", args.guidance), ("eval.splits", args.splits)) if value is not None]
    overrides = parse([*asked, "--config", str(args.run / "config.yaml")]).config if asked else config
    config = replace(config, rollout=overrides.rollout, eval=overrides.eval)
    adapters = sorted(p.parent for p in args.run.glob("adapters/*/adapter_model.safetensors"))
    if not adapters:
        fail(f"{args.run} has no adapters yet: let an arm finish first (--resume {args.run})")

    import torch

    torch.set_num_threads(args.threads or config.rollout.threads)
    count = args.prompts or config.eval.prompts
    results = {"base": measure(config, None, count), **{a.name: measure(config, a, count) for a in adapters}}
    print(table(results))
    out = args.out or args.run / "evaluation.json"
    facts = {"run": args.run.name, "seed": config.eval.seed, "guidance": config.rollout.guidance, "prompts": count}
    write_json(out, {**facts, "results": results})
    print(f"in {out}")


if __name__ == "__main__":
    main()
