"""Chameleon's image tokenizer: its five functions, the names of its weights, and where they are read from."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.models.chameleon.configuration_chameleon import ChameleonVQVAEConfig
from transformers.models.janus.configuration_janus import JanusVQVAEConfig
from transformers.models.janus.modeling_janus import JanusVQVAEDecoder

from policies.image.chameleon import ChameleonVQ
from policies.image.chameleon_files import read_vq

SIZES: dict[str, Any] = {
    "base_channels": 32,
    "channel_multiplier": [1, 2],
    "num_res_blocks": 1,
    "latent_channels": 8,
    "embed_dim": 6,
    "num_embeddings": 12,
    "resolution": 8,
}


def build(**sizes: Any) -> ChameleonVQ:
    torch.manual_seed(0)
    model = ChameleonVQ(ChameleonVQVAEConfig(**{**SIZES, **sizes})).eval()
    with torch.no_grad():  # wide, and the codebook made of latents, so that images differ in their codes
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        latents = model.encode(pixels()).movedim(1, -1).reshape(-1, 6)
        model.quantize.embedding.weight.copy_(latents[torch.randperm(len(latents))[:12]])
    return model


@pytest.fixture(scope="module")
def vq() -> ChameleonVQ:
    return build()


def pixels() -> Tensor:
    return torch.rand(3, 3, 8, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1


@torch.no_grad()
def test_the_five_functions_go_from_pixels_to_pixels(vq: ChameleonVQ) -> None:
    """By hand: the nearest row of the codebook at every place, in raster order, under the ids of a vocabulary, and back."""
    latents = vq.encode(pixels())
    indices = vq.indices(latents)
    assert indices.shape == (3, 4, 6) and indices.unique().numel() > 3
    book = vq.quantize.embedding.weight
    for b, row, column in ((0, 0, 0), (1, 3, 5), (2, 1, 4)):
        distances = (book - latents[b, :, row, column]).square().sum(1)
        assert int(indices[b, row, column]) == int(distances.argmin())
    ids = torch.tensor([40, 31, 38, 33, 36, 35, 34, 37, 32, 39, 30, 41])
    tokens = vq.tokens(indices, ids)
    assert tokens[1].tolist() == [int(ids[code]) for code in indices[1].flatten().tolist()]
    vectors = vq.codebook(tokens, (4, 6), ids)
    assert torch.equal(vectors, vq.codebook(vq.get_code(pixels()), (4, 6))) and torch.equal(vectors[2, :, 1, 4], book[indices[2, 1, 4]])
    made = vq.decode(vectors)
    assert (
        made.shape == (3, 3, 8, 12) and torch.equal(made, vq.decode_code(vq.get_code(pixels()), (4, 6))) and torch.equal(made, vq(pixels()))
    )
    assert (vq.factor, vq.codebook_size) == (2, 12)


@torch.no_grad()
def test_the_decoder_is_that_of_janus_with_its_levels_in_the_other_order() -> None:
    """Where the lowest level alone has attention, as Janus's decoder always has it, its own forward says the same."""
    vq = build(attn_resolutions=[4], channel_multiplier=[1, 2], resolution=8)
    own = JanusVQVAEDecoder(JanusVQVAEConfig(base_channels=32, channel_multiplier=[1, 2], num_res_blocks=1, latent_channels=8)).eval()
    assert vq.decoder is not None
    swapped = {"up.0.": "up.1.", "up.1.": "up.0."}
    own.load_state_dict({swapped.get(name[:5], name[:5]) + name[5:]: value for name, value in vq.decoder.state_dict().items()})
    vectors = torch.randn(2, 6, 4, 6)
    assert torch.allclose(vq.decode(vectors), own(vq.post_quant_conv(vectors)), atol=1e-5)


def test_weights_have_the_names_of_taming_transformers(vq: ChameleonVQ, golden: Path) -> None:
    recorded = load_file(golden / "taming_vqgan" / "model.safetensors")
    assert read_vq(golden / "taming_vqgan").state_dict().keys() == recorded.keys()


@pytest.mark.parametrize("form", ["ours", "ckpt", "yaml", "within", "within a checkpoint that draws"])
def test_a_directory_is_read_for_what_it_is(vq: ChameleonVQ, tmp_path: Path, form: str) -> None:
    state = vq.state_dict()
    draws = form != "within"
    if form == "ours":
        vq.save_pretrained(tmp_path)
    elif form in ("ckpt", "yaml"):
        names = {"base_channels": "ch", "channel_multiplier": "ch_mult", "latent_channels": "z_channels"}
        taming = {names.get(name, name): value for name, value in SIZES.items() if name not in ("embed_dim", "num_embeddings")}
        ddconfig = {**taming, "double_z": False, "in_channels": 3, "out_ch": 3, "attn_resolutions": [], "dropout": 0.0}
        params = {"ddconfig": ddconfig, "embed_dim": 6, "n_embed": 12}
        released = {"model": {"params": params | {"ckpt_path": None, "lossconfig": {"target": "Dummy"}}}}
        kept_as = {"ckpt": ("config.json", json.dumps(params)), "yaml": ("vqgan.yaml", yaml.safe_dump(released))}[form]
        (tmp_path / kept_as[0]).write_text(kept_as[1])
        torch.save({"state_dict": state, "global_step": 3}, tmp_path / "vqgan.ckpt")
    else:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "chameleon", "vq_config": SIZES}))
        kept = {f"model.vqmodel.{name}": value for name, value in state.items() if draws or not name.startswith("decoder.")}
        names_of = sorted(kept)
        for i in range(2):
            part = {name: kept[name].clone() for name in names_of[i::2]} | ({"lm_head.weight": torch.ones(2, 2)} if i else {})
            save_file(part, tmp_path / f"model-{i + 1:05d}-of-00002.safetensors", metadata={"format": "pt"})
    found = read_vq(tmp_path).eval()
    assert all(torch.equal(value, state[name]) for name, value in found.state_dict().items())
    assert torch.equal(found.get_code(pixels()), vq.get_code(pixels()))
    if draws:
        assert torch.equal(found(pixels()), vq(pixels())) and found.state_dict().keys() == state.keys()
    else:
        with pytest.raises(ValueError, match="image_tokenizer="):
            found.decode_code(found.get_code(pixels()), (4, 6))


def test_weights_that_are_not_those_of_the_tokenizer_are_listed(vq: ChameleonVQ, tmp_path: Path) -> None:
    vq.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    gone = state.pop("decoder.up.1.upsample.conv.bias")
    save_file(state | {"loss.logvar": gone}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 missing keys \(decoder.up.1.upsample.conv.bias\); 1 unexpected keys \(loss.logvar\)"):
        read_vq(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="holds no weights"):
        read_vq(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"config.json nor a vqgan.yaml"):
        read_vq(tmp_path / "nothing")
