"""Six axes of one output, after ParaBench (MMaDA-Parallel, arXiv 2511.09611), as exact numbers where it asks a model to judge."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pararl.scenes.changes import read_changes
from pararl.scenes.edit_verify import UNREADABLE, judge
from pararl.scenes.pixels import Parsed
from pararl.scenes.plans import parse_plan
from pararl.scenes.scoring import cells_of
from pararl.scenes.spec import read_spec
from pararl.scenes.verify import align, verify
from pararl.scenes.world import CELLS, Scene


@dataclass(frozen=True, slots=True)
class Axes:
    """Each in [0, 1], 1 is best; None where the task has no such axis."""

    text_quality: float | None
    """1 when the plan parses, else 0."""
    text_alignment: float | None
    """How well the scene that the plan describes satisfies the prompt: its soft score; 1 exactly when it does."""
    image_quality: float
    """Share of readable cells."""
    image_alignment: float
    """How well the image satisfies the prompt: the soft score, for edits their success."""
    image_consistency: float | None
    """Edits: share of the cells that had to stay and did."""
    output_alignment: float | None
    """Plan against image, right or not: F1 over placed objects."""


def axes(spec: Mapping[str, Any], seen: Scene | Parsed, plan: str | None = None) -> Axes:
    """The axes of an output with an image (tasks ``t2i``, ``edit`` and ``interleaved``), and with the ``plan`` in its text, if any.

    Raises ValueError for a malformed spec.
    """
    cells = cells_of(seen)
    planned = None if plan is None else parse_plan(plan)
    consistency: float | None = None
    if "edit" in spec:
        source, made = read_changes(spec)
        outcome = judge(source, made, cells)
        aligned, consistency = outcome.success, outcome.consistency
        meant = judge(source, made, cells_of(planned)).value if planned else 0.0
    else:
        need = read_spec(spec)
        aligned = verify(need, seen).value
        meant = verify(need, planned).value if planned else 0.0
    quality = 1 - cells.count(UNREADABLE) / CELLS
    if plan is None:
        return Axes(None, None, quality, aligned, consistency, None)
    return Axes(float(planned is not None), meant, quality, aligned, consistency, _agreement(seen, planned))


def _agreement(seen: Scene | Parsed, planned: Scene | None) -> float:
    if planned is None:
        return 0.0
    f1, equal, _ = align(seen, planned)
    return float(equal) if f1 is None else f1
