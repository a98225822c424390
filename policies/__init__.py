"""Unified multimodal policies. ``load`` gives one by name or directory.

policy = policies.load("scenes-mmada")
policy.sample("two red circles left of a blue square")[0].image
"""

import json
from pathlib import Path

from policies.base import Drawing, Draws, Policy, Sampling, StepTokens
from policies.mmada import POLICY_FILE, MMadaPolicy

FAMILIES: dict[str, type[MMadaPolicy]] = {"mmada": MMadaPolicy}
CHECKPOINTS = Path(__file__).parent / "checkpoints"

__all__ = ["CHECKPOINTS", "FAMILIES", "Drawing", "Draws", "Policy", "Sampling", "StepTokens", "load"]


def load(name: str | Path) -> Policy:
    """The policy of an embedded checkpoint (``"scenes-mmada"``) or of a directory that ``Policy.save`` wrote.

    Raises FileNotFoundError when there is no such checkpoint, ValueError for a family that is not known.
    """
    directory = Path(name) if (Path(name) / POLICY_FILE).exists() else CHECKPOINTS / name
    if not (directory / POLICY_FILE).exists():
        known = sorted(p.parent.name for p in CHECKPOINTS.glob(f"*/{POLICY_FILE}"))
        raise FileNotFoundError(f"no policy {str(name)!r}: neither a directory with a {POLICY_FILE} nor one of {known}")
    family = json.loads((directory / POLICY_FILE).read_text())["family"]
    if family not in FAMILIES:
        raise ValueError(f"{directory / POLICY_FILE}: unknown family {family!r}, known are {sorted(FAMILIES)}")
    return FAMILIES[family].load(directory)
