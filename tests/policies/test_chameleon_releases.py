"""Released Chameleons load by what they are, every key of them read by exactly one part, with the released ids."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import ChameleonForConditionalGeneration

import policies
from pararl.options import Sampling
from pararl.policy_files import image_shape
from pararl.types import Prompt
from policies import FAMILIES, Policy
from policies.backbones.chameleon import Chameleon, ChameleonConfig
from policies.image.chameleon import ChameleonVQ
from policies.image.chameleon_files import WITHIN
from tests.policies import chameleon_releases as made

BOS, PAD, EOS, EOI, SOI, EOT, IMAGE = 0, 1, 2, 8196, 8197, 8710, 8711


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders as somebody has them who fetched the repositories."""
    folder = tmp_path_factory.mktemp("hub")
    made.release(folder / "chameleon-7b")
    made.release(folder / "Anole-7b-v0.1-hf", decoder=True)
    return folder


@pytest.fixture(scope="module")
def chameleon(hub: Path) -> Policy:
    return policies.load(hub / "chameleon-7b")


@pytest.fixture(scope="module")
def anole(hub: Path) -> Policy:
    return policies.load(hub / "Anole-7b-v0.1-hf")


def held(folder: Path) -> dict[str, Tensor]:
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def smaller(policy: Policy, **settings: Any) -> Policy:
    """The same parts under other settings."""
    parts = policy.model, policy.layout.text.tokenizer, policy.layout.images.module
    return FAMILIES[policy.family].policy(*parts, replace(policy.settings, **settings))


def keys_and_shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def test_keys_and_shapes_are_those_of_the_released_7b() -> None:
    """With the published configuration, on no device: those of transformers' own class, which the hub's files were saved from."""
    published = {
        "vocab_size": 65536,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
        "swin_norm": False,
        "vocabulary_map": {"<image>": 8711},
        "vq_config": {
            "attn_resolutions": [],
            "base_channels": 128,
            "channel_multiplier": [1, 1, 2, 2, 4],
            "double_latent": False,
            "embed_dim": 256,
            "latent_channels": 256,
            "num_embeddings": 8192,
            "num_res_blocks": 2,
            "resolution": 512,
        },
    }
    with torch.device("meta"):
        config = ChameleonConfig(**published)  # type: ignore[arg-type]
        model, images = Chameleon(config), ChameleonVQ(config.vq_config)  # type: ignore[arg-type]
        released = ChameleonForConditionalGeneration(config)
    ours = keys_and_shapes(model)
    vq = keys_and_shapes(images)
    decoder = {name: shape for name, shape in vq.items() if name.startswith("decoder.")}
    assert ours | {WITHIN + name: shape for name, shape in vq.items() if name not in decoder} == keys_and_shapes(released)
    layer = 4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096 + 2 * 2 * 4096
    assert sum(p.numel() for p in model.parameters()) == 2 * 65536 * 4096 + 32 * layer + 4096
    drawn = sum(p.numel() for name, p in images.named_parameters() if name in decoder)
    assert len(decoder) == 164 and round(drawn / 1e6, 1) == 39.3, "as those of taming-transformers at this size"
    assert ours["lm_head.weight"] == (65536, 4096) and ours["model.layers.31.self_attn.q_norm.bias"] == (32, 128)
    assert (images.factor, images.codebook_size) == (16, 8192)


def test_every_weight_of_a_release_is_read(hub: Path, chameleon: Policy, anole: Policy) -> None:
    for policy, name in ((chameleon, "chameleon-7b"), (anole, "Anole-7b-v0.1-hf")):
        files, images = held(hub / name), policy.layout.images.module.state_dict()
        read = dict(policy.model.state_dict()) | {WITHIN + key: value for key, value in images.items()}
        assert read.keys() == files.keys() and all(torch.equal(value.bfloat16(), files[key]) for key, value in read.items())
    assert chameleon.tasks == ("t2t", "i2t") and set(anole.tasks) == {"t2t", "i2t", "t2i", "edit", "interleaved"}
    assert chameleon.model.dtype == torch.bfloat16 and chameleon.layout.images.size == (512, 512)


def test_ids_are_the_released_ones(chameleon: Policy, anole: Policy) -> None:
    vocabulary = made.vocabulary()
    black = np.zeros((512, 512, 3), np.uint8)
    (shown,) = chameleon.layout.shown([Prompt("x", "i2t", "", image=black)])
    pixels = torch.full((1, 512, 512, 3), -1.0).movedim(-1, 1)
    codes = chameleon.layout.images.module.get_code(pixels)[0].tolist()
    assert list(shown.ids) == [vocabulary[made.name(code)] for code in codes] and len(codes) == 1024
    assert 4 <= min(shown.ids) and max(shown.ids) < EOI
    asked = Prompt("x", "i2t", "w9000 w9001", image=black)
    assert chameleon.layout.prefix(asked, shown.ids) == [BOS, SOI, *shown.ids, EOI, 9000, 9001, EOT]
    assert chameleon.layout.prefix(Prompt("x", "t2t", "w9000")) == [BOS, 9000, EOT]
    assert list(anole.layout.tail("t2i").ids) == [SOI, *[IMAGE] * 1024, EOI]
    blank = chameleon.layout.canvas([Prompt("x", "t2t", "w9000 w9001"), Prompt("y", "t2t", "w9000")])
    assert blank.ids[1, 0] == PAD and not blank.attention[1, 0]


def test_a_text_holds_no_code_and_no_special_token_but_an_end(chameleon: Policy) -> None:
    can = (chameleon.tokens.text_bias == 0).nonzero().flatten().tolist()
    assert can == [EOS, SOI, *range(8712, 65536)]
    for token in ("<reserved08706>", made.name(17)):
        with pytest.raises(ValueError, match="special token|has no"):
            chameleon.layout.text.encode(f"w9000 {token}")


def test_a_release_samples_texts_and_one_with_a_decoder_images(chameleon: Policy, anole: Policy) -> None:
    (rollout,) = smaller(chameleon, answer_tokens=5).generate([Prompt("x", "t2t", "w9000")], [0], Sampling(steps=2))
    assert set(rollout.segments[0].tokens.tolist()) <= {EOS, SOI, *range(8712, 65536)}
    drawing = smaller(anole, grid=(2, 3), text_tokens=4)
    (rollout,) = drawing.generate([Prompt("x", "interleaved", "w9000")], [0], Sampling(steps=2, guidance=2.0))
    text, image = rollout.segments
    assert ((image.tokens >= 4) & (image.tokens < EOI)).all() and rollout.output.image is not None
    assert rollout.output.image.shape == (32, 48, 3) and not ((text.tokens >= 4) & (text.tokens < SOI)).any()
    with pytest.raises(ValueError, match="this policy does t2t, i2t, not t2i"):
        chameleon.generate([Prompt("x", "t2i", "w9000")], [0], Sampling(steps=2))


def test_the_whole_vqgan_beside_a_release_is_taken(hub: Path, tmp_path: Path, anole: Policy) -> None:
    """A checkpoint of transformers cannot draw; Chameleon's own ``vqgan.ckpt`` can."""
    folder = tmp_path / "chameleon-7b"
    shutil.copytree(hub / "chameleon-7b", folder)
    made.whole_vqgan(folder / "image_tokenizer", hub / "Anole-7b-v0.1-hf")
    images = policies.load(folder).layout.images
    tokens = torch.arange(4, 10)[None].repeat(1, 1024)[:, :1024]
    assert np.array_equal(images.decode(tokens), anole.layout.images.decode(tokens))
    shape = image_shape(folder / "image_tokenizer")
    assert (shape.factor, shape.codes, shape.channels) == (16, 8192, 32)


def test_a_saved_release_is_a_policy_like_any_other(anole: Policy, tmp_path: Path) -> None:
    anole.save(tmp_path / "own")
    again = policies.load(tmp_path / "own")
    assert again.settings == anole.settings and torch.equal(again.tokens.text_bias, anole.tokens.text_bias)
    assert torch.allclose(again.canary(), anole.canary(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("model.layers.1.self_attn.q_norm.weight", r"1 missing keys \(model.layers.1.self_attn.q_norm.weight\)"),
        ("model.vqmodel.quant_conv.bias", r"1 missing keys \(quant_conv.bias\)"),
    ],
)
def test_a_key_that_is_missing_is_told_by_the_part_that_reads_it(hub: Path, tmp_path: Path, key: str, said: str) -> None:
    folder = tmp_path / "chameleon-7b"
    shutil.copytree(hub / "chameleon-7b", folder)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    (folder / "model.safetensors.index.json").unlink()
    state = {name: value for name, value in held(hub / "chameleon-7b").items() if name != key}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=said):
        policies.load(folder)
