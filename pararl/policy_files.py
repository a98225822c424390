"""What the files of a policy tell of it, read without torch: its settings, its family, and the sizes of its image tokenizer."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pararl.config import ConfigError
from pararl.releases import RELEASES, release_of


def settings_of(name: str, directory: Path) -> Mapping[str, Any] | None:
    """The settings of a policy: those of the ``policy.json`` in its directory, else those of its release; None where there are none.

    Raises ConfigError for a ``policy.json`` that has none."""
    found = description(name, directory)
    if found is None:
        return None
    settings = found.get("settings")
    if not isinstance(settings, dict) or not settings:
        raise ConfigError(f"policy.name: {directory / 'policy.json'} has no settings (set --policy.name)")
    return settings


def family_of(name: str, directory: Path) -> str | None:
    """The family of a policy; None where nothing says."""
    return (description(name, directory) or {}).get("family")


def description(name: str, directory: Path) -> Mapping[str, Any] | None:
    """What ``policy.json`` says, or would say of a release; None where nothing does."""
    file, release = directory / "policy.json", release_of(name)
    if file.is_file():
        return read_json(file)
    return read_json(RELEASES[release]) if release else None


@dataclass(frozen=True, slots=True)
class ImageShape:
    """What the ``config.json`` of an image tokenizer says of it."""

    factor: int
    """Pixels per token along each side."""
    codes: int
    """0 where an image is continuous."""
    channels: int
    """Of the decoder's features at full resolution."""


def image_shape(directory: Path) -> ImageShape:
    """Of the aMUSEd tokenizer, the Wan VAE, a small VAE of ours, Chameleon's VQGAN or the MAGVIT-v2 in a directory; sizes that one of these
    two does not name are the released ones."""
    raw = read_json(directory / "config.json")
    if raw.get("_class_name") == "VQModel":
        widths = raw["block_out_channels"]
        return ImageShape(2 ** (len(widths) - 1), raw["num_vq_embeddings"], widths[0])
    if raw.get("_class_name") == "AutoencoderKLWan":
        widths = [(raw.get("decoder_base_dim") or raw["base_dim"]) * times for times in raw["dim_mult"]]
        return ImageShape(2 ** (len(widths) - 1) * (raw.get("patch_size") or 1), 0, widths[0])
    if raw.get("model_type") == "continuous_vae":
        levels, decoder = raw["encoder"], raw["decoder"]
        return ImageShape(2 ** (len(levels["ch_mult"]) - 1), 0, decoder["ch"] * decoder["ch_mult"][0])
    if raw.get("model_type") == "chameleon_vqgan":
        return ImageShape(
            2 ** (len(raw.get("channel_multiplier", range(5))) - 1), raw.get("num_embeddings", 8192), raw.get("base_channels", 128)
        )
    encoder, decoder, quantize = (raw.get(part) or {} for part in ("encoder", "decoder", "quantize"))
    channels = decoder.get("ch", 128) * decoder.get("ch_mult", [1])[0]
    return ImageShape(2 ** (len(encoder.get("ch_mult", range(5))) - 1), 2 ** quantize.get("codebook_dim", 13), channels)


def weight_bytes(model: Mapping[str, Any]) -> int:
    """From a ``config.json`` of transformers, which named the dtype otherwise before its fifth version; float32 where it has none."""
    return {"bfloat16": 2, "float16": 2}.get(model.get("dtype") or model.get("torch_dtype") or "", 4)


def read_json(file: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"policy.name: {file} is not JSON: {error} (set --policy.name)") from error
    if not isinstance(found, dict):
        raise ConfigError(f"policy.name: {file} is not a JSON object (set --policy.name)")
    return found
