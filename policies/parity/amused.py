"""The aMUSEd VQ tokenizer of MMaDA-Parallel-A: pixels to codes to pixels."""

from policies.image.amused import AmusedVQ
from policies.parity.case import PIXELS, Case, Comparison


def compare(case: Case) -> Comparison:
    """Latents, codes and pixels. Recorded pixels are in [0, 1], ours in [-1, 1]."""
    model, found, t = AmusedVQ.from_pretrained(case.directory).eval(), Comparison(), case.tensors
    pixels = t["pixels"] * 2 - 1
    found.close("latents", model.vq.encode(t["pixels"]).latents, t["latents"], PIXELS)
    found.equal("codes", model.get_code(pixels), t["codes"])
    grid = (pixels.shape[2] // model.factor, pixels.shape[3] // model.factor)
    found.close("recon", (model.decode_code(t["codes"], grid) + 1) / 2, t["recon"], PIXELS)
    height, width = t["codes_in_hw"].tolist()
    found.close("decoded", (model.decode_code(t["codes_in"], (height, width)) + 1) / 2, t["decoded"], PIXELS)
    return found
