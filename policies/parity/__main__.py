"""``python -m policies.parity DIR [DIR ...]``: JSON of the largest difference per tensor; exits 1 where one is beyond its tolerance."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from policies.parity import compare


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m policies.parity", description="Compare recorded cases with this implementation.")
    parser.add_argument("cases", type=Path, nargs="+", metavar="DIR", help="folder of a recorded case")
    args = parser.parse_args()
    found, fine = {}, True
    for directory in args.cases:
        try:
            with torch.no_grad():
                comparison = compare(directory)
        except (ValueError, OSError) as error:
            print(f"python -m policies.parity: error: {error}", file=sys.stderr)
            raise SystemExit(2) from error
        found[str(directory)] = {"ok": comparison.ok, **asdict(comparison)}
        fine = fine and comparison.ok
    print(json.dumps(found, indent=1))
    raise SystemExit(0 if fine else 1)


if __name__ == "__main__":
    main()
