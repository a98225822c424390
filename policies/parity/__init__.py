"""Recorded cases of the reference implementations, loaded as a release is and compared tensor by tensor.

    python -m policies.parity tests/golden/*

A case is a folder with one of these:

- ``config.json``, ``model.safetensors`` and ``cases.safetensors`` (inputs and what came out); README.md has the settings of the recorded
  runs, as JSON behind "Layout numbers:" and "Settings:";
- the tables of ``schedules.json``;
- the rows of ``prompts.json``;
- the parameters of released models, ``mmada_8b.json`` and the like.
"""

from collections.abc import Callable
from pathlib import Path

from policies.parity import amused, chameleon, keys, magvitv2, mmada, parallel, prompts, schedules, showo, showo2
from policies.parity.case import Case, Comparison, read_case

FAMILIES: dict[str, Callable[[Case], Comparison]] = {
    "schedules": schedules.compare,
    "prompts": prompts.compare,
    "released_keys": keys.compare,
    "magvitv2": magvitv2.compare,
    "amused_vq": amused.compare,
    "mmada": mmada.compare,
    "mmada_parallel_m": parallel.compare_m,
    "mmada_parallel_a": parallel.compare_a,
    "showo": showo.compare,
    "showo2": showo2.compare,
    "chameleon": chameleon.compare,
    "taming_vqgan": chameleon.compare_taming,
}

__all__ = ["FAMILIES", "Case", "Comparison", "compare", "read_case"]


def compare(directory: Path) -> Comparison:
    """Every tensor of the case in ``directory`` against ours. Raises ValueError where it is no case, or its weights do not load."""
    case = read_case(directory)
    found = FAMILIES[case.family](case)
    found.account(case.tensors)
    return found
