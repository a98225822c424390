"""Where the image tokenizer of Chameleon lies: in a directory of its own, in one of taming's, or within a released backbone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor
from transformers.models.chameleon.configuration_chameleon import ChameleonVQVAEConfig

from pararl.policy_files import REMEDY
from pararl.readers import read_json, read_yaml, record_of, tensor_kinds
from policies.image.chameleon import ChameleonVQ
from policies.weights import load_state, unpickled

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
        return read_json(directory / "config.json", REMEDY)
    if (directory / "vqgan.yaml").exists():
        file = directory / "vqgan.yaml"
        found: dict[str, Any] = record_of(lambda raw: {**raw["model"]["params"]}, read_yaml(file, REMEDY), file, REMEDY)
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
        tensor_kinds(file, REMEDY)
        # Tensor by tensor: a backbone is 14 GB, of which the tokenizer is a hundredth.
        with safe_open(file, "pt") as opened:
            yield from ((name, opened.get_tensor(name)) for name in opened.keys() if name.startswith(prefix))  # noqa: SIM118
        return
    yield from ((name, value) for name, value in unpickled(file, within="state_dict").items() if name.startswith(prefix))
