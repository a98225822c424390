"""Names and shapes of the parameters of released models, against ours at released size; nothing is computed."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from policies.backbones.llada import MMadaConfig, MMadaModelLM
from policies.backbones.showo import Showo, ShowoConfig
from policies.backbones.showo2 import Showo2
from policies.backbones.showo2_config import Showo2Config
from policies.image.magvitv2 import MAGVITv2, MAGVITv2Config
from policies.parity.case import Case, Comparison

MODELS: dict[str, Callable[[], nn.Module]] = {
    "magvitv2": lambda: MAGVITv2(MAGVITv2Config()),
    "mmada_8b": lambda: MMadaModelLM(MMadaConfig()),
    "showo_1.3b": lambda: Showo(ShowoConfig()),
    "showo2_1.5b": lambda: Showo2(Showo2Config()),
}
"""Our models with the sizes that they have by default, by the name of the recorded file."""


def compare(case: Case) -> Comparison:
    """Every file of the case: how many names one side alone has, or has in another shape."""
    found = Comparison()
    for name, listed in case.config.items():
        if name not in MODELS:
            found.unread.append(name)
            continue
        # Names and shapes of models of 8 billion parameters, without their memory.
        with torch.device("meta"):
            ours: dict[str, Tensor] = MODELS[name]().state_dict()
        shapes = {key: list(value.shape) for key, value in ours.items()}
        keys = sorted(listed.keys() | shapes.keys())
        found.equal(name, [int(key in listed and shapes.get(key) == listed[key][0]) for key in keys], [1] * len(keys))
    return found
