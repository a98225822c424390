"""The recipes of the embedded policies by the names of their families, that of the default policy first."""

from policies.embedded.chameleon import CHAMELEON_RECIPE
from policies.embedded.mmada import MMADA_RECIPE
from policies.embedded.recipe import FamilyRecipe
from policies.embedded.showo import SHOWO_RECIPE
from policies.embedded.showo2 import SHOWO2_RECIPE

RECIPES: dict[str, FamilyRecipe] = {
    "mmada": MMADA_RECIPE,
    "showo": SHOWO_RECIPE,
    "showo2": SHOWO2_RECIPE,
    "chameleon": CHAMELEON_RECIPE,
}
