"""The sizes of a policy, as its files or the table of releases tell them: what a plan of a run is counted from. Loads no torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pararl.config import ConfigError
from pararl.releases import RELEASES, release_of
from pararl.types import Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Sizes of a masked-diffusion policy of the LLaDA kind, bidirectional, with an untied head."""

    width: int = 4096
    layers: int = 32
    heads: int = 32
    kv_heads: int = 32
    mlp: int = 12288
    rows: int = 134656
    """Rows of the embedding and of the head: text, image codes, spare ones."""
    codes: int = 8192
    """Image codes, the rows over which an image position is computed."""
    image_tokens: int = 1024
    line_breaks: int = 0
    """Tokens between the rows of an image."""
    text_tokens: int = 256
    text_block: int = 64
    """Text window of interleaved outputs, and the block in which it is sampled."""
    answer_tokens: int = 512
    answer_block: int = 128
    """The same of outputs that are text alone."""
    prompt_tokens: int = 512
    """Longest prompt text."""
    blank_image: bool = False
    """Whether interleaved prompts without an input image have its place all the same."""
    family: str = "mmada"
    weight_bytes: int = 2
    """Per weight of the backbone, as the checkpoint holds it."""
    image_weights: int = 95_493_513
    """Parameters of the image tokenizer, which is float32."""
    pixels: int = 512 * 512
    """Of an image."""
    image_channels: int = 128
    """Of the image decoder's features at full resolution."""

    @property
    def kv_width(self) -> int:
        return self.width // self.heads * self.kv_heads

    @property
    def projections(self) -> tuple[tuple[int, int], ...]:
        """Inputs and outputs of the seven matrices of a block, in the order in which they are applied: what an adapter wraps."""
        d, k, h = self.width, self.kv_width, self.mlp
        return (d, d), (d, k), (d, k), (d, d), (d, h), (d, h), (h, d)

    @property
    def block_weights(self) -> int:
        """Weights of the matrices of all blocks: two operations each for every token of a forward."""
        return self.layers * sum(a * b for a, b in self.projections)

    @property
    def parameters(self) -> int:
        """Of the backbone: embedding, head, blocks and the gains of the norms."""
        return 2 * self.rows * self.width + self.block_weights + (2 * self.layers + 1) * self.width

    def adapter_parameters(self, rank: int) -> int:
        """Of a LoRA of that rank on every matrix of the blocks."""
        return self.layers * sum(rank * (a + b) for a, b in self.projections)

    def outputs(self, kind: Kind) -> dict[str, tuple[int, int]]:
        """Per generated modality of a kind of prompt: its tokens, and the rows of the head that they need."""
        image, text_rows = {"image": (self.image_tokens, self.codes)}, self.rows - self.codes
        if kind in ("t2t", "i2t"):
            return {"text": (self.answer_tokens, text_rows)}
        return image | ({"text": (self.text_tokens, text_rows)} if kind.startswith("interleaved") else {})

    def block(self, kind: Kind) -> int:
        """Text tokens that are sampled at a time."""
        return self.answer_block if kind in ("t2t", "i2t") else self.text_block

    def length(self, kind: Kind) -> int:
        """Tokens of a sequence with a prompt at its longest, special tokens included (the layouts of ``policies/mmada_codec.py`` and
        ``policies/parallel_a.py``)."""
        picture, joint = self.image_tokens + self.line_breaks + 2, kind.startswith("interleaved")
        shows = kind in ("i2t", "edit", "interleaved_edit") or (kind == "interleaved" and self.blank_image)
        shown = picture if shows else 0
        if self.family == "mmada_parallel_a":
            return self.prompt_tokens + shown + 2 + picture + (self.text_tokens if joint else 0)
        answers = kind in ("t2t", "i2t")
        prefix = (kind != "t2t") + shown + 1 + self.prompt_tokens + (not answers)
        if answers:
            return prefix + self.answer_tokens
        return prefix + picture + (1 + self.text_tokens if joint else 0)


COUNTED = ("mmada", "mmada_parallel_a")
"""Families whose sizes this module tells."""
AMUSED_WEIGHTS = 146_000_000
"""Parameters of the image tokenizer of MMaDA-Parallel-A, about."""


def settings_of(name: str, directory: Path) -> Mapping[str, Any] | None:
    """The settings of a policy: those of the ``policy.json`` in its directory, else those of its release; None where there are none.

    Raises ConfigError for a ``policy.json`` that has none."""
    told = _told(name, directory)
    if told is None:
        return None
    settings = told.get("settings")
    if not isinstance(settings, dict) or not settings:
        raise ConfigError(f"policy.name: {directory / 'policy.json'} has no settings (set --policy.name)")
    return settings


def family_of(name: str, directory: Path) -> str | None:
    """The family of a policy; None where nothing says."""
    return (_told(name, directory) or {}).get("family")


def _told(name: str, directory: Path) -> Mapping[str, Any] | None:
    """What ``policy.json`` says, or would say of a release; None where nothing does."""
    file, release = directory / "policy.json", release_of(name)
    if file.is_file():
        return _json(file)
    return _json(RELEASES[release]) if release else None


def shape_of(name: str, directory: Path) -> ModelShape:
    """The shape of the policy ``name``, whose files, where there are any, lie in ``directory``. A release that is not there yet has the
    sizes of LLaDA-8B. Raises ConfigError where the files do not tell, and for a family that is not COUNTED."""
    family = family_of(name, directory)
    if family not in (None, *COUNTED):
        raise ConfigError(
            f"policy.name: {name} is a policy of family {family}, a plan counts those of {' and '.join(COUNTED)} alone (leave out --plan)"
        )
    try:
        told = _told(name, directory) or {}
        settings = told["settings"]
        shape = _backbone(directory) if (directory / "config.json").is_file() or not release_of(name) else ModelShape()
        rows, columns = settings["grid"]
        amused = told["family"] == "mmada_parallel_a"
        shape = replace(shape, image_weights=AMUSED_WEIGHTS) if amused else shape
        # As policies.sources looks for it.
        images = next((directory / place for place in ("image_tokenizer", "vqvae") if (directory / place).is_dir()), None)
        shape = _images(shape, images, rows * columns) if images else shape
        windows = {key: settings[key] for key in ("prompt_tokens", "text_tokens", "text_block", "answer_tokens", "answer_block")}
        breaks, blank = rows if amused else 0, settings.get("blank_image") is not None
        return replace(shape, image_tokens=rows * columns, line_breaks=breaks, family=told["family"], blank_image=blank, **windows)
    except ConfigError:
        raise
    except (KeyError, OSError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {error}"
        raise ConfigError(f"policy.name: {directory} does not tell the sizes of an mmada policy ({what}; set --policy.name)") from error


def _backbone(directory: Path) -> ModelShape:
    """The sizes in a backbone's ``config.json``."""
    model = _json(directory / "config.json")
    return ModelShape(
        width=model["d_model"],
        layers=model["n_layers"],
        heads=model["n_heads"],
        kv_heads=model.get("n_kv_heads") or model["n_heads"],
        mlp=model.get("mlp_hidden_size") or model["d_model"] * model.get("mlp_ratio", 4),
        rows=model.get("embedding_size") or model["vocab_size"],
        weight_bytes=_weight_bytes(model),
    )


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
    """Of the aMUSEd tokenizer, the Wan VAE, a small VAE of ours or the MAGVIT-v2 in a directory; sizes that a MAGVIT-v2 does not name are
    the released ones."""
    raw = _json(directory / "config.json")
    if raw.get("_class_name") == "VQModel":
        widths = raw["block_out_channels"]
        return ImageShape(2 ** (len(widths) - 1), raw["num_vq_embeddings"], widths[0])
    if raw.get("_class_name") == "AutoencoderKLWan":
        widths = [(raw.get("decoder_base_dim") or raw["base_dim"]) * times for times in raw["dim_mult"]]
        return ImageShape(2 ** (len(widths) - 1) * (raw.get("patch_size") or 1), 0, widths[0])
    if raw.get("model_type") == "continuous_vae":
        levels, decoder = raw["encoder"], raw["decoder"]
        return ImageShape(2 ** (len(levels["ch_mult"]) - 1), 0, decoder["ch"] * decoder["ch_mult"][0])
    encoder, decoder, quantize = (raw.get(part) or {} for part in ("encoder", "decoder", "quantize"))
    channels = decoder.get("ch", 128) * decoder.get("ch_mult", [1])[0]
    return ImageShape(2 ** (len(encoder.get("ch_mult", range(5))) - 1), 2 ** quantize.get("codebook_dim", 13), channels)


def _images(shape: ModelShape, directory: Path, tokens: int) -> ModelShape:
    """``shape`` with the sizes of the image tokenizer in ``directory``."""
    found = image_shape(directory)
    weights = next((file for form in ("*.safetensors", "*.bin") for file in sorted(directory.glob(form))), None)
    return replace(
        shape,
        codes=found.codes,
        image_weights=weights.stat().st_size // 4 if weights else shape.image_weights,
        pixels=tokens * found.factor**2,
        image_channels=found.channels,
    )


def held_bytes(name: str, directory: Path) -> int | None:
    """Bytes of a weight of the backbone as the checkpoint holds it; None where its files do not tell."""
    file = directory / "config.json"
    if file.is_file():
        return _weight_bytes(_json(file))
    return ModelShape().weight_bytes if release_of(name) and family_of(name, directory) in COUNTED else None


def _weight_bytes(model: Mapping[str, Any]) -> int:
    """From a ``config.json`` of transformers, which named the dtype otherwise before its fifth version; float32 where it has none."""
    return {"bfloat16": 2, "float16": 2}.get(model.get("dtype") or model.get("torch_dtype") or "", 4)


def _json(file: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"policy.name: {file} is not JSON: {error} (set --policy.name)") from error
    if not isinstance(found, dict):
        raise ConfigError(f"policy.name: {file} is not a JSON object (set --policy.name)")
    return found
