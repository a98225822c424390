"""Where the image tokenizer of Chameleon lies: in a directory of its own, in one of taming's, or within a released backbone."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import safe_open
from torch import Tensor
from transformers.models.chameleon.configuration_chameleon import ChameleonVQVAEConfig

from policies.image.chameleon import ChameleonVQ
from policies.weights import load_state

FILES = ("model.safetensors", "model-*.safetensors", "pytorch_model*.bin", "*.ckpt")
"""What weights are called, the first that there is: of transformers in one file or in shards, and of taming-transformers."""
WITHIN = "model.vqmodel."
"""What stands before the names of the image tokenizer's weights within a backbone."""
TAMING = {
    "ch": "base_channels",
    "ch_mult": "channel_multiplier",
    "z_channels": "latent_channels",
    "double_z": "double_latent",
}
"""Sizes as taming-transformers calls them (``ddconfig``), and as transformers does."""
NOT_OURS = ("ckpt_path", "lossconfig", "out_ch", "image_key", "monitor", "colorize_nlabels", "remap", "sane_index_shape")


def read_vq(directory: Path) -> ChameleonVQ:
    """The image tokenizer in a directory, with a decoder where the weights of one are there. Raises ValueError where weights are not those
    of the model exactly."""
    raw = described(directory)
    within = "vq_config" in raw
    state = dict(weights(directory, WITHIN if within else ""))
    sizes = {**sizes_of(raw["vq_config"] if within else raw), "decoder": any(name.startswith("decoder.") for name in state)}
    model = ChameleonVQ(ChameleonVQVAEConfig(**sizes))
    load_state(model, state, directory)
    return model


def described(directory: Path) -> dict[str, Any]:
    """What a directory says of its image tokenizer: transformers' ``config.json``, or the ``vqgan.yaml`` beside Chameleon's ``vqgan.ckpt``.

    Raises FileNotFoundError where there is neither.
    """
    if (directory / "config.json").exists():
        found: dict[str, Any] = json.loads((directory / "config.json").read_text())
        return found
    if (directory / "vqgan.yaml").exists():
        found = yaml.safe_load((directory / "vqgan.yaml").read_text())["model"]["params"]
        return found
    raise FileNotFoundError(f"{directory} holds no image tokenizer: neither a config.json nor a vqgan.yaml")


def sizes_of(raw: dict[str, Any]) -> dict[str, Any]:
    """The sizes of a tokenizer under transformers' names, whosever they were."""
    found = {**raw, **raw.get("ddconfig", {}), "num_embeddings": raw.get("n_embed", raw.get("num_embeddings", 8192))}
    found = {TAMING.get(name, name): value for name, value in found.items() if name not in ("ddconfig", "n_embed", *NOT_OURS)}
    return {**found, "dtype": None, "model_type": ChameleonVQVAEConfig.model_type}


def weights(directory: Path, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Weights whose names begin with ``prefix``, without it, from the files of a directory; float32. Files of torch's are read as weights
    alone. Raises FileNotFoundError where there is no file."""
    files = next((found for form in FILES if (found := sorted(directory.glob(form)))), None)
    if files is None:
        raise FileNotFoundError(f"{directory} holds no weights: neither of {', '.join(FILES)}")
    for file in files:
        for name, value in read_file(file, prefix):
            yield name.removeprefix(prefix), value.float() if value.is_floating_point() else value


def read_file(file: Path, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Weights of one file whose names begin with ``prefix``."""
    if file.suffix == ".safetensors":
        with safe_open(file, "pt") as opened:
            yield from ((name, opened.get_tensor(name)) for name in opened.keys() if name.startswith(prefix))  # noqa: SIM118
        return
    held = torch.load(file, weights_only=True, map_location="cpu", mmap=True)
    yield from ((name, value) for name, value in held.get("state_dict", held).items() if name.startswith(prefix))
