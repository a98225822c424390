"""The image tokenizer is the released one: names, shapes, codes and pixels; a code is a sign pattern."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from policies.image.magvitv2 import LFQuantizer, MAGVITv2, MAGVITv2Config
from tests.wording import telling


@pytest.fixture(scope="module")
def cases(golden: Path) -> dict[str, Tensor]:
    return load_file(golden / "magvitv2" / "cases.safetensors")


@torch.no_grad()
@pytest.mark.parametrize(("case", "shape"), [("a", (8, 8)), ("b", (6, 4))], ids=["square", "non-square"])
def test_codes_and_pixels_equal_the_recorded_ones(
    magvit_model: MAGVITv2, cases: dict[str, Tensor], case: str, shape: tuple[int, int]
) -> None:
    pixels = cases[f"{case}.pixels"]
    z = magvit_model.encoder(pixels)
    assert torch.allclose(z, cases[f"{case}.z"], rtol=0, atol=1e-5)
    assert torch.equal(magvit_model.quantize.decode(magvit_model.quantize.encode(z)), cases[f"{case}.encode_zq"])
    assert torch.equal(magvit_model.get_code(pixels), cases[f"{case}.codes"])
    assert torch.allclose(magvit_model.decode_code(cases[f"{case}.codes"], shape), cases[f"{case}.recon"], rtol=0, atol=2e-5)
    assert torch.allclose(magvit_model(pixels), cases[f"{case}.recon"], rtol=0, atol=2e-5)


@torch.no_grad()
def test_codes_without_a_shape_are_decoded_as_a_square(magvit_model: MAGVITv2, cases: dict[str, Tensor]) -> None:
    assert torch.allclose(magvit_model.decode_code(cases["c.codes"]), cases["c.decoded"], rtol=0, atol=2e-5)


def test_parameter_names_and_shapes_are_the_released_ones(golden: Path) -> None:
    listed = json.loads((golden / "released_keys" / "magvitv2.json").read_text())
    with torch.device("meta"):
        state = MAGVITv2(MAGVITv2Config()).state_dict()
    assert {k: list(v.shape) for k, v in state.items()} == {k: shape for k, (shape, _) in listed.items()}
    assert {k: str(v.dtype).removeprefix("torch.") for k, v in state.items()} == {
        k: dtype.removeprefix("torch.") for k, (_, dtype) in listed.items()
    }


def test_loading_leaves_no_key_over_and_none_missing(golden: Path) -> None:
    loaded: Any = MAGVITv2.from_pretrained(golden / "magvitv2", output_loading_info=True)
    info = loaded[1]
    assert {name: len(keys) for name, keys in info.items()} == dict.fromkeys(info, 0) and "missing_keys" in info


def test_a_code_is_its_sign_pattern_with_the_highest_bit_first() -> None:
    quantizer = LFQuantizer(13)
    codes = torch.tensor([0, 1, 4096, 5, 8191])
    patterns = [[1.0 if bit == "1" else -1.0 for bit in f"{int(code):013b}"] for code in codes]
    assert quantizer.decode(codes.view(1, 1, -1))[0, :, 0].T.tolist() == patterns


def test_encoding_is_the_inverse_of_decoding_for_every_code() -> None:
    quantizer = LFQuantizer(13)
    codes = torch.randperm(8192, generator=torch.Generator().manual_seed(0)).view(2, 64, 64)
    assert torch.equal(quantizer.encode(quantizer.decode(codes)), codes)
    # only the sign counts, and 0 is not positive
    assert torch.equal(quantizer.encode(quantizer.decode(codes) * 0.01), codes)
    assert quantizer.encode(torch.zeros(1, 13, 1, 1)).item() == 0


@pytest.mark.parametrize(("count", "shape"), [(24, None), (24, (5, 5)), (16, (4, 5))])
def test_codes_that_do_not_fill_the_grid_are_an_error(magvit_model: MAGVITv2, count: int, shape: tuple[int, int] | None) -> None:
    with pytest.raises(ValueError, match=telling(count, "shape")):
        magvit_model.decode_code(torch.zeros(1, count, dtype=torch.int64), shape)


def test_sizes_follow_from_the_config(magvit_model: MAGVITv2) -> None:
    assert (magvit_model.factor, magvit_model.codebook_size) == (4, 64)
    with torch.device("meta"):
        released = MAGVITv2(MAGVITv2Config())
    assert (released.factor, released.codebook_size) == (16, 8192)
