"""The families of policies by name."""

from policies.families.chameleon import CHAMELEON
from policies.families.family import Family
from policies.families.mmada import MMADA
from policies.families.parallel_a import MMADA_PARALLEL_A
from policies.families.showo import SHOWO
from policies.families.showo2 import SHOWO2
from policies.sources import POLICY_FILE, Parts

FAMILIES: dict[str, Family] = {family.name: family for family in (MMADA, MMADA_PARALLEL_A, SHOWO, SHOWO2, CHAMELEON)}


def family_of(parts: Parts) -> Family:
    """The family of a policy. Raises ValueError, naming the file that says it, for one that is not known."""
    if parts.family not in FAMILIES:
        raise ValueError(f"{parts.backbone / POLICY_FILE}: unknown family {parts.family!r}, known are {sorted(FAMILIES)}")
    return FAMILIES[parts.family]
