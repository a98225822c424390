"""Write prompts of a split as JSON lines: ``python -m pararl.scenes --split id --count 100 --seed 0 --out prompts.jsonl``."""

import argparse
import sys

from pararl.scenes import TASKS, prompt, splits, write_jsonl


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status, 2 for a file that cannot be written."""
    parser = argparse.ArgumentParser(prog="python -m pararl.scenes", description="Write scene prompts as GenEval-compatible JSON lines.")
    parser.add_argument("--split", choices=splits("edit"), default="id", help="which prompts; ood_ops has two edits (default: id)")
    parser.add_argument("--count", type=_at_least_one, default=100, help="how many (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the prompts (default: 0)")
    parser.add_argument("--task", choices=TASKS, default="t2i", help="task of the prompts (default: t2i)")
    parser.add_argument("--form", choices=("text", "edit"), default="text", help="interleaved: description, or image and instruction")
    parser.add_argument("--out", required=True, help="file to write")
    given = parser.parse_args(arguments)
    if given.form == "edit" and given.task != "interleaved":
        parser.error("--form edit is for --task interleaved")
    if given.split not in splits(given.task, given.form):
        parser.error(f"task {given.task} has no split {given.split}: use one of {', '.join(splits(given.task, given.form))}")
    try:
        write_jsonl(given.out, (prompt(given.split, index, given.seed, given.task, given.form) for index in range(given.count)))
    except OSError as error:
        print(f"cannot write {given.out}: {error.strerror}", file=sys.stderr)
        return 2
    print(f"{given.count} prompts of {given.split} written to {given.out}")
    return 0


def _at_least_one(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


if __name__ == "__main__":
    sys.exit(main())
