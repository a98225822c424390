"""Sequences are laid out as the released prompting code lays them out."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from pararl.types import Prompt
from policies.backbones.llada import MMadaConfig, MMadaModelLM
from policies.image.magvitv2 import MAGVITv2, MAGVITv2Config
from policies.layout import Span, Specials, Vocabulary, canvas, pad_left
from policies.mmada import MMadaPolicy, MMadaSettings


@pytest.fixture(scope="module")
def recorded(golden: Path) -> dict[str, Any]:
    return json.loads((golden / "prompts" / "prompts.json").read_text())["mmada"]


@pytest.fixture(scope="module")
def released() -> MMadaPolicy:
    """A policy with the released vocabulary (a tokenizer whose word "7" is id 7) and settings, on a narrow backbone without memory."""
    core = Tokenizer(WordLevel({str(i): i for i in range(126349)}, unk_token="0"))
    core.pre_tokenizer = WhitespaceSplit()
    with torch.device("meta"):
        model = MMadaModelLM(MMadaConfig(d_model=8, n_layers=1, n_heads=1, mlp_hidden_size=8))
        images = MAGVITv2(MAGVITv2Config())
    settings = MMadaSettings(grid=(2, 2), prompt_tokens=10)
    return MMadaPolicy(model, PreTrainedTokenizerFast(tokenizer_object=core), images, settings)


def test_default_specials_are_the_released_ids(recorded: dict[str, Any]) -> None:
    names = {
        "soi": "<|soi|>",
        "eoi": "<|eoi|>",
        "t2i": "<|t2i|>",
        "mmu": "<|mmu|>",
        "pad": "[iPAD]",
        "bos": "<|sot|>",
        "eos": "<|eot|>",
    }
    ours = Specials()
    assert {name: getattr(ours, name) for name in names} == {name: recorded["special"][token] for name, token in names.items()}
    assert (ours.mask, ours.pad, ours.interleave) == (recorded["mask"], recorded["pad_id"], 126095)


def test_image_codes_start_behind_the_tokenizer_not_behind_the_padded_table(released: MMadaPolicy, recorded: dict[str, Any]) -> None:
    assert released.vocabulary.rows("text") == slice(0, recorded["len_tokenizer"])
    assert released.vocabulary.rows("image") == slice(126349, 126349 + 8192)
    assert released.model.config.embedding_size == 134656
    assert {126336, 126080, 126084, 126085, 126088, 126089, 126093, 126095} <= set(released.vocabulary.forbidden)
    assert 126081 not in released.vocabulary.forbidden, "text must be able to end"


def test_text_to_image_prompts_equal_the_recorded_ones(released: MMadaPolicy, recorded: dict[str, Any]) -> None:
    case = recorded["cases"]["t2i_gen"]
    texts = case["texts"][:2]
    assert "" in texts
    # Ours pads to the longest prompt, the release always to max_text_len with one more for the task token.
    blank = released.canvas([Prompt(str(i), "t2i", text) for i, text in enumerate(texts)], width=recorded["max_text_len"] + 1)
    assert blank.ids.tolist() == case["out"]["input_ids"][:2]
    assert blank.attention.long().tolist() == case["out"]["attention_mask"][:2]
    # the unconditional prompt is the prompt of an empty text
    assert released.canvas([Prompt("", "t2i", texts[0])], conditional=False, width=11).ids.tolist() == [case["out"]["input_ids"][1]]


def test_a_prompt_that_is_too_long_is_an_error_where_the_release_cuts_it(released: MMadaPolicy, recorded: dict[str, Any]) -> None:
    text = recorded["cases"]["t2i_gen"]["texts"][2]
    assert len(text.split()) > 10
    with pytest.raises(ValueError, match=r"prompt long has 14 tokens, more than the 10"):
        released.canvas([Prompt("long", "t2i", text)])


@pytest.mark.parametrize("task", ["t2t", "i2t", "edit"])
def test_tasks_of_other_families_are_an_error(released: MMadaPolicy, task: Any) -> None:
    with pytest.raises(ValueError, match=f"prompt x: .* not {task} from text$"):
        released.prefix(Prompt("x", task, "1"))


def test_an_input_image_is_an_error(released: MMadaPolicy) -> None:
    with pytest.raises(ValueError, match="not t2i from text and an image"):
        released.prefix(Prompt("x", "t2i", "1", image=torch.zeros(4, 4, 3).numpy()))


def test_a_vocabulary_larger_than_the_embedding_is_an_error(policy: MMadaPolicy) -> None:
    small = MMadaModelLM(MMadaConfig(d_model=8, n_layers=1, n_heads=1, mlp_hidden_size=8, embedding_size=20))
    with pytest.raises(ValueError, match="16 text ids and 8 codes do not fit 20"):
        MMadaPolicy(small, policy.tokenizer, policy.images, policy.settings)


def test_prompts_are_padded_on_the_left() -> None:
    ids, mask = pad_left([[5, 6, 7], [8]], pad=9)
    assert ids.tolist() == [[5, 6, 7], [9, 9, 8]] and mask.tolist() == [[True, True, True], [False, False, True]]
    ids, mask = pad_left([[5, 6]], pad=9, width=4)
    assert ids.tolist() == [[9, 9, 5, 6]] and mask.tolist() == [[False, False, True, True]]


def test_image_and_text_share_one_canvas_in_the_released_order() -> None:
    s = Specials(mask=0, bos=1, eos=2, soi=3, eoi=4, pad=7)
    blank = canvas([[8, 1, 20, 2], [8, 1, 2]], image_tokens=2, text_tokens=3, specials=s)
    assert blank.ids.tolist() == [[8, 1, 20, 2, 3, 0, 0, 4, 1, 0, 0, 0], [7, 8, 1, 2, 3, 0, 0, 4, 1, 0, 0, 0]]
    assert blank.spans == (Span("image", 5, 7), Span("text", 9, 12))
    assert blank.span("text") == Span("text", 9, 12)
    assert (blank.ids == s.mask).sum(1).tolist() == [sum(len(span) for span in blank.spans)] * 2
    assert canvas([[8]], 2, 0, s).spans == (Span("image", 2, 4),) and canvas([[8]], 2, 0, s).span("text") is None
    assert canvas([[8]], 0, 3, s).spans == (Span("text", 2, 5),)


def test_the_rows_of_the_modalities_do_not_overlap() -> None:
    vocabulary = Vocabulary(text_size=10, codes=4)
    assert vocabulary.rows("text") == slice(0, 10) and vocabulary.rows("image") == slice(10, 14)
