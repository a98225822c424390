"""A run that is gone on with: what it says where nothing is left to do, and today's names where an older version began it."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from pararl.config import RENAMED
from pararl.evaluation.summary import Summary, table
from pararl.files import METRIC_ROW, atomic_path, read_lines, write_json
from pararl.readers import read_json, record_of

LAST = "curves.png"
"""What a run writes last: where it is, nothing is left to do."""


def finished(folder: Path, arms: Sequence[str], updates: int) -> Summary | None:
    """The summary of a run whose ``arms`` have all made ``updates``; None where something is left to do.

    Raises ConfigError for a summary that cannot be read."""
    file = folder / "summary.json"
    if not (file.exists() and (folder / LAST).exists()):
        return None
    remedy = f"remove it, and --resume {folder} writes it anew"
    summary: Summary = record_of(Summary.from_json, read_json(file, remedy), file, remedy)
    return summary if all(arm in summary.arms and summary.arms[arm].updates >= updates for arm in arms) else None


def closing(folder: Path, summary: Summary) -> str:
    """What a run says at its end."""
    pictures = [name for name in (LAST, "kinds.png") if (folder / name).exists()]
    return f"\n{table(summary)}\n\nin {folder}: {', '.join(('summary.json', *pictures))}, samples/, adapters/, metrics.jsonl"


def rename_arms(folder: Path) -> None:
    """Give what a run that an older version began has kept of its arms the names of today, so that it goes on from there.

    Each step is whole or not done, and may be repeated: a kill in between does no harm.
    """
    for was, now in RENAMED.items():
        for place in ("results", "checkpoints", "adapters", "rollouts"):
            # A writer that was killed between its two renames has left the only copy aside (pararl.files.latest).
            for old, new in ((was, now), (f".{was}.old", f".{now}.old")):
                if (folder / place / old).exists():
                    os.replace(folder / place / old, folder / place / new)
        rows = read_lines(folder / "metrics.jsonl", METRIC_ROW)
        if any(row["arm"] == was for row in rows):
            with atomic_path(folder / "metrics.jsonl") as part:
                lines = (json.dumps({**row, "arm": now if row["arm"] == was else row["arm"]}) for row in rows)
                part.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        ids = folder / "wandb" / "ids.json"
        if ids.exists() and was in (kept := read_json(ids, "delete it: W&B then shows a new run")):
            write_json(ids, {now if arm == was else arm: run for arm, run in kept.items()})
        result = folder / "results" / f"{was}.json"
        if result.exists():
            found = read_json(result, "remove it: the arm is then measured again")
            # The new one first: a kill in between leaves both, and this is done again.
            write_json(result.with_stem(now), {**found, "adapter": str(Path("adapters") / now)})
            result.unlink()
