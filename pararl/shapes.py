"""The sizes of a policy, as its files or the table of releases tell them: what a plan of a run is counted from. Loads no torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pararl.config import ConfigError
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
    text_tokens: int = 256
    """Text window of interleaved outputs."""
    answer_tokens: int = 512
    """Text window of outputs that are text alone."""
    prompt_tokens: int = 512
    """Longest prompt text."""
    branches: int = 2
    """Sequences per rollout and step under guidance: with the prompt, and without."""
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

    def length(self, kind: Kind) -> int:
        """Tokens of a sequence with a prompt at its longest, special tokens included (the layouts of ``policies/mmada_codec.py``)."""
        shown = self.image_tokens + 2 if kind in ("i2t", "edit", "interleaved_edit") else 0
        answers = kind in ("t2t", "i2t")
        prefix = (kind != "t2t") + shown + 1 + self.prompt_tokens + (not answers)
        if answers:
            return prefix + self.answer_tokens
        return prefix + self.image_tokens + 2 + (1 + self.text_tokens if kind.startswith("interleaved") else 0)


RELEASES: dict[str, ModelShape] = {
    "Gen-Verse/MMaDA-8B-Base": ModelShape(),
    "Gen-Verse/MMaDA-8B-MixCoT": ModelShape(),
    "tyfeld/MMaDA-Parallel-M": ModelShape(),
    # Of -A its embedding rows are taken to be those of -M. A newline token stands behind each row of an image, guidance has a branch
    # without the image as well, and the image tokenizer is aMUSEd's.
    "tyfeld/MMaDA-Parallel-A": ModelShape(image_tokens=1024 + 32, branches=3),
}
"""Released policies by their name on the hub. Sources: the releases' ``config.json`` and ``policies/backbones/llada.py``."""


RELEASED_SETTINGS = {"text_tokens": 256, "text_block": 64, "answer_tokens": 512, "answer_block": 128}
"""What a ``policy.json`` would say of the text windows of a release, which comes without one: the defaults of ``MMadaSettings``."""


def shape_of(name: str, directory: Path) -> ModelShape:
    """The shape of a release by name, else of the policy in ``directory``. Raises ConfigError where its files do not tell."""
    return RELEASES[name] if name in RELEASES else read_shape(directory)


def read_shape(directory: Path) -> ModelShape:
    """The shape that a directory's ``config.json`` and ``policy.json`` tell. Raises ConfigError where they do not."""
    try:
        model, images = (_json(directory / folder / "config.json") for folder in ("", "image_tokenizer"))
        settings = _json(directory / "policy.json")["settings"]
        rows, columns = settings["grid"]
        codes = 2 ** images["quantize"]["codebook_dim"]
        factor = 2 ** (len(images["encoder"]["ch_mult"]) - 1)
        return ModelShape(
            width=model["d_model"],
            layers=model["n_layers"],
            heads=model["n_heads"],
            kv_heads=model["n_kv_heads"],
            mlp=model["mlp_hidden_size"],
            rows=model["embedding_size"],
            codes=codes,
            image_tokens=rows * columns,
            text_tokens=settings["text_tokens"],
            answer_tokens=settings["answer_tokens"],
            prompt_tokens=settings["prompt_tokens"],
            weight_bytes=_weight_bytes(model),
            image_weights=(directory / "image_tokenizer" / "model.safetensors").stat().st_size // 4,
            pixels=rows * columns * factor**2,
            image_channels=images["decoder"]["ch"] * images["decoder"]["ch_mult"][0],
        )
    except (KeyError, OSError, ValueError) as error:
        what = f"{type(error).__name__}: {error}"
        raise ConfigError(f"policy.name: {directory} does not tell the sizes of an mmada policy ({what}; set --policy.name)") from error


def held_bytes(name: str, directory: Path) -> int | None:
    """Bytes of a weight of the backbone as the checkpoint holds it; None where its files do not tell."""
    if name in RELEASES:
        return RELEASES[name].weight_bytes
    file = directory / "config.json"
    return _weight_bytes(_json(file)) if file.is_file() else None


def _weight_bytes(model: Mapping[str, Any]) -> int:
    """From a ``config.json`` of transformers, which named the dtype otherwise before its fifth version; float32 where it has none."""
    return {"bfloat16": 2, "float16": 2}.get(model.get("dtype") or model.get("torch_dtype") or "", 4)


def _json(file: Path) -> Mapping[str, Any]:
    found = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"{file} is not a JSON object")
    return found
