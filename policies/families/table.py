"""The families of policies by name."""

from policies.families.chameleon import CHAMELEON
from policies.families.family import Family
from policies.families.mmada import MMADA
from policies.families.parallel_a import MMADA_PARALLEL_A
from policies.families.showo import SHOWO
from policies.families.showo2 import SHOWO2

FAMILIES: dict[str, Family] = {family.name: family for family in (MMADA, MMADA_PARALLEL_A, SHOWO, SHOWO2, CHAMELEON)}
