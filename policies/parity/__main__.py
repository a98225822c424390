"""``python -m policies.parity DIR [DIR ...]``: one line a case; exits 1 where a difference is beyond its tolerance.

A case that cannot be read or run is an error with exit status 2, and so is no case at all. What is no folder is passed over. ``--json``: in
place of the lines the difference of every tensor, and why others were left out; an error is ``error`` of its case. A difference of null is
infinite: another shape, not a number, or nothing to compare.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from policies.parity import Comparison, compare


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m policies.parity", description="Compare recorded cases with this implementation.")
    parser.add_argument("cases", type=Path, nargs="+", metavar="DIR", help="folder of a recorded case")
    parser.add_argument("--json", action="store_true", help="print the difference of every tensor, as JSON")
    args = parser.parse_args()
    found: dict[str, Comparison | str] = {}
    for directory in args.cases:
        if directory.is_file():
            # With --json standard output holds JSON alone.
            print(f"{directory}: passed over, it is no folder", file=sys.stderr if args.json else sys.stdout)
            continue
        found[str(directory)] = result = attempt(directory)
        if isinstance(result, str):
            print(f"python -m policies.parity: error: {directory}: {result}", file=sys.stderr)
        elif not args.json:
            print(f"{directory}: {line(result)}", flush=True)
    if args.json:
        print(json.dumps({name: entry(result) for name, result in found.items()}, indent=1, allow_nan=False))
    if not found:
        print("python -m policies.parity: error: no folder of a recorded case", file=sys.stderr)
    raise SystemExit(status(found))


def attempt(directory: Path) -> Comparison | str:
    """What comparing a case found, or why it cannot be read or run."""
    try:
        with torch.no_grad():
            return compare(directory)
    except (ValueError, OSError) as error:
        return str(error)
    except (KeyError, IndexError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        return f"{type(error).__name__}: {error}"


def status(found: Mapping[str, Comparison | str]) -> int:
    """Exit status of all cases."""
    if not found or any(isinstance(result, str) for result in found.values()):
        return 2
    return 0 if all(isinstance(result, Comparison) and result.ok for result in found.values()) else 1


def line(found: Comparison) -> str:
    """A case in words: whether it holds, the tensor that is furthest from the recorded one, and how many were compared."""
    parts = ["ok" if found.ok else "NOT OK", *(_worst(found) if found.tensors else ["nothing compared"])]
    parts.append(f"{len(found.tensors)} compared, {len(found.left_out)} left out")
    if found.unread:
        parts.append(f"not looked at: {', '.join(found.unread)}")
    return "; ".join(parts)


def _worst(found: Comparison) -> Iterator[str]:
    """The difference that is largest as a share of its tolerance. Ids have none: they are equal, or that much is wrong."""
    shares = {name: _share(**tensor) for name, tensor in found.tensors.items()}
    name = max(shares, key=lambda name: (shares[name], found.tensors[name]["difference"]))
    difference, tolerance = found.tensors[name]["difference"], found.tensors[name]["tolerance"]
    if shares[name] == 0:
        yield "all equal"
    elif difference == float("inf"):
        yield f"{name} has another shape, or is not a number"
    elif tolerance == 0:
        yield f"{name} differs, by {difference:g} where it must be equal"
    else:
        yield f"largest difference {difference:.1e} of {tolerance:g} ({shares[name]:.2g} of its tolerance) in {name}"


def _share(difference: float, tolerance: float) -> float:
    return difference / tolerance if tolerance else float("inf") if difference else 0.0


def entry(result: Comparison | str) -> dict[str, Any]:
    """A case as JSON."""
    found = {"ok": False, "error": result} if isinstance(result, str) else {"ok": result.ok, **asdict(result)}
    return {name: _finite(value) for name, value in found.items()}


def _finite(value: Any) -> Any:
    """The same with null for an infinite difference, which JSON does not have."""
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in value.items()}
    return None if value == float("inf") else value


if __name__ == "__main__":
    main()
