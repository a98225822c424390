"""The embedded CLIP model: a small ``CLIPModel``, the pairs that it is trained on, and how well it tells right from nearly right.

In a batch of pairs every scene stands beside a twin with one change that makes the scene's text false. The twin has a text of its own (its
plan). So the ordinary contrastive loss of CLIP (Radford et al. 2021, arXiv 2103.00020) meets hard negatives in every row. Without them it
learns which words occur and not what belongs to what (Yuksekgonul et al. 2023, arXiv 2210.01936).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from pararl import scenes
from pararl.scenes.sentences import caption
from pararl.scenes.world import COLOURS, EMPTY, KINDS, SHAPES

SPECIALS = ("[PAD]", "[UNK]", "[BOS]", "[EOS]")
"""Ids 0 to 3; not 2 for the last, by which transformers knows the first CLIP checkpoints and pools otherwise."""
RELATING = {"left", "right", "above", "below", "over", "under"}
"""Words of prompts that tell a relation."""
TEXT_TOKENS = 40
"""Longest text, [BOS] and [EOS] included."""
LAYERS = {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 4, "projection_dim": 96}
NOISE = 12.0
"""Largest standard deviation, in grey levels, of the noise on training images: what a policy draws is not pixel-exact."""

Cells = np.ndarray
"""int8 [16], one value a cell."""


def new_model() -> tuple[CLIPModel, CLIPProcessor]:
    """An untrained model for images of 32 x 32 pixels, one patch a cell, and its processor, which neither resizes nor crops."""
    words = [*SPECIALS, *scenes.VOCABULARY]
    core = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    core.normalizer, core.pre_tokenizer = Lowercase(), WhitespaceSplit()
    core.post_processor = TemplateProcessing(single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 2), ("[EOS]", 3)])
    names = dict(zip(("pad_token", "unk_token", "bos_token", "eos_token"), SPECIALS, strict=True))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=TEXT_TOKENS, **names)
    ids = {"vocab_size": len(words), "max_position_embeddings": TEXT_TOKENS, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    config = CLIPConfig(
        text_config=LAYERS | ids, vision_config=LAYERS | {"image_size": 32, "patch_size": 8}, projection_dim=LAYERS["projection_dim"]
    )
    half = [0.5, 0.5, 0.5]
    # At 32 pixels any resizing or cropping would cut cells in two.
    images = CLIPImageProcessorPil(do_resize=False, do_center_crop=False, image_mean=half, image_std=half)
    return CLIPModel(config), CLIPProcessor(images, tokenizer)


# ---- changes


def _recolour(cells: Cells, rng: np.random.Generator) -> None:
    place = rng.choice(np.flatnonzero(cells != EMPTY))
    shape, colour = divmod(int(cells[place]), len(COLOURS))
    cells[place] = shape * len(COLOURS) + rng.choice([c for c in range(len(COLOURS)) if c != colour])


def _reshape(cells: Cells, rng: np.random.Generator) -> None:
    place = rng.choice(np.flatnonzero(cells != EMPTY))
    shape, colour = divmod(int(cells[place]), len(COLOURS))
    cells[place] = rng.choice([s for s in range(len(SHAPES)) if s != shape]) * len(COLOURS) + colour


def _count(cells: Cells, rng: np.random.Generator) -> None:
    taken = cells != EMPTY
    if rng.random() < 0.5:
        cells[rng.choice(np.flatnonzero(taken))] = EMPTY
    else:  # another of a kind that is there, or anything
        kinds = cells[taken] if rng.random() < 0.5 else np.arange(KINDS)
        cells[rng.choice(np.flatnonzero(~taken))] = rng.choice(kinds)


def _exchange_colours(cells: Cells, rng: np.random.Generator) -> None:
    """Nothing where no two objects differ in both: those alike in shape or colour would only exchange places."""
    taken = np.flatnonzero(cells != EMPTY)
    shapes, colours = np.divmod(cells, len(COLOURS))
    pairs = [(a, b) for a in taken for b in taken if a < b and shapes[a] != shapes[b] and colours[a] != colours[b]]
    if pairs:
        a, b = pairs[rng.integers(len(pairs))]
        cells[[a, b]] = (shapes * len(COLOURS))[[a, b]] + colours[[b, a]]


def _exchange_places(cells: Cells, rng: np.random.Generator) -> None:
    a = rng.choice(np.flatnonzero(cells != EMPTY))
    b = rng.integers(len(cells))
    cells[[a, b]] = cells[[b, a]]


CHANGES: dict[str, Callable[[Cells, np.random.Generator], None]] = {
    "colour": _recolour,
    "shape": _reshape,
    "count": _count,
    "binding": _exchange_colours,
    "place": _exchange_places,
}
"""Changes of one thing: an object's colour or shape, one object more or less, or an object in another cell. Or two objects' colours are
exchanged, and the words stay true one by one."""
_OFTEN = (0.15, 0.15, 0.15, 0.15, 0.4)
"""How often each change is drawn. Most texts say nothing of places, and a place that does not matter is drawn again."""
_TRIES = 16


def changed(scene: scenes.Scene, false: Callable[[scenes.Scene], bool], rng: np.random.Generator, name: str = "") -> scenes.Scene | None:
    """The scene with one change of that name (empty = any) that makes ``false`` hold; None where 16 draws find no such."""
    for _ in range(_TRIES):
        drawn = name or rng.choice(list(CHANGES), p=_OFTEN)
        cells = scene.cells.ravel().copy()
        CHANGES[drawn](cells, rng)
        other = scenes.Scene.from_cells(cells.tolist())
        if false(other):
            return other
    return None


# ---- pairs


@dataclass(frozen=True, slots=True)
class Pairs:
    """Texts and images that belong together, place by place."""

    texts: list[str]
    images: np.ndarray
    """uint8 [pair, 32, 32, 3]."""


def training_pairs(first: int, count: int, seed: int) -> Pairs:
    """``count`` scenes, each followed by its twin: of examples 2 ``first``, 2 ``first`` + 2, ... of the pretraining stream.

    An example whose prompt tells no relation gives way to the next, so that twice as many do: relations are what is learnt last. A
    scene's text is its prompt (three times in five), its caption or its plan; a twin's its plan.
    """
    rng = np.random.default_rng((seed, first))
    texts: list[str] = []
    shown: list[scenes.Scene] = []
    for index in range(first, first + count):
        example = scenes.example("pretrain", 2 * index, seed)
        # Two examples an index, so that the second choice is never another index's first.
        if not RELATING & set(example.prompt.text.split()):
            example = scenes.example("pretrain", 2 * index + 1, seed)
        text, false = _text(example, rng.random())
        twin = changed(example.scene, false, rng)
        texts.append(text)
        shown.append(example.scene)
        if twin is not None:
            texts.append(scenes.plan_text(twin))
            shown.append(twin)
    images = scenes.render_batch(shown).astype(np.float32)
    images += rng.uniform(0, NOISE, (len(images), 1, 1, 1)) * rng.standard_normal(images.shape)
    return Pairs(texts, images.round().clip(0, 255).astype(np.uint8))


def _text(example: scenes.Example, share: float) -> tuple[str, Callable[[scenes.Scene], bool]]:
    """A text of the example, and of which scenes it is false."""
    scene = example.scene
    if share < 0.6:
        return example.prompt.text, _false(example)
    if share < 0.8:
        return caption(scene), lambda other: sorted(other.cells.ravel()) != sorted(scene.cells.ravel())
    return scenes.plan_text(scene), lambda other: other != scene


def contrastive_loss(model: CLIPModel, processor: CLIPProcessor, pairs: Pairs) -> Tensor:
    """CLIP's loss: mean cross-entropy of every text against all images of the batch, and of every image against all texts."""
    inputs = processor(text=pairs.texts, images=list(pairs.images), padding=True, truncation=True, return_tensors="pt")
    loss: Tensor = model(**inputs, return_loss=True).loss
    return loss


# ---- measuring


@torch.no_grad()
def cosines(model: CLIPModel, processor: CLIPProcessor, texts: Sequence[str], images: np.ndarray) -> Tensor:
    """Cosines float32 [text, image] of all texts with all images uint8 [image, 32, 32, 3]."""
    inputs = processor(text=list(texts), images=list(images), padding=True, truncation=True, return_tensors="pt")
    found: Tensor = model(**inputs).logits_per_text / model.logit_scale.exp()
    return found


def retrieval(model: CLIPModel, processor: CLIPProcessor, count: int, among: int = 64, first: int = 0) -> float:
    """Share of ``count`` ID prompts whose nearest image, among those of ``among`` prompts, is right by the exact verifier."""
    right = 0
    for start in range(first, first + count, among):
        shown = _prompts(start, min(among, first + count - start))
        found = cosines(model, processor, [e.prompt.text for e in shown], scenes.render_batch([e.scene for e in shown])).argmax(1)
        right += sum(bool(scenes.check(e.prompt.spec, shown[int(i)].scene).strict) for e, i in zip(shown, found, strict=True))
    return right / count


def ranking(model: CLIPModel, processor: CLIPProcessor, count: int, seed: int = 0, first: int = 0) -> dict[str, float]:
    """By change: share of the ID prompts that it makes false, of ``count``, whose own image scores above the changed one.

    A change that makes none of them false is left out.
    """
    found: dict[str, float] = {}
    for name in CHANGES:
        rng = np.random.default_rng((seed, count))
        drawn = [(example, changed(example.scene, _false(example), rng, name)) for example in _prompts(first, count)]
        pairs = [(example, other) for example, other in drawn if other is not None]
        right = 0.0
        for start in range(0, len(pairs), 64):
            part = pairs[start : start + 64]
            images = scenes.render_batch([scene for example, other in part for scene in (example.scene, other)])
            table = cosines(model, processor, [example.prompt.text for example, _ in part], images)
            row = torch.arange(len(part))
            right += float((table[row, 2 * row] > table[row, 2 * row + 1]).sum())
        if pairs:
            found[name] = right / len(pairs)
    return found


def _prompts(first: int, count: int) -> list[scenes.Example]:
    return [scenes.example("id", index) for index in range(first, first + count)]


def _false(example: scenes.Example) -> Callable[[scenes.Scene], bool]:
    return lambda scene: not scenes.check(example.prompt.spec, scene).strict


def measure(model: CLIPModel, processor: CLIPProcessor, count: int) -> dict[str, float]:
    """``<name> right``: shares of ``count`` ID prompts, ``retrieval`` among 64, and every change's ``ranking``."""
    model.eval()
    shares = {"retrieval": retrieval(model, processor, count)} | ranking(model, processor, count)
    return {f"{name} right": value for name, value in shares.items()}
