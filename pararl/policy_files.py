"""What the files of a policy tell of it, read without torch: its settings, its family, and the sizes of its image tokenizer."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pararl.config import Config
from pararl.readers import FileError, read_json, record_of, weight_files
from pararl.releases import EMBEDDED, RELEASES, release_of
from pararl.types import TASKS

REMEDY = "copy the policy again, or set --policy.name"
"""What helps against a file of a policy that cannot be read."""
COUNTS = ("prompt_tokens", "text_tokens", "text_block", "answer_tokens", "answer_block", "steps")
"""Settings that are whole numbers of at least 1."""

RELEASED_WEIGHTS = ("pytorch_model.safetensors", "diffusion_pytorch_model.safetensors", "model.safetensors", "pytorch_model.bin")
"""What the weights of a released backbone are called, first Show-o's, whose library has a name of its own."""
IMAGE_WEIGHTS = ("model.safetensors", "pytorch_model.safetensors", "diffusion_pytorch_model.safetensors", "pytorch_model.bin")
"""What the weights of an image tokenizer are called, by us and by those who release them."""


def policy_directory(config: Config) -> Path:
    """Where the policy's files lie."""
    return Path(config.policy.name) if Path(config.policy.name).is_dir() else EMBEDDED / config.policy.name


def settings_of(name: str, directory: Path) -> Mapping[str, Any] | None:
    """The settings of a policy: those of the ``policy.json`` in its directory, else those of its release; None where there are none.

    Raises FileError for a ``policy.json`` that has none, or one that cannot be read."""
    found = description(name, directory)
    return None if found is None else checked_settings(found, directory / "policy.json")


def checked_settings(found: Mapping[str, Any], file: Path) -> Mapping[str, Any]:
    """The settings in the content of a ``policy.json``. Raises FileError for one without, and for a value that cannot be."""
    settings = found.get("settings")
    if not isinstance(settings, dict) or not settings:
        raise FileError(file, "has no settings", REMEDY)
    wrong = [name for name in COUNTS if name in settings and not _count(settings[name])]
    grid, tasks = settings.get("grid", (1, 1)), settings.get("tasks", TASKS)
    if not (isinstance(grid, list | tuple) and len(grid) == 2 and all(map(_count, grid))):
        wrong.append("grid")
    if not (isinstance(tasks, list | tuple) and tasks and all(task in TASKS for task in tasks)):
        wrong.append("tasks")
    if not (isinstance(text := settings.get("dialogue", "{text}"), str) and "{text}" in text):
        wrong.append("dialogue")
    specials = settings.get("specials", {})
    if not (isinstance(specials, dict) and all(type(token) is int for token in specials.values())):
        wrong.append("specials")
    if wrong:
        raise FileError(file, f"has settings that cannot be: {', '.join(f'{name} {settings[name]!r}' for name in wrong)}", REMEDY)
    return settings


def _count(value: Any) -> bool:
    return type(value) is int and value >= 1


def family_of(name: str, directory: Path) -> str | None:
    """The family of a policy; None where nothing says."""
    return (description(name, directory) or {}).get("family")


def description(name: str, directory: Path) -> Mapping[str, Any] | None:
    """What ``policy.json`` says, or would say of a release; None where nothing does."""
    file, release = directory / "policy.json", release_of(name)
    if file.is_file():
        return read_json(file, REMEDY)
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
    """Of the aMUSEd tokenizer, the Wan VAE, a small VAE of ours, Chameleon's VQGAN or the MAGVIT-v2 in a directory. Sizes that
    one of these two does not name are the released ones. Raises FileError for one that cannot be read."""
    file = directory / "config.json"
    found: ImageShape = record_of(_image_shape, read_json(file, REMEDY), file, REMEDY)
    return found


def _image_shape(raw: Mapping[str, Any]) -> ImageShape:
    if raw.get("_class_name") == "VQModel":
        widths = raw["block_out_channels"]
        return ImageShape(2 ** (len(widths) - 1), raw["num_vq_embeddings"], widths[0])
    if raw.get("_class_name") == "AutoencoderKLWan":
        # The decoder may be wider than the encoder, and its features are what fills the memory.
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


def check_files(name: str, directory: Path) -> None:
    """Raise FileError where a file of a saved policy is missing, cut short or another than it should be.

    Names and headers are seen, in a moment, whatever the size of the weights. Of a release the weights in a folder are seen, nothing of
    what may still be on the hub.
    """
    images = directory / "image_tokenizer"
    if not (directory / "policy.json").is_file():
        if directory.is_dir() and release_of(name):
            read_json(directory / "config.json", REMEDY)
            weight_files(directory, RELEASED_WEIGHTS, REMEDY)
            if images.is_dir():
                weight_files(images, IMAGE_WEIGHTS, REMEDY)
        return
    settings_of(name, directory)
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        read_json(directory / file, REMEDY)
    weight_files(directory, remedy=REMEDY)
    image_shape(images)
    weight_files(images, IMAGE_WEIGHTS, REMEDY)
