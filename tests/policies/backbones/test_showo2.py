"""The backbone is the released one: names, shapes, logits, velocities. Padding changes nothing. What was read need not be read anew."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, Qwen2Config, Qwen2ForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from policies.attention.masks import omni
from policies.backbones.layers import frequencies
from policies.backbones.showo2 import Showo2
from policies.backbones.showo2_config import LARGE, Showo2Config
from policies.backbones.showo2_layers import stretched
from policies.backbones.showo2_state import Prefix
from policies.image.codec import patched, unpatched
from policies.weights import read_model
from tests.wording import telling

SIZES: dict[str, Any] = {
    "llm_vocab_size": 40,
    "llm_model_path": "",
    "image_latent_dim": 3,
    "image_latent_height": 3,
    "image_latent_width": 3,
    "hidden_size": 24,
    "clip_latent_dim": 16,
    "num_diffusion_layers": 2,
    "llm_config": {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2},
    "clip_config": {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 48,
        "patch_size": 16,
    },
    "head_config": {"hidden_size": 32, "intermediate_size": 40, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8},
}
GRID, COLUMNS = (2, 3), 7
"""Patches of an image here, which is not the grid of the position embedding; and its columns, the time's among them."""


def build(seed: int = 0, **sizes: Any) -> Showo2:
    """A random model of which nothing is 0, so that what it sees changes what it says."""
    torch.manual_seed(seed)
    model = Showo2(Showo2Config(**SIZES | sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return model


@pytest.fixture(scope="module")
def model() -> Showo2:
    return build()


def draws(seed: int) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator)


def sequence(images: int, seed: int = 0, batch: int = 3) -> dict[str, Tensor]:
    """Texts of 5 columns with images between and behind them, without padding."""
    draw = draws(seed)
    text, picture = torch.zeros(5).long(), torch.ones(COLUMNS).long()
    blocks = torch.cat([part for k in range(1, images + 1) for part in (text, picture * k)] + [text])
    return {
        "ids": draw(batch, len(blocks)).abs().mul(12).long().clamp(0, 39),
        "blocks": blocks.expand(batch, -1),
        "latents": draw(batch * images, 3, 2 * GRID[0], 2 * GRID[1]),
        "times": draw(batch * images).sigmoid(),
    }


# ---- parity with the recorded reference; the rest of the case is in tests/policies/test_parity.py


def test_parameter_names_and_shapes_are_the_released_ones(golden: Path) -> None:
    listed = json.loads((golden / "released_keys" / "showo2_1.5b.json").read_text())
    with torch.device("meta"):
        state = Showo2(Showo2Config()).state_dict()
    assert {k: list(v.shape) for k, v in state.items()} == {k: shape for k, (shape, _) in listed.items()}
    assert len(listed) == 910


def test_the_7b_release_is_known_by_its_language_model() -> None:
    with torch.device("meta"):
        model = Showo2(Showo2Config(llm_model_path=LARGE, hidden_size=3584))
    assert 8.5e9 < sum(p.numel() for p in model.parameters()) < 9.5e9, "7.6 billion, and the two paths with the diffusion head"
    assert model.showo.lm_head.weight is not model.showo.model.embed_tokens.weight


def test_a_head_as_wide_as_the_language_model_has_no_projections() -> None:
    head = SIZES["head_config"] | {"hidden_size": 24}
    names = {name.partition(".")[0] for name in build(head_config=head).state_dict()}
    assert not names & {"diff_proj", "time_embed_proj"} and "time_embed" in names
    assert {"diff_proj", "time_embed_proj"} <= {name.partition(".")[0] for name in build().state_dict()}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"llm_model_path": "Qwen/Qwen3-4B"}, ("llm_model_path", "Qwen/Qwen3-4B")),
        ({"hidden_size": 32}, ("hidden_size", 32, "llm_config", 1536)),
        ({"clip_latent_dim": 32}, ("clip_latent_dim", 32, "clip_config", 1152)),
        ({"add_time_embeds": False}, ("add_time_embeds", False)),
        ({"llm_config": {"use_sliding_window": True}}, ("use_sliding_window", True, "llm_config")),
        ({"llm_config": {"rope_scaling": {"rope_type": "yarn"}}}, ("rope_scaling", "yarn")),
        ({"head_config": {"qk_norm": False}}, ("qk_norm", False, "head_config")),
    ],
)
def test_what_this_backbone_does_not_do_is_refused(fields: dict[str, Any], said: tuple[object, ...]) -> None:
    with pytest.raises(ValueError, match=telling(*said)):
        Showo2Config(**fields)


@torch.no_grad()
def test_text_alone_is_the_language_model_of_transformers(model: Showo2) -> None:
    reference = Qwen2ForCausalLM(Qwen2Config(**model.config.llm_config)).eval()
    reference.load_state_dict(model.showo.state_dict())
    ids = sequence(1)["ids"]
    logits, velocity = model(ids)
    assert velocity is None and torch.allclose(logits, reference(ids).logits, rtol=0, atol=1e-5)


def test_saving_writes_the_released_names_and_loading_gives_the_same_model(tmp_path: Path) -> None:
    model = build(llm_config=SIZES["llm_config"] | {"tie_word_embeddings": True})
    model.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == model.state_dict().keys()
    again = read_model(Showo2, tmp_path)
    assert again.showo.lm_head.weight is again.showo.model.embed_tokens.weight
    with torch.no_grad():
        given = sequence(1)
        for ours, theirs in zip(again(**given), model(**given), strict=True):
            assert torch.equal(ours, theirs)
    own = {"dtype": None, "architectures": None, "_name_or_path": ""}  # of transformers
    assert again.config.to_dict() | own == model.config.to_dict() | own


def test_a_new_model_starts_at_velocities_of_zero_and_with_logits_of_all_that_it_sees() -> None:
    torch.manual_seed(0)
    model = Showo2(Showo2Config(**SIZES))
    logits, velocity = model(**sequence(1))
    assert torch.equal(velocity, torch.zeros_like(velocity)) and float(logits.detach().std()) > 0.01
    velocity.sum().backward()
    assert model.diffusion_head_b.linear.weight.grad is not None and model.diffusion_head_b.linear.weight.grad.abs().max() > 0


def test_the_heads_frequencies_are_those_of_llama_3() -> None:
    scaling = Showo2Config().head_config["rope_scaling"]
    llama = LlamaConfig(head_dim=64, rope_parameters={**scaling, "rope_theta": 5e5})
    theirs, _ = ROPE_INIT_FUNCTIONS["llama3"](llama, torch.device("cpu"))
    plain = frequencies(64, 5e5)
    assert torch.allclose(stretched(plain, scaling), theirs, rtol=1e-6, atol=0)
    assert torch.allclose(theirs[-1], plain[-1] / 32) and torch.equal(theirs[0], plain[0]) and len(set((theirs / plain).tolist())) > 3


# ---- attention


def padded(given: dict[str, Tensor], real: Tensor) -> dict[str, Tensor]:
    """The same sequences with their columns moved to the true places of ``real``, and padding at the others."""
    out = {name: torch.zeros(real.shape, dtype=torch.int64) for name in ("ids", "blocks")}
    for name, tensor in out.items():
        tensor.masked_scatter_(real, given[name])
    out["ids"][~real] = 39
    return given | out | {"real": real}


def gaps(given: dict[str, Tensor], most: int, seed: int) -> Tensor:
    """Real places with up to ``most`` columns of padding in front of, between and behind texts and images, other ones in every row."""
    generator = torch.Generator().manual_seed(seed)
    batch, length = given["ids"].shape
    real = torch.zeros(batch, length + 3 * most, dtype=torch.bool)
    for i, row in enumerate(real):
        cuts = torch.randint(0, most + 1, (3,), generator=generator).tolist()
        place = 0
        for gap, part in zip(cuts, (2, 3, length - 5), strict=True):  # in front, within the first text, in front of the first image
            row[place + gap : place + gap + part] = True
            place += gap + part
        assert int(row.sum()) == length, i
    return real


@torch.no_grad()
@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("most", [1, 4, 30])
def test_padding_anywhere_never_changes_a_real_token(model: Showo2, images: int, most: int) -> None:
    given = sequence(images)
    logits, velocity = model(**given)
    real = gaps(given, most, seed=most)
    ours = model(**padded(given, real))
    assert torch.allclose(ours[0][real].view_as(logits), logits, rtol=0, atol=2e-5)
    assert torch.allclose(ours[1], velocity, rtol=0, atol=2e-5)
    seen = model(**{name: value for name, value in padded(given, real).items() if name != "real"})
    assert not torch.allclose(seen[1], velocity, rtol=0, atol=1e-2), "padding is seen where it is not hidden"


@torch.no_grad()
def test_text_sees_what_is_before_it_and_images_all_of_themselves(model: Showo2) -> None:
    given = sequence(2)
    before, velocity = model(**given)

    def changed(column: int | None = None, image: int | None = None) -> tuple[list[int], list[int]]:
        """Columns whose logits change in row 0 with an id or with a corner of an image, and images whose velocity does."""
        ids, latents = given["ids"].clone(), given["latents"].clone()
        if column is not None:
            ids[0, column] = (ids[0, column] + 1) % 40
        if image is not None:
            latents[image, :, -1, -1] += 1
        logits, v = model(**given | {"ids": ids, "latents": latents})
        moved = (logits - before)[0].abs().amax(-1) > 1e-4
        return moved.nonzero().flatten().tolist(), ((v - velocity).abs().amax((1, 2, 3)) > 1e-4).nonzero().flatten().tolist()

    assert changed(column=3) == (list(range(3, 29)), [0, 1])
    assert changed(image=0) == (list(range(5, 29)), [0, 1]), "the last corner of an image is seen from its first column on"
    assert changed(column=14) == (list(range(14, 29)), [1]), "a text between two images is not seen by the first"
    assert changed(image=1) == (list(range(17, 29)), [1])
    assert changed(column=8) == ([], []), "ids under an image are not looked at"


@torch.no_grad()
def test_columns_and_rows_alone_equal_those_of_the_whole(model: Showo2) -> None:
    given = sequence(1)
    real = gaps(given, 3, seed=0)
    moved = padded(given, real)
    mask, x = omni(moved["blocks"], real), model.embed(moved["ids"], moved["blocks"], given["latents"], given["times"])
    columns = torch.tensor([25, 9, 17])
    hidden = model.states(x, mask, columns)
    assert torch.allclose(hidden, model.states(x, mask)[:, columns], rtol=0, atol=1e-5)
    assert torch.allclose(model.head(hidden, slice(4, 20)), model.head(hidden)[..., 4:20], rtol=0, atol=1e-6)


def test_blocks_that_the_images_do_not_fill_are_an_error(model: Showo2) -> None:
    given = sequence(1)
    with pytest.raises(ValueError, match=telling(3, 5, 21)):
        model(**given | {"latents": torch.zeros(3, 3, 4, 4)})
    with pytest.raises(ValueError, match=telling("block", "latents", "time")):
        model(given["ids"], given["blocks"])
    with pytest.raises(ValueError, match=telling("block", "latents", "time")):
        model(given["ids"], given["blocks"], given["latents"])


def test_tokens_and_latents_are_each_others_inverse() -> None:
    latents = draws(0)(2, 3, 4, 6)
    tokens = patched(latents, 2)
    assert tokens.shape == (2, 6, 12) and torch.equal(unpatched(tokens, 2, (2, 3)), latents)
    assert torch.equal(tokens[0, 1].view(4, 3), latents[0].flatten(1).T[4:8]), "token 1 has pixels 4 to 7 in raster order"


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    given = sequence(2)

    def gradients(checkpointing: bool) -> tuple[list[Tensor], int]:
        model = build()
        model.gradient_checkpointing = checkpointing
        calls = list[None]()
        for part in (model.showo.model.layers[1], model.diffusion_head_a[1], model.und_trans.layers[0]):
            part.register_forward_pre_hook(lambda *_: calls.append(None))
        logits, velocity = model(**given)
        (logits.log_softmax(-1)[..., 0].sum() + velocity.square().sum()).backward()
        return [p.grad for p in model.parameters() if p.grad is not None], len(calls)

    (plain, once), (spared, twice) = gradients(False), gradients(True)
    assert len(plain) == len(list(build().parameters())) and (once, twice) == (3, 6)
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(plain, spared, strict=True))


# ---- what is read once


@torch.no_grad()
@pytest.mark.parametrize("pad", [0, 6])
def test_a_sequence_read_in_pieces_equals_the_whole(model: Showo2, pad: int) -> None:
    given = sequence(2)
    length = given["ids"].shape[1]
    first = torch.tensor([[pad], [0], [pad // 3]])
    column = torch.arange(length + pad)
    real = (column >= first) & (column < first + length)
    given = padded(given, real)
    mask = omni(given["blocks"], real)
    whole = model.states(model.embed(given["ids"], given["blocks"], given["latents"], given["times"]), mask)
    ids, blocks = given["ids"], given["blocks"]
    prefix: Prefix | None = None
    # With padding the images are in other columns of every row, and no cut between two of them is one for all.
    for start, end in pairwise([0, 3, 30, 35] if pad else [0, 3, 5, 12, 13, 15, 24, 26, 29]):
        part = blocks[:, start:end]
        inside = [i for i in range(6) if bool((part == i % 2 + 1)[i // 2].any())]
        more: dict[str, Tensor] = {"latents": given["latents"][inside], "times": given["times"][inside]} if inside else {}
        fresh = torch.where(part > 0, part - part.masked_fill(part == 0, 9).amin(1, keepdim=True) + 1, 0)
        prefix = model.read(ids[:, start:end], fresh, real=real[:, start:end], after=prefix, **more)
    assert prefix is not None
    assert torch.allclose(prefix.hidden[real], whole[real], rtol=0, atol=1e-5)
    assert torch.equal(prefix.mask.blocks, blocks) and torch.equal(prefix.mask.real, real)


@torch.no_grad()
@pytest.mark.parametrize("images", [1, 2], ids=["behind text", "behind text and an image"])
@pytest.mark.parametrize("pad", [0, 6])
def test_velocities_behind_a_prefix_equal_those_of_the_whole(model: Showo2, images: int, pad: int) -> None:
    given = sequence(images)
    given |= {name: torch.cat((torch.zeros(3, pad).long(), given[name]), 1) for name in ("ids", "blocks")}
    # Rows of other lengths, padded on the left: some of their first ids are gone.
    real = torch.arange(given["ids"].shape[1]) >= (torch.tensor([[pad + 2], [pad], [pad // 2]]) if pad else torch.zeros(3, 1))
    whole = model(**given | {"real": real})[1].view(3, images, 3, 4, 6)
    latents, times = (given[name].unflatten(0, (3, images)) for name in ("latents", "times"))
    end = given["ids"].shape[1] - 5 - COLUMNS
    more = {"latents": latents[:, 0], "times": times[:, 0]} if images == 2 else {}
    prefix = model.read(given["ids"][:, :end], given["blocks"][:, :end], real=real[:, :end], **more)
    canvas = model.canvas(prefix, GRID)
    for scale in (1.0, 1.0):  # nothing of a step stays
        ours = model.velocity_after(canvas, scale * latents[:, -1], times[:, -1])
        assert torch.allclose(ours, whole[:, -1], rtol=0, atol=1e-5)
    assert not torch.allclose(model.velocity_after(canvas, latents[:, -1], times[:, -1] / 2), whole[:, -1], rtol=0, atol=1e-2)


@torch.no_grad()
def test_rows_taken_from_a_prefix_go_on_as_they_would_have(model: Showo2) -> None:
    given = sequence(1)
    prefix = model.read(given["ids"][:, :12], given["blocks"][:, :12], given["latents"], given["times"])
    rows = torch.tensor([2, 0, 2, 2])
    ours = model.read(given["ids"][rows, 12:], after=prefix.take(rows))
    assert torch.allclose(ours.hidden, model.read(given["ids"][:, 12:], after=prefix).hidden[rows], rtol=0, atol=1e-6)


@torch.no_grad()
def test_text_with_keys_kept_equals_text_without_token_for_token(model: Showo2) -> None:
    """Greedy, batched, rows of other lengths padded on the left, behind an image."""
    lengths = torch.tensor([4, 9, 6])
    real = torch.arange(9) >= 9 - lengths[:, None]
    ids = torch.randint(0, 40, (3, 9), generator=torch.Generator().manual_seed(5))
    given = sequence(1)
    front = model.read(ids, real=real)
    image = torch.ones(3, COLUMNS).long()
    prefix = model.read(image, image, given["latents"], given["times"], after=front)
    prefix = model.read(ids[:, -1:], after=prefix)
    # A random model repeats itself: every token is one of six others.
    rows = [slice(first, first + 6) for first in range(0, 34, 3)]
    kept = []
    for part in rows:
        kept.append(model.head(prefix.hidden[:, -1], part).argmax(-1) + part.start)
        prefix = model.read(kept[-1][:, None], after=prefix)
    for row, length in enumerate(lengths.tolist()):
        alone = torch.cat((ids[row, 9 - length :], image[0], ids[row, -1:]))[None]
        blocks = torch.cat((torch.zeros(length), torch.ones(COLUMNS), torch.zeros(1))).long()[None]
        for part, token in zip(rows, kept, strict=True):
            logits, _ = model(alone, blocks, given["latents"][row : row + 1], given["times"][row : row + 1])
            assert int(logits[0, -1, part].argmax()) + part.start == int(token[row])
            alone, blocks = torch.cat((alone, token[row].view(1, 1)), 1), torch.cat((blocks, torch.zeros(1, 1).long()), 1)
    assert len({tuple(row) for row in torch.stack(kept, 1).tolist()}) == 3, "the texts are not the same"
