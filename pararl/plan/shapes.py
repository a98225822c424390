"""The sizes of a policy, as its files or the table of releases tell them: what a plan of a run is counted from. Loads no torch."""

from dataclasses import dataclass, replace
from pathlib import Path

from pararl.config import ConfigError
from pararl.policy_files import REMEDY, description, family_of, image_shape, weight_bytes
from pararl.readers import FileError, read_json
from pararl.releases import release_of
from pararl.types import Kind
from policies.traits import ANSWERS, TRAITS, Counted, traits_of


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
    framed: bool = False
    """Whether an output stands between two tokens of its own, behind a prompt that is one message."""
    weight_bytes: int = 2
    """Per weight of the backbone, as the checkpoint holds it."""
    image_weights: int = Counted().image_weights
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
        if kind in ANSWERS:
            return {"text": (self.answer_tokens, text_rows)}
        return image | ({"text": (self.text_tokens, text_rows)} if kind.startswith("interleaved") else {})

    def block(self, kind: Kind) -> int:
        """Text tokens that are sampled at a time."""
        return self.answer_block if kind in ANSWERS else self.text_block

    def length(self, kind: Kind) -> int:
        """Tokens of a sequence with a prompt at its longest, special tokens included (the layouts of ``policies/families/mmada.py`` and
        ``policies/families/parallel_a.py``)."""
        picture, joint = self.image_tokens + self.line_breaks + 2, kind.startswith("interleaved")
        shows = kind in ("i2t", "edit", "interleaved_edit") or (kind == "interleaved" and self.blank_image)
        shown = picture if shows else 0
        if self.framed:
            return self.prompt_tokens + shown + 2 + picture + (self.text_tokens if joint else 0)
        answers = kind in ANSWERS
        prefix = (kind != "t2t") + shown + 1 + self.prompt_tokens + (not answers)
        if answers:
            return prefix + self.answer_tokens
        return prefix + picture + (1 + self.text_tokens if joint else 0)


def shape_of(name: str, directory: Path) -> ModelShape:
    """The shape of the policy ``name``, whose files, where there are any, lie in ``directory``. A release that is not there yet has the
    sizes of LLaDA-8B. Raises ConfigError where the files do not tell, and for a family that a plan does not count."""
    traits = traits_of(name, directory)
    counted = None if traits is None else traits.counted
    if traits is not None and counted is None:
        able = " and ".join(other for other, others in TRAITS.items() if others.counted)
        family = family_of(name, directory)
        raise ConfigError(f"policy.name: {name} is a policy of family {family}, a plan counts those of {able} alone (leave out --plan)")
    try:
        told = description(name, directory) or {}
        settings = told["settings"]
        shape = _backbone(directory) if (directory / "config.json").is_file() or not release_of(name) else ModelShape()
        rows, columns = settings["grid"]
        counted = counted or Counted()
        shape = replace(shape, image_weights=counted.image_weights, framed=counted.framed, line_breaks=rows if counted.line_breaks else 0)
        # As policies.sources looks for it.
        images = next((directory / place for place in ("image_tokenizer", "vqvae") if (directory / place).is_dir()), None)
        shape = _images(shape, images, rows * columns) if images else shape
        windows = {key: settings[key] for key in ("prompt_tokens", "text_tokens", "text_block", "answer_tokens", "answer_block")}
        return replace(shape, image_tokens=rows * columns, blank_image=settings.get("blank_image") is not None, **windows)
    # A ConfigError is a ValueError, and says already what is wrong and what to do.
    except ConfigError:
        raise
    except (KeyError, OSError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise ConfigError(f"policy.name: {directory} does not tell the sizes of its policy ({what}; set --policy.name)") from error


def _backbone(directory: Path) -> ModelShape:
    """The sizes in a backbone's ``config.json``."""
    file = directory / "config.json"
    model = read_json(file, REMEDY)
    found = ModelShape(
        width=model["d_model"],
        layers=model["n_layers"],
        heads=model["n_heads"],
        kv_heads=model.get("n_kv_heads") or model["n_heads"],
        mlp=model.get("mlp_hidden_size") or model["d_model"] * model.get("mlp_ratio", 4),
        rows=model.get("embedding_size") or model["vocab_size"],
        weight_bytes=weight_bytes(model),
    )
    sizes = (found.width, found.layers, found.heads, found.kv_heads, found.mlp, found.rows)
    if not all(type(size) is int and size >= 1 for size in sizes):
        raise FileError(file, f"has sizes that cannot be: {sizes}", REMEDY)
    return found


def _images(shape: ModelShape, directory: Path, tokens: int) -> ModelShape:
    """``shape`` with the sizes of the image tokenizer in ``directory``."""
    found = image_shape(directory)
    weights = next((file for form in ("*.safetensors", "*.bin") for file in sorted(directory.glob(form))), None)
    return replace(
        shape,
        codes=found.codes,
        # The file is float32 but for a header of a few kilobytes.
        image_weights=weights.stat().st_size // 4 if weights else shape.image_weights,
        pixels=tokens * found.factor**2,
        image_channels=found.channels,
    )


def held_bytes(name: str, directory: Path) -> int | None:
    """Bytes of a weight of the backbone as the checkpoint holds it; None where its files do not tell."""
    file = directory / "config.json"
    if file.is_file():
        return weight_bytes(read_json(file, REMEDY))
    traits = traits_of(name, directory) if release_of(name) else None
    return ModelShape().weight_bytes if traits and traits.counted else None
