"""Sizes that plans are counted from: those of the models themselves, of the released keys, and of the sequences that policies build."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import policies
from pararl import adapter
from pararl.config import ConfigError
from pararl.data.fits import Texts, image_size
from pararl.plan.shapes import ModelShape, held_bytes, shape_of
from pararl.policy_files import family_of, image_shape
from pararl.releases import RELEASES, release_of
from pararl.types import KINDS, Kind, Prompt, Task
from policies import Policy
from policies.backbones.llada import MMadaConfig, MMadaModelLM
from policies.image.continuous import ContinuousVAE, ContinuousVAEConfig
from policies.image.latents import read_vae
from policies.image.magvitv2 import MAGVITv2, MAGVITv2Config
from policies.traits import TRAITS
from tests.policies import releases, showo_releases
from tests.wording import telling

GOLDEN = Path(__file__).parents[2] / "golden" / "released_keys"
NOWHERE = Path("nowhere")
EIGHT_B = shape_of("Gen-Verse/MMaDA-8B-MixCoT", NOWHERE)
SMALL = ModelShape(width=64, layers=3, heads=8, kv_heads=2, mlp=96, rows=200)


def numel(keys: Path) -> int:
    return sum(math.prod(shape) for shape, _ in json.loads(keys.read_text()).values())


def on_meta(shape: ModelShape) -> MMadaModelLM:
    """The real class with these sizes, its weights not allocated."""
    sizes = {"d_model": shape.width, "n_layers": shape.layers, "n_heads": shape.heads, "n_kv_heads": shape.kv_heads}
    with torch.device("meta"):
        return MMadaModelLM(MMadaConfig(**sizes, mlp_hidden_size=shape.mlp, embedding_size=shape.rows))


def test_the_release_has_as_many_parameters_as_its_recorded_keys() -> None:
    assert EIGHT_B.parameters == numel(GOLDEN / "mmada_8b.json")
    assert EIGHT_B.image_weights == numel(GOLDEN / "magvitv2.json")


@pytest.fixture(scope="module")
def golden() -> Path:
    return GOLDEN.parent


@pytest.mark.parametrize("shape", [SMALL, EIGHT_B], ids=["small", "8b"])
def test_parameters_are_those_of_the_model(shape: ModelShape) -> None:
    model = on_meta(shape)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    blocks = [p for name, p in model.named_parameters() if ".blocks." in name and p.ndim == 2]
    assert shape.block_weights == sum(p.numel() for p in blocks)


def test_the_image_tokenizer_of_a_release_is_the_default_one() -> None:
    with torch.device("meta"):
        images = MAGVITv2(MAGVITv2Config())
    tensors = [*images.parameters(), *(b for b in images.quantize.buffers())]
    assert EIGHT_B.image_weights == sum(t.numel() for t in tensors)
    assert ModelShape().pixels == ModelShape().image_tokens * images.factor**2
    assert ModelShape().image_channels == images.config.decoder["ch"] * images.config.decoder["ch_mult"][0]


def test_a_directory_tells_the_sizes_of_what_it_holds(tiny_policy_dir: Path) -> None:
    policy, shape = policies.load(tiny_policy_dir), shape_of(str(tiny_policy_dir), tiny_policy_dir)
    assert isinstance(policy, Policy)
    assert shape.parameters == sum(p.numel() for p in policy.model.parameters())
    assert isinstance(policy.layout.images.module, MAGVITv2)
    images = sum(t.numel() for t in (*policy.layout.images.module.parameters(), *policy.layout.images.module.buffers()))
    assert images <= shape.image_weights < 1.2 * images, "the file has a header"
    assert (shape.pixels, shape.codes) == (32 * 32, policy.layout.images.module.codebook_size) and shape.weight_bytes == 4
    model = adapter.attach(policy, rank=4, alpha=8)
    assert shape.adapter_parameters(4) == sum(x.numel() for x in adapter.tensors(model).values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_sequence_is_as_long_as_the_canvas_of_the_longest_prompt(kind: Kind, tiny_policy_dir: Path) -> None:
    policy, shape = policies.load(tiny_policy_dir), shape_of(str(tiny_policy_dir), tiny_policy_dir)
    assert isinstance(policy, Policy)
    image = np.zeros((32, 32, 3), np.uint8) if kind in ("i2t", "edit", "interleaved_edit") else None
    task: Task = "interleaved" if kind == "interleaved_edit" else kind
    # The tiny policy's dialogue adds one token to a question.
    words = policy.settings.prompt_tokens - (task in ("t2t", "i2t"))
    canvas = policy.layout.canvas([Prompt("long", task, " ".join(["red"] * words), image=image)])
    assert shape.length(kind) == canvas.ids.shape[1]
    assert {m: tokens for m, (tokens, _) in shape.outputs(kind).items()} == {s.modality: len(s) for s in canvas.spans}
    rows = {m: rows for m, (_, rows) in shape.outputs(kind).items()}
    for span in canvas.spans:
        real = policy.layout.text.vocabulary.rows(span.modality)
        assert real.stop - real.start <= rows[span.modality] <= real.stop - real.start + 1


@pytest.mark.parametrize("name", [name for name in RELEASES if TRAITS[family_of(name, NOWHERE) or ""].counted])
def test_sequences_of_a_release_are_as_long_as_its_policy_makes_them(name: str, tmp_path: Path, golden: Path) -> None:
    """The released layouts and ids on a backbone a few numbers wide, in a folder called like the release."""
    directory = tmp_path / name.partition("/")[2]
    releases.backbone(directory, parallel_a="Parallel-A" in name)
    if "Parallel-A" in name:
        shutil.copytree(golden / "amused_vq", directory / "vqvae", ignore=shutil.ignore_patterns("cases*", "README*"))
    policy = policies.load(directory, image_tokenizer=None if "Parallel-A" in name else releases.image_tokenizer(tmp_path / "images"))
    assert isinstance(policy, Policy) and release_of(str(directory)) == name
    shape, codes = shape_of(str(directory), directory), shape_of(name, NOWHERE).image_tokens
    assert shape.parameters == sum(p.numel() for p in policy.model.parameters())
    kinds = [kind for kind in KINDS if kind.partition("_")[0] in policy.tasks]
    assert kinds
    for kind in kinds:
        task: Task = "interleaved" if kind == "interleaved_edit" else kind
        image = np.zeros((1, 1, 3), np.uint8) if kind in ("i2t", "edit", "interleaved_edit") else None
        shown = [0] * codes if image is not None else []
        read = policy.settings.prompt_tokens
        while (made := try_prefix(policy, Prompt("long", task, " ".join(["w5"] * read), image=image), shown)) is None:
            read -= 1
        assert shape.length(kind) == len(made) + len(policy.layout.tail(task).ids)
        assert shape.length(kind) == shape_of(name, NOWHERE).length(kind)
        assert {m: n for m, (n, _) in shape.outputs(kind).items()} == {s.modality: len(s) for s in policy.layout.tail(task).spans}


def test_a_saved_policy_of_the_parallel_a_family_is_read_like_any_other(tmp_path: Path, golden: Path) -> None:
    """Its image tokenizer is diffusers', with a configuration of its own."""
    copy, saved = tmp_path / "MMaDA-Parallel-A", tmp_path / "saved"
    releases.backbone(copy, parallel_a=True)
    shutil.copytree(golden / "amused_vq", copy / "vqvae", ignore=shutil.ignore_patterns("cases*", "README*"))
    policy = policies.load(copy)
    assert isinstance(policy, Policy)
    policy.save(saved)
    weights = sum(p.numel() for p in policy.layout.images.module.parameters())
    for directory in (copy, saved):
        shape = shape_of(str(directory), directory)
        assert (shape.codes, shape.pixels, shape.line_breaks) == (
            policy.layout.images.module.codebook_size,
            1024 * policy.layout.images.module.factor**2,
            32,
        )
        assert weights <= shape.image_weights < 1.2 * weights
    side = 32 * policy.layout.images.module.factor
    assert image_size(str(saved), saved) == image_size(str(copy), copy) == (side, side)
    Texts(saved).check(Prompt("p", "edit", "w5 w6", image=np.zeros((side, side, 3), np.uint8)))


def test_a_magvitv2_whose_configuration_names_no_sizes_is_the_released_one(tmp_path: Path) -> None:
    """``showlab/magvitv2`` was saved by a class that takes no arguments."""
    (tmp_path / "config.json").write_text('{"_class_name": "MAGVITv2"}')
    found, released = image_shape(tmp_path), ModelShape()
    assert (found.codes, found.factor**2 * released.image_tokens, found.channels) == (8192, released.pixels, released.image_channels)


@pytest.mark.parametrize("kind", ["wan", "ours"])
def test_pixels_and_channels_of_a_vae_are_those_of_the_model(kind: str, tmp_path: Path) -> None:
    if kind == "wan":
        pytest.importorskip("diffusers")
        showo_releases.wan(tmp_path)
    else:
        ContinuousVAE(ContinuousVAEConfig({"ch_mult": [1, 1, 2, 2], "num_res_blocks": [1] * 4}, {"ch": 8})).save_pretrained(tmp_path)
    found, vae = image_shape(tmp_path), read_vae(tmp_path)
    last = vae.vae.decoder.conv_out if kind == "wan" else vae.decoder.conv_out
    assert (found.factor, found.codes, found.channels) == (vae.factor, 0, last.in_channels)


@pytest.mark.parametrize(("name", "side"), [("show-o", 256), ("show-o2-1.5B", 432)])
def test_prompts_that_a_saved_showo_does_not_read_are_told(name: str, side: int, tmp_path: Path) -> None:
    """Its image size is that of its policy, for Show-o2 grid x VAE x patch; so is the length of a question in its dialogue."""
    pytest.importorskip("diffusers")
    second, saved = "show-o2" in name, tmp_path / "saved"
    images = showo_releases.wan(tmp_path / "i") if second else releases.image_tokenizer(tmp_path / "i")
    made = showo_releases.showo2(tmp_path / name) if second else showo_releases.showo(tmp_path / name, 256)
    text = showo_releases.qwen(tmp_path / "t") if second else showo_releases.phi(tmp_path / "t")
    policy = policies.load(made, image_tokenizer=images, text_tokenizer=text)
    assert isinstance(policy, Policy) and policy.layout.images.size == (side, side)
    policy.save(saved)
    shown, most = np.zeros((side, side, 3), np.uint8), policy.settings.prompt_tokens
    read = most
    while try_prefix(policy, Prompt("x", "i2t", "w5 " * read, image=shown), [0]) is None:
        read -= 1
    assert image_size(str(saved), saved) == image_size(f"showlab/{name}", Path("not there")) == (side, side)
    texts = Texts(saved)
    texts.check(Prompt("a", "t2i", "w5 " * most))
    texts.check(Prompt("b", "i2t", "w5 " * read, image=shown))
    for prompt in (Prompt("a", "t2i", "w5 " * (most + 1)), Prompt("b", "i2t", "w5 " * (read + 1), image=shown)):
        with pytest.raises(ValueError, match=f"prompt {prompt.id} has {most + 1} tokens, more than the {most} that saved reads"):
            texts.check(prompt)


@pytest.mark.parametrize("name", ["scenes-showo", "showlab/show-o-512x512", "showlab/show-o2-7B@0123abc", "facebook/chameleon-7b"])
def test_a_plan_of_a_family_that_it_does_not_count_is_one_line_that_names_it(name: str) -> None:
    family = family_of(name, policies.CHECKPOINTS / name)
    assert family is not None
    with pytest.raises(ConfigError, match=telling(name, family, "mmada", "--plan")):
        shape_of(name, policies.CHECKPOINTS / name)
    assert TRAITS[family].counted is None and held_bytes(name, NOWHERE) is None


def try_prefix(policy: Policy, prompt: Prompt, shown: list[int]) -> list[int] | None:
    """The ids in front of the output; None where the text is too long."""
    try:
        return policy.layout.prefix(prompt, shown)
    except ValueError:
        return None


@pytest.mark.parametrize(
    ("name", "release"),
    [
        ("Gen-Verse/MMaDA-8B-Base", "Gen-Verse/MMaDA-8B-Base"),
        ("tyfeld/MMaDA-Parallel-M@0123abc", "tyfeld/MMaDA-Parallel-M"),
        ("scenes-mmada", None),
        ("somebody/else", None),
        ("MMaDA-8B-Base", None),  # no such folder
        ("showlab/show-o", "showlab/show-o"),
        ("showlab/show-o2-1.5B-HQ@main", "showlab/show-o2-1.5B-HQ"),
        ("showlab/show-o-w-clip-vit", None),  # reads CLIP features
    ],
)
def test_a_release_goes_by_its_name_on_the_hub(name: str, release: str | None) -> None:
    assert release_of(name) == release


def test_a_directory_that_does_not_tell_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "policy.json").write_text('{"family": "mmada"}')
    with pytest.raises(ConfigError, match=telling(tmp_path, "--policy.name")):
        shape_of(str(tmp_path), tmp_path)


def test_what_a_checkpoint_holds_is_read_from_its_config(tmp_path: Path, tiny_policy_dir: Path) -> None:
    assert held_bytes(str(tiny_policy_dir), tiny_policy_dir) == 4
    policies.load(tiny_policy_dir).to("cpu", torch.bfloat16).save(tmp_path)
    assert held_bytes(str(tmp_path), tmp_path) == 2
    assert held_bytes("tyfeld/MMaDA-Parallel-M", NOWHERE) == 2
    assert held_bytes("nothing", tmp_path / "nothing") is None
