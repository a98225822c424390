"""Sizes that plans are counted from: those of the models themselves, of the released keys, and of the sequences that policies build."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

import policies
from pararl import adapter
from pararl.config import ConfigError
from pararl.shapes import RELEASED_SETTINGS, RELEASES, ModelShape, held_bytes, read_shape, shape_of
from pararl.types import KINDS, Kind, Prompt, Task
from policies.backbones.llada import MMadaConfig, MMadaModelLM
from policies.image.magvitv2 import MAGVITv2, MAGVITv2Config
from policies.mmada import MMadaPolicy
from policies.mmada_codec import MMadaSettings

GOLDEN = Path(__file__).parents[1] / "golden" / "released_keys"
SMALL = ModelShape(width=64, layers=3, heads=8, kv_heads=2, mlp=96, rows=200)


def numel(keys: Path) -> int:
    return sum(math.prod(shape) for shape, _ in json.loads(keys.read_text()).values())


def on_meta(shape: ModelShape) -> MMadaModelLM:
    """The real class with these sizes, its weights not allocated."""
    sizes = {"d_model": shape.width, "n_layers": shape.layers, "n_heads": shape.heads, "n_kv_heads": shape.kv_heads}
    with torch.device("meta"):
        return MMadaModelLM(MMadaConfig(**sizes, mlp_hidden_size=shape.mlp, embedding_size=shape.rows))


def test_the_release_has_as_many_parameters_as_its_recorded_keys() -> None:
    shape = RELEASES["Gen-Verse/MMaDA-8B-MixCoT"]
    assert shape.parameters == numel(GOLDEN / "mmada_8b.json")
    assert shape.image_weights == numel(GOLDEN / "magvitv2.json")


@pytest.mark.parametrize("shape", [SMALL, RELEASES["Gen-Verse/MMaDA-8B-Base"]], ids=["small", "8b"])
def test_parameters_are_those_of_the_model(shape: ModelShape) -> None:
    model = on_meta(shape)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    blocks = [p for name, p in model.named_parameters() if ".blocks." in name and p.ndim == 2]
    assert shape.block_weights == sum(p.numel() for p in blocks)


def test_the_image_tokenizer_of_a_release_is_the_default_one() -> None:
    with torch.device("meta"):
        images = MAGVITv2(MAGVITv2Config())
    tensors = [*images.parameters(), *(b for b in images.quantize.buffers())]
    assert RELEASES["tyfeld/MMaDA-Parallel-M"].image_weights == sum(t.numel() for t in tensors)
    assert ModelShape().pixels == ModelShape().image_tokens * images.factor**2
    assert ModelShape().image_channels == images.config.decoder["ch"] * images.config.decoder["ch_mult"][0]


def test_a_directory_tells_the_sizes_of_what_it_holds(tiny_policy_dir: Path) -> None:
    policy, shape = policies.load(tiny_policy_dir), read_shape(tiny_policy_dir)
    assert isinstance(policy, MMadaPolicy)
    assert shape.parameters == sum(p.numel() for p in policy.model.parameters())
    images = sum(t.numel() for t in (*policy.images.parameters(), *policy.images.buffers()))
    assert images <= shape.image_weights < 1.2 * images, "the file has a header"
    assert (shape.pixels, shape.codes) == (32 * 32, policy.images.codebook_size) and shape.weight_bytes == 4
    model = adapter.attach(policy, rank=4, alpha=8)
    assert shape.adapter_parameters(4) == sum(x.numel() for x in adapter.tensors(model).values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_sequence_is_as_long_as_the_canvas_of_the_longest_prompt(kind: Kind, tiny_policy_dir: Path) -> None:
    policy, shape = policies.load(tiny_policy_dir), read_shape(tiny_policy_dir)
    assert isinstance(policy, MMadaPolicy)
    image = np.zeros((32, 32, 3), np.uint8) if kind in ("i2t", "edit", "interleaved_edit") else None
    task: Task = "interleaved" if kind == "interleaved_edit" else kind
    # The tiny policy's dialogue adds one token to a question.
    words = policy.settings.prompt_tokens - (task in ("t2t", "i2t"))
    canvas = policy.canvas([Prompt("long", task, " ".join(["red"] * words), image=image)])
    assert shape.length(kind) == canvas.ids.shape[1]
    assert {m: tokens for m, (tokens, _) in shape.outputs(kind).items()} == {s.modality: len(s) for s in canvas.spans}
    rows = {m: rows for m, (_, rows) in shape.outputs(kind).items()}
    for span in canvas.spans:
        real = policy.vocabulary.rows(span.modality)
        assert real.stop - real.start <= rows[span.modality] <= real.stop - real.start + 1


def test_a_release_has_the_windows_of_the_default_settings() -> None:
    settings, shape = asdict(MMadaSettings()), ModelShape()
    assert {name: settings[name] for name in RELEASED_SETTINGS} == RELEASED_SETTINGS
    assert (shape.text_tokens, shape.answer_tokens, shape.prompt_tokens) == (256, 512, settings["prompt_tokens"])
    assert shape.image_tokens == math.prod(settings["grid"])


def test_a_directory_that_does_not_tell_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="does not tell the sizes of an mmada policy.*--policy.name"):
        shape_of(str(tmp_path), tmp_path)
    assert shape_of("Gen-Verse/MMaDA-8B-Base", tmp_path) == replace(ModelShape())


def test_what_a_checkpoint_holds_is_read_from_its_config(tmp_path: Path, tiny_policy_dir: Path) -> None:
    assert held_bytes(str(tiny_policy_dir), tiny_policy_dir) == 4
    policies.load(tiny_policy_dir).to("cpu", torch.bfloat16).save(tmp_path)
    assert held_bytes(str(tmp_path), tmp_path) == 2
    assert held_bytes("tyfeld/MMaDA-Parallel-M", tmp_path) == 2
    assert held_bytes("nothing", tmp_path / "nothing") is None
