"""The families of policies by name."""

from policies.base import Policy
from policies.families.mmada import MMadaPolicy
from policies.families.parallel_a import ParallelAPolicy
from policies.families.showo import ShowoPolicy
from policies.families.showo2 import Showo2Policy

FAMILIES: dict[str, type[Policy]] = {kind.family: kind for kind in (MMadaPolicy, ParallelAPolicy, ShowoPolicy, Showo2Policy)}
