"""Show-o2: masks, logits and velocities of whole sequences; the ODE and greedy text as they are sampled here, behind a prefix read once."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pararl.readers import read_json
from policies.attention.masks import at_places, omni
from policies.backbones.showo2 import Showo2
from policies.backbones.showo2_config import Showo2Config
from policies.backbones.showo2_state import Prefix
from policies.image.codec import patched
from policies.parity.case import LOGITS, Case, Comparison
from policies.sampling.flow import guided, ode, time_grid
from policies.weights import load_exactly

TRAJECTORY, LOSSES, TIMES = 1e-3, 1e-4, 1e-6
SECTIONS = {"llm_config": "qwen2_config.json", "clip_config": "siglip_vision_config.json", "head_config": "diffusion_head_config.json"}
"""Sizes that a release has elsewhere, in files beside the ``config.json`` of a reduced model."""


def read(directory: Path) -> Showo2:
    """The model of a case. Raises ValueError where its weights are not exactly those of its configuration."""
    config = dict(read_json(directory / "config.json"))
    for section, name in SECTIONS.items():
        if (directory / name).exists():
            config[section] = read_json(directory / name)
    model = Showo2(Showo2Config(**config)).eval()
    load_exactly(model, directory, ("model.safetensors",))
    return model


def compare(case: Case) -> Comparison:
    """All of a recorded Show-o2 case."""
    model, found, t = read(case.directory), Comparison(), case.tensors
    for name, inputs in (("t2i", "t2i"), ("multi", "multi"), ("idle", "multi")):
        if f"{name}.modality_positions" in t:
            _sequences(model, found, t, name, inputs)
    if "t2i.time_embed" in t:
        found.close("t2i.time_embed", model.time_embed(t["t2i.t"]), t["t2i.time_embed"], LOGITS)
    if any(name.startswith("train.") for name in t):
        _losses(model, found, t)
    runs = sorted({key.partition(".")[0] for key in t if key.startswith("ode_")})
    if not any([_image(case, model, found, name) for name in runs]):
        found.left_out |= {f"ode.{name}_null": "no run is guided" for name in ("text_tokens", "modality_positions")}
    _text(case, model, found)
    return found


def _sequences(model: Showo2, found: Comparison, t: dict[str, Tensor], name: str, inputs: str) -> None:
    """Whole sequences with images. An idle slot (length 0) is no image. But the reference writes its embedded time to where the slot says,
    which is position 0 (done here by hand). It gives no velocity of the images behind it in the row."""
    ids, places, times = t[f"{inputs}.text_tokens"], t[f"{name}.modality_positions"], t[f"{inputs}.t"]
    there = places[..., 1] > 0
    given = there.cumprod(1).bool()[there]
    blocks = at_places(places, ids.shape[1])
    latents, own = t[f"{inputs}.latents"][there.flatten()], times[there.flatten()]
    mask = omni(blocks)
    x = model.embed(ids, blocks, latents, own)
    for row, slot in (~there).nonzero().tolist():
        x[row, places[row, slot, 0]] = model.time_token(times[row * places.shape[1] + slot][None])[0]
    hidden = model.states(x, mask)
    if f"{name}.mask_allowed" in t:
        found.equal(f"{name}.mask_allowed", mask.dense(), t[f"{name}.mask_allowed"].bool())
    found.close(f"{name}.logits", model.head(hidden), t[f"{name}.logits"], LOGITS)
    velocity = model.velocity(hidden, mask, own, _grid(model, latents))[given]
    found.close(f"{name}.velocity", velocity, t[f"{name}.velocity"], LOGITS)


def _grid(model: Showo2, latents: Tensor) -> tuple[int, int]:
    return latents.shape[-2] // model.config.patch_size, latents.shape[-1] // model.config.patch_size


def _losses(model: Showo2, found: Comparison, t: dict[str, Tensor]) -> None:
    """Next-token cross-entropy, and the squared error of the velocity where an image is wanted, over the sequences ``t2i``."""
    ids, labels = t["t2i.text_tokens"], t["train.text_labels"]
    blocks = at_places(t["t2i.modality_positions"], ids.shape[1])
    logits, velocity = model(ids, blocks, t["t2i.latents"], t["t2i.t"])
    text = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    patch = model.config.patch_size
    error = (patched(velocity, patch) - patched(t["train.image_labels"], patch)).square()
    wanted = t["train.image_masks"][blocks > 0].view(len(error), -1)[:, 1:].bool()  # without the column of the time
    found.close("train.losses", torch.stack((text, error[wanted].mean())), t["train.losses"], LOSSES)


def _image(case: Case, model: Showo2, found: Comparison, name: str) -> bool:
    """One run of the ODE; whether it is guided. The prompts end where their images begin, in other columns of every row: they are padded
    on the left."""
    t, settings = case.tensors, case.run("ode").get(name.removeprefix("ode_"))
    if not isinstance(settings, dict):
        raise ValueError(f"{case.directory}: README.md gives no settings of the run {name!r} in 'ode', which its tensors need")
    scale, noise = settings["guidance_scale"], t["ode.noise"]
    branches = ("", "_null") if scale > 0 else ("",)
    prompts = [
        row[:first]
        for branch in branches
        for row, first in zip(t[f"ode.text_tokens{branch}"], t[f"ode.modality_positions{branch}"][:, 0, 0].tolist(), strict=True)
    ]
    width = max(map(len, prompts))
    ids = torch.stack([F.pad(row, (width - len(row), 0)) for row in prompts])
    real = torch.arange(width) >= width - torch.tensor([len(row) for row in prompts])[:, None]
    canvas = model.canvas(model.read(ids, real=real), _grid(model, noise))

    def velocity(states: Tensor, times: Tensor) -> Tensor:
        copies = len(branches)
        found = model.velocity_after(canvas, states.repeat(copies, 1, 1, 1), times.repeat(copies)).chunk(copies)
        return guided(found[0], found[1], scale) if copies == 2 else found[0]

    times = time_grid(settings["num_steps"], settings["time_shifting_factor"] or 1.0)
    found.close(f"{name}.t_calls", times[:-1], t[f"{name}.t_calls"], TIMES)
    found.close(f"{name}.trajectory", ode(velocity, noise, times), t[f"{name}.trajectory"], TRAJECTORY)
    return len(branches) == 2


def _text(case: Case, model: Showo2, found: Comparison) -> None:
    t = case.tensors
    if "lm.input_ids" in t:
        ids = t["lm.input_ids"]
        if "lm.logits" in t:
            found.close("lm.logits", model(ids)[0], t["lm.logits"], LOGITS)
        if "lm.generated_ids" in t:
            found.equal("lm.generated_ids", _greedy(case, model, model.read(ids[:1])), t["lm.generated_ids"])
    if "mmu.text_tokens" in t:
        ids, places, latents = t["mmu.text_tokens"], t["mmu.modality_positions"], t["mmu.latents"]
        given: dict[str, Any] = {"blocks": at_places(places, ids.shape[1]), "latents": latents, "times": torch.ones(len(latents))}
        if "mmu.logits" in t:
            found.close("mmu.logits", model.head(model.read(ids, **given).hidden), t["mmu.logits"], LOGITS)
        if "mmu.generated_ids" in t:
            first = model.read(ids, **given).take(torch.tensor([0]))
            found.equal("mmu.generated_ids", _greedy(case, model, first), t["mmu.generated_ids"])


def _greedy(case: Case, model: Showo2, prefix: Prefix) -> list[int]:
    """Most probable tokens behind the prefix of one row, to the first end of text or begin of an image, which counts."""
    special, ids = case.run("special"), list[int]()
    while len(ids) < case.setting("new_tokens") and not {special["eos"], special["boi"]} & set(ids):
        ids.append(int(model.head(prefix.hidden[0, -1]).argmax()))
        prefix = model.read(torch.tensor([ids[-1:]]), after=prefix)
    return ids
