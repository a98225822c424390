"""Chameleon: unmasked logits with and without padding, image tokens of pixels, greedy tokens; and the VQGAN of taming-transformers."""

import torch
from torch import Tensor

from policies.backbones.chameleon import Chameleon
from policies.image.chameleon import code_ids
from policies.image.chameleon_files import read_vq
from policies.parity.case import LOGITS, PIXELS, Case, Comparison
from policies.sampling.context import Context, write
from policies.weights import read_model

LOWEST = -1e4
"""Where a recording of transformers' own forward has the logits of image tokens."""


def compare(case: Case) -> Comparison:
    """All of a recorded Chameleon case. Rows of padding are left out: nobody reads them."""
    model, vq, t = read_model(Chameleon, case.directory).eval(), read_vq(case.directory).eval(), case.tensors
    found, ids = Comparison(), t["input_ids"]
    named = code_ids(case.config["vocabulary_map"])
    logits = model(ids)
    found.close("hidden", model.states(ids, *everything(ids)), t["hidden"], LOGITS)
    found.close("logits", logits, t["logits"], LOGITS)
    found.close("logits_masked", logits.index_fill(-1, named, LOWEST), t["logits_masked"], LOGITS)
    if "pad.logits" in t:
        real = t["attention_mask"].bool()
        found.close("pad.logits", model(t["pad.input_ids"], real)[real], t["pad.logits"][real], LOGITS)
    latents = vq.encode(t["pixels"])
    found.close("vq.z", latents, t["vq.z"], PIXELS)
    indices = vq.indices(latents)
    found.equal("vq.indices", indices.flatten(1), t["vq.indices"])
    tokens = vq.tokens(indices, named)
    found.equal("vq.bpe_ids", tokens, t["vq.bpe_ids"])
    shown = t["pix.input_ids"].masked_scatter(t["pix.input_ids"] == case.config["vocabulary_map"]["<image>"], tokens)
    found.close("pix.logits", model(shown), t["pix.logits"], LOGITS)
    for name, hidden in (("greedy_all.ids", named[:0]), ("greedy_text.ids", named)):
        if name in t:
            found.equal(name, greedy(model, ids[:1], t[name].shape[1], hidden), t[name])
    return found


def everything(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Who sees whom and the positions of causal sequences without padding."""
    places = torch.arange(ids.shape[1])
    return (places[:, None] >= places).expand(len(ids), -1, -1), places.expand(ids.shape)


def greedy(model: Chameleon, ids: Tensor, n: int, without: Tensor) -> Tensor:
    """The n most probable next tokens [1, n] behind one row of ids, one at a time with kept keys and values, but those of ``without``."""
    context = Context(model.states, 1, ids.device)
    last = context.read(ids)[:, -1]
    return write(context, last, lambda h: model.head(h).index_fill(-1, without, -torch.inf), torch.zeros(1, n), 0.0, ())[0]


def compare_taming(case: Case) -> Comparison:
    """Pixels to codes to pixels, and codes alone to pixels."""
    vq, found, t = read_vq(case.directory).eval(), Comparison(), case.tensors
    latents = vq.encode(t["pixels"])
    found.close("z", latents, t["z"], PIXELS)
    indices = vq.indices(latents)
    codes = vq.tokens(indices)
    found.equal("codes", codes, t["codes"])
    vectors = vq.codebook(codes, (indices.shape[1], indices.shape[2]))
    found.close("quant", vectors, t["quant"], PIXELS)
    found.close("recon", vq.decode(vectors), t["recon"], PIXELS)
    height, width = t["codes_in_hw"].tolist()
    found.close("decoded", vq.decode(vq.codebook(t["codes_in"], (height, width))), t["decoded"], PIXELS)
    return found
