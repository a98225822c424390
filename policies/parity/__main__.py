"""``python -m policies.parity DIR [DIR ...]``: JSON of the largest difference per tensor; exits 1 where one is beyond its tolerance.

A case that cannot be read or run has an ``error`` instead, and the exit status is 2. A difference of null is infinite: another shape, not a
number, or nothing to compare.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from policies.parity import compare


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m policies.parity", description="Compare recorded cases with this implementation.")
    parser.add_argument("cases", type=Path, nargs="+", metavar="DIR", help="folder of a recorded case")
    args = parser.parse_args()
    found: dict[str, Any] = {}
    for directory in args.cases:
        try:
            with torch.no_grad():
                comparison = compare(directory)
        except (ValueError, OSError, KeyError, IndexError, RuntimeError, SafetensorError) as error:
            message = f"{type(error).__name__}: {error}" if not isinstance(error, (ValueError, OSError)) else str(error)
            print(f"python -m policies.parity: error: {directory}: {message}", file=sys.stderr)
            found[str(directory)] = {"ok": False, "error": message}
        else:
            found[str(directory)] = {"ok": comparison.ok, **asdict(comparison)}
    print(json.dumps(_finite(found), indent=1, allow_nan=False))
    raise SystemExit(2 if any("error" in case for case in found.values()) else 0 if all(case["ok"] for case in found.values()) else 1)


def _finite(value: Any) -> Any:
    """The same with null for an infinite difference, which JSON does not have."""
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in value.items()}
    return None if value == float("inf") else value


if __name__ == "__main__":
    main()
