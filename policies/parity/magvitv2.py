"""MAGVIT-v2: pixels to codes to pixels, at reduced and at released size."""

import hashlib
import math
from typing import Any

import torch
from torch import Tensor

from policies.image.magvitv2 import MAGVITv2, MAGVITv2Config
from policies.parity.case import PIXELS, PIXELS_FULL, Case, Comparison
from policies.weights import read_model


def compare(case: Case) -> Comparison:
    """Each of the recorded inputs ``x.pixels``, or ``x.codes`` alone, against what was recorded for it."""
    full = "salt" in case.config
    model = by_recipe(case.config) if full else read_model(MAGVITv2, case.directory)
    tolerance = PIXELS_FULL if full else PIXELS
    found, t = Comparison(), case.tensors
    for name in sorted({key.partition(".")[0] for key in t}):
        if f"{name}.pixels" in t:
            pixels = t[f"{name}.pixels"]
            z, shape = model.encoder(pixels), (pixels.shape[-2] // model.factor, pixels.shape[-1] // model.factor)
            found.close(f"{name}.z", z, t[f"{name}.z"], tolerance)
            # The sign of a number nearer to 0 than two implementations agree is no property of the model.
            sure = (t[f"{name}.z"].abs() > tolerance).all(1).flatten(1)
            codes = t[f"{name}.codes"]
            found.equal(f"{name}.codes", model.get_code(pixels)[sure], codes[sure])
            if f"{name}.encode_zq" in t:
                found.close(f"{name}.encode_zq", model.quantize.decode(codes.unflatten(1, shape)), t[f"{name}.encode_zq"], 0.0)
            found.close(f"{name}.recon", model.decode_code(codes, shape), t[f"{name}.recon"], tolerance)
        if f"{name}.decoded" in t:
            found.close(f"{name}.decoded", model.decode_code(t[f"{name}.codes"]), t[f"{name}.decoded"], tolerance)
    return found


def by_recipe(config: dict[str, Any]) -> MAGVITv2:
    """The released architecture with weights that are a function of their names. Raises ValueError where they are not the recorded ones."""
    model = MAGVITv2(MAGVITv2Config()).eval()
    state = {name: _weight(name, value, config["salt"]) for name, value in model.state_dict().items()}
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode() + state[name].float().contiguous().numpy().tobytes())
    if digest.hexdigest() != config["weights_sha256"]:
        raise ValueError(f"the weights made for salt {config['salt']!r} are not those recorded: this torch draws other random numbers")
    model.load_state_dict(state)
    return model


def _weight(name: str, value: Tensor, salt: str) -> Tensor:
    if name.startswith("quantize."):
        return value
    seed = int.from_bytes(hashlib.sha256((salt + name).encode()).digest()[:4], "big")
    noise = torch.randn(value.shape, generator=torch.Generator().manual_seed(seed))
    if ".norm" in name or "norm_out" in name:
        return 1 + 0.1 * noise if name.endswith("weight") else 0.1 * noise
    return 0.05 * noise if name.endswith("bias") else noise * (1 / math.sqrt(value[0].numel()))
