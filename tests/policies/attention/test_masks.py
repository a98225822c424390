"""Masks are what their sentences say, what the references recorded, and the same for FlexAttention as for dense attention."""

import itertools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from policies.attention.masks import Full, Mask, Omni, at_places, between, omni
from tests.wording import telling

SOI, EOI, PAD = 101, 102, 100
"""Ids of the recorded Show-o case."""


def random_mask(seed: int, batch: int = 3, length: int = 37) -> Omni:
    """Texts and images in turn, of random lengths, with padding anywhere: within images too."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.zeros(batch, length, dtype=torch.int64)
    for row in blocks:
        start, number = 0, 0
        while start < length:
            text, image = torch.randint(0, 7, (2,), generator=generator).tolist()
            number += 1
            row[start + text : start + text + image] = number
            start += text + image + 1
    return omni(blocks, torch.rand(batch, length, generator=generator) < 0.8)


@pytest.mark.parametrize("seed", range(4))
def test_the_mask_is_what_a_loop_over_its_definition_gives(seed: int) -> None:
    mask = random_mask(seed)
    dense = mask.dense()
    assert dense.shape == (3, 1, 37, 37) and dense.dtype == torch.bool
    for b, row, column in itertools.product(range(3), range(37), range(37)):
        before, same = column <= row, int(mask.blocks[b, row]) == int(mask.blocks[b, column]) != 0
        seen = (before or same) and (bool(mask.real[b, column]) or row == column)
        assert bool(dense[b, 0, row, column]) is seen, (b, row, column)
    assert dense.any(-1).all(), "no row is empty"
    assert not dense.all() and (dense & ~torch.ones(37, 37, dtype=torch.bool).tril()).any()


def test_the_full_mask_is_what_a_loop_over_its_definition_gives() -> None:
    mask = Full(random_mask(0).real)
    dense = mask.dense()
    assert dense.shape == (3, 1, 37, 37) and dense.dtype == torch.bool
    for b, row, column in itertools.product(range(3), range(37), range(37)):
        seen = bool(mask.real[b, column]) if mask.real[b, row] else True
        assert bool(dense[b, 0, row, column]) is seen, (b, row, column)
    assert mask.positions().tolist() == [list(range(37))] * 3


@pytest.mark.parametrize("mask", [random_mask(0), Full(random_mask(0).real)], ids=["omni", "full"])
def test_rows_alone_are_rows_of_the_whole(mask: Mask) -> None:
    assert torch.equal(mask.dense(slice(5, 19)), mask.dense()[:, :, 5:19])
    assert torch.equal(mask.dense(slice(-1, None)), mask.dense()[:, :, -1:])


def test_positions_count_real_tokens() -> None:
    real = torch.tensor([[0, 0, 1, 1, 0, 1], [1, 1, 1, 1, 1, 0]]).bool()
    assert omni(torch.zeros(2, 6).long(), real).positions()[real].tolist() == [0, 1, 2, 0, 1, 2, 3, 4]
    assert omni(torch.zeros(2, 6).long(), real).positions().min() == 0


def test_blocks_from_tokens_and_from_places() -> None:
    ids = torch.tensor([[7, SOI, 1, 2, EOI, 5, SOI, 3, EOI, EOI, 4], [EOI, 7, 8, SOI, 3, 3, 3, 3, 3, 3, 3]])
    assert between(ids, SOI, EOI).tolist() == [[0, 1, 1, 1, 1, 0, 2, 2, 2, 0, 0], [0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1]]
    places = torch.tensor([[[1, 3], [6, 2]], [[0, 0], [4, 3]]])
    assert at_places(places, 9).tolist() == [[0, 1, 1, 1, 0, 0, 2, 2, 0], [0, 0, 0, 0, 2, 2, 2, 0, 0]]


def test_shapes_that_differ_are_an_error() -> None:
    with pytest.raises(ValueError, match=telling("[2, 5]", "[2, 4]")):
        omni(torch.zeros(2, 5).long(), torch.ones(2, 4).bool())


# ---- the recorded masks


@pytest.mark.parametrize("name", ["t2i", "multi"])
def test_it_is_the_recorded_mask_of_show_o2(golden: Path, name: str) -> None:
    t = load_file(golden / "showo2" / "cases.safetensors")
    blocks = at_places(t[f"{name}.modality_positions"], t[f"{name}.text_tokens"].shape[1])
    assert torch.equal(omni(blocks).dense(), t[f"{name}.mask_allowed"].bool()), "the reference hides no padding"


@pytest.mark.parametrize("name", ["t2i", "lm", "lvg", "mmu"])
def test_it_is_the_recorded_mask_of_show_o_at_real_rows(golden: Path, name: str) -> None:
    t = load_file(golden / "showo" / "cases.safetensors")
    ids, recorded = t[f"{name}.input_ids"], t[f"{name}.mask_allowed"].bool()
    real = ids != PAD
    blocks = between(ids, SOI, EOI)
    if name == "mmu":  # there the task token in front of the image sees it as well
        last = (ids == EOI).int().argmax(1, keepdim=True)
        blocks = (torch.arange(ids.shape[1]) <= last).long()
    rows = real.clone()
    if name == "lvg":  # there padding is hidden from the first image on only
        rows &= (ids == SOI).cumsum(1) > 0
    ours = omni(blocks, real).dense()
    assert rows.sum() > 15 and torch.equal(ours[:, 0][rows], recorded[:, 0][rows])


# ---- as FlexAttention's function


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("full", [False, True], ids=["omni", "full"])
def test_flex_attention_gives_what_dense_attention_gives(full: bool, seed: int) -> None:
    given = random_mask(seed, batch=2, length=150)
    mask: Mask = Full(given.real) if full else given
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(2, 4, 150, 16, generator=generator) for _ in range(3))
    dense = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.dense())

    def flex(function: Mask) -> Tensor:
        block_mask = create_block_mask(function, 2, None, 150, 150, device="cpu")
        out = flex_attention(q, k, v, block_mask=block_mask)
        assert isinstance(out, Tensor)
        return out

    assert torch.allclose(flex(mask), dense, rtol=0, atol=1e-5)
    assert not torch.allclose(flex(omni(torch.zeros_like(given.blocks), given.real)), dense, rtol=0, atol=1e-2)


def test_an_image_that_opens_in_the_first_column_is_a_block() -> None:
    """What closes at the end of the row does not close in front of its beginning."""
    ids = torch.tensor([[1, 5, 2, 5, 1, 2], [1, 5, 5, 5, 5, 2], [5, 1, 2, 5, 5, 2]])
    assert between(ids, 1, 2).tolist() == [[1, 1, 1, 0, 2, 2], [1, 1, 1, 1, 1, 1], [0, 1, 1, 0, 0, 0]]
