"""Sequences are laid out as the released prompting code lays them out."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

import policies
from pararl.types import Modality, Prompt
from policies import Policy
from policies.backbones.llada import MMadaConfig, MMadaModelLM
from policies.canvas import Span, Specials, Vocabulary, canvas, pad_left, tail
from policies.families.mmada import MMADA
from policies.image.magvitv2 import MAGVITv2, MAGVITv2Config
from policies.settings import Settings
from tests.policies.by_hand import GUIDED, KINDS, Kind, prefix, prompts, sequence, task_of, text_length
from tests.wording import telling


@pytest.fixture(scope="module")
def recorded(golden: Path) -> dict[str, Any]:
    return json.loads((golden / "prompts" / "prompts.json").read_text())["mmada"]


@pytest.fixture(scope="module")
def released() -> Policy:
    """A policy with the released vocabulary (a tokenizer whose word "7" is id 7) and settings, on a narrow backbone without memory."""
    core = Tokenizer(WordLevel({str(i): i for i in range(126349)}, unk_token="0"))
    core.pre_tokenizer = WhitespaceSplit()
    with torch.device("meta"):
        model = MMadaModelLM(MMadaConfig(d_model=8, n_layers=1, n_heads=1, mlp_hidden_size=8))
        images = MAGVITv2(MAGVITv2Config())
    settings = Settings(grid=(2, 2), prompt_tokens=10)
    return MMADA.policy(model, PreTrainedTokenizerFast(tokenizer_object=core), images, settings)


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


def test_image_codes_start_behind_the_tokenizer_not_behind_the_padded_table(released: Policy, recorded: dict[str, Any]) -> None:
    assert released.layout.text.vocabulary.rows("text") == slice(0, recorded["len_tokenizer"])
    assert released.layout.text.vocabulary.rows("image") == slice(126349, 126349 + 8192)
    assert released.model.config.embedding_size == 134656
    assert {126336, 126080, 126084, 126085, 126088, 126089, 126093, 126095} <= set(released.layout.text.vocabulary.forbidden)
    assert 126081 not in released.layout.text.vocabulary.forbidden, "text must be able to end"


def test_text_to_image_prompts_equal_the_recorded_ones(released: Policy, recorded: dict[str, Any]) -> None:
    case = recorded["cases"]["t2i_gen"]
    texts = case["texts"][:2]
    assert "" in texts
    # Ours pads to the longest prompt, the release always to max_text_len with one more for the task token.
    prompts = [Prompt(str(i), "t2i", text) for i, text in enumerate(texts)]
    prefixes = [released.layout.prefix(prompt) for prompt in prompts]
    blank = canvas(prefixes, released.layout.tail("t2i"), 126093, recorded["max_text_len"] + 1)
    assert blank.ids.tolist() == case["out"]["input_ids"][:2]
    assert blank.attention.long().tolist() == case["out"]["attention_mask"][:2]
    # the unconditional prompt is the prompt of an empty text
    assert [released.layout.prefix(prompt, without="text") for prompt in prompts] == [prefixes[texts.index("")]] * 2


def test_a_prompt_that_is_too_long_is_an_error_where_the_release_cuts_it(released: Policy, recorded: dict[str, Any]) -> None:
    text = recorded["cases"]["t2i_gen"]["texts"][2]
    assert len(text.split()) > 10
    with pytest.raises(ValueError, match=telling("long", 14, 10)):
        released.layout.canvas([Prompt("long", "t2i", text)])


# ---- tasks that answer in text, and input images


@pytest.fixture(scope="module")
def chat() -> Policy:
    """The released ids of the default dialogue: "user" is id 5 and "assistant" id 6, any other word of the recorded texts its number."""
    words = [929, 785, 223, 623, 445, 998, 249, 721, 664]
    special = {"<|start_header_id|>": 126346, "<|end_header_id|>": 126347, "<|eot_id|>": 126348}
    core = Tokenizer(WordLevel({"?": 0, "user": 5, "assistant": 6, **{str(w): w for w in words}, **special}, unk_token="?"))
    core.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, additional_special_tokens=list(special))
    with torch.device("meta"):
        model = MMadaModelLM(MMadaConfig(d_model=8, n_layers=1, n_heads=1, mlp_hidden_size=8))
        images = MAGVITv2(MAGVITv2Config())
    return MMADA.policy(model, tokenizer, images, Settings(grid=(2, 2), prompt_tokens=10, answer_tokens=4, answer_block=4))


def plain(released: Policy) -> Policy:
    """The same policy without a template around its questions."""
    settings = replace(released.settings, dialogue="{text}", prompt_tokens=20, answer_tokens=4, answer_block=4)
    return MMADA.policy(released.model, released.layout.text.tokenizer, released.layout.images.module, settings)


BLACK = np.zeros((32, 32, 3), np.uint8)


def test_questions_about_an_image_equal_the_recorded_prompts(released: Policy, recorded: dict[str, Any]) -> None:
    """The recorded rows hold question and answer, cut to the row; up to the first <eos> they are the prefix of their text."""
    case = recorded["cases"]["mmu"]
    for text, codes, row in zip(case["texts"], case["image_ids"], case["out"]["input_ids"], strict=True):
        words = row.index(126081) - row.index(126080) - 1
        prompt = Prompt("x", "i2t", " ".join(text.split()[:words]), image=BLACK)
        assert plain(released).layout.prefix(prompt, codes) == row[: row.index(126081)] and words >= 4


def test_the_default_dialogue_gives_the_recorded_question_about_an_image(chat: Policy, recorded: dict[str, Any]) -> None:
    case = recorded["cases"]["mmu"]
    row, question = case["out"]["input_ids"][0], case["out"]["prompt_mask"][0]
    ours = chat.layout.prefix(Prompt("x", "i2t", "929 785", image=BLACK), case["image_ids"][0])
    assert row[sum(question) : -1] == [929, 785, 126348, 126346, 6], "the recorded row is cut inside the assistant's header"
    assert ours == [*row[:-1], 126347]


def test_the_default_dialogue_gives_the_recorded_question(chat: Policy, recorded: dict[str, Any]) -> None:
    case = recorded["cases"]["lm_chat"]
    row, question = case["out"]["input_ids"][0], sum(case["out"]["prompt_mask"][0])
    blank = chat.layout.canvas([Prompt("x", "t2t", "929 785")])
    assert blank.ids.tolist() == [row[:question] + [126336] * 4], "the answer goes on where the recorded one does"
    assert blank.spans == (Span("text", question, question + 4),)


@pytest.mark.parametrize("case", ["lm", "lm_chat"])
def test_questions_without_an_image_equal_the_recorded_prompts(released: Policy, recorded: dict[str, Any], case: str) -> None:
    texts, rows = recorded["cases"][case]["texts"], recorded["cases"][case]["out"]["input_ids"]
    for text, row in zip(texts, rows, strict=True):
        assert plain(released).layout.prefix(Prompt("x", "t2t", text)) == row[: row.index(126081)]


def test_braces_in_a_text_or_a_dialogue_stay_as_they_are(released: Policy) -> None:
    settings = replace(released.settings, dialogue="{} {text} {4}")
    braced = MMADA.policy(released.model, released.layout.text.tokenizer, released.layout.images.module, settings)
    assert braced.layout.prefix(Prompt("x", "t2t", "7 {text}")) == [126080, 0, 7, 0, 0], "0 is what this tokenizer does not know"


@pytest.mark.parametrize("kind", KINDS)
def test_every_task_has_its_layout(policy: Policy, kind: Kind) -> None:
    s, batch = policy.settings.specials, prompts(kind)
    blank = policy.layout.canvas(batch)
    images, words = kind in GUIDED, text_length(policy, task_of(kind))
    for i, prompt in enumerate(batch):
        filled: dict[Modality, list[int]] = {"image": [s.mask] * 6} if images else {}
        ids, starts = sequence(policy, prompt, filled | ({"text": [s.mask] * words} if words else {}))
        padding = blank.ids.shape[1] - len(ids)
        assert blank.ids[i].tolist() == [s.pad] * padding + ids
        assert blank.attention[i].tolist() == [False] * padding + [True] * len(ids)
        assert {span.modality: (span.start, len(span)) for span in blank.spans} == {
            m: (padding + start, 6 if m == "image" else words) for m, start in starts.items()
        }
    assert blank.ids.shape[1] == max(len(prefix(policy, p)) for p in batch) + (8 if images else 0) + words + bool(images and words)


def test_the_dialogue_of_the_embedded_policies_ends_in_one_special_token(tiny_policy_dir: Path) -> None:
    tiny = policies.load(tiny_policy_dir)
    assert isinstance(tiny, Policy)
    s = tiny.settings.specials
    ids = [tiny.layout.text.tokenizer.convert_tokens_to_ids(word) for word in ("a", "red", "circle")]
    assert tiny.layout.prefix(Prompt("x", "t2t", "a red circle")) == [s.bos, *ids, s.eos]
    assert tiny.layout.prefix(Prompt("x", "i2t", "", image=BLACK), [99]) == [s.mmu, s.soi, 99, s.eoi, s.bos, s.eos]


def test_a_vocabulary_larger_than_the_embedding_is_an_error(policy: Policy) -> None:
    small = MMadaModelLM(MMadaConfig(d_model=8, n_layers=1, n_heads=1, mlp_hidden_size=8, embedding_size=20))
    with pytest.raises(ValueError, match=telling(16, 8, 20)):
        MMADA.policy(small, policy.layout.text.tokenizer, policy.layout.images.module, policy.settings)


def test_a_vocabulary_may_fill_the_embedding_and_not_exceed_it_by_one(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = policy.model, policy.layout.text.tokenizer, policy.layout.images.module, policy.settings
    last = policy.layout.text.vocabulary.text_size + policy.layout.images.codes
    monkeypatch.setattr(policy.model.config, "embedding_size", last)
    assert MMADA.policy(*parts).layout.text.vocabulary.rows("image").stop == last
    monkeypatch.setattr(policy.model.config, "embedding_size", last - 1)
    with pytest.raises(ValueError, match=telling(policy.layout.images.codes, last - 1)):
        MMADA.policy(*parts)


def test_a_text_may_have_as_many_tokens_as_the_policy_reads_and_not_one_more(policy: Policy) -> None:
    limit = policy.settings.prompt_tokens
    policy.layout.check_length(Prompt("a", "t2i", ""), [0] * limit)
    with pytest.raises(ValueError, match=telling("a", limit + 1, limit)):
        policy.layout.check_length(Prompt("a", "t2i", ""), [0] * (limit + 1))


def test_prompts_are_padded_on_the_left() -> None:
    ids, mask = pad_left([[5, 6, 7], [8]], pad=9)
    assert ids.tolist() == [[5, 6, 7], [9, 9, 8]] and mask.tolist() == [[True, True, True], [False, False, True]]
    ids, mask = pad_left([[5, 6]], pad=9, width=4)
    assert ids.tolist() == [[9, 9, 5, 6]] and mask.tolist() == [[False, False, True, True]]


def test_image_and_text_share_one_canvas_in_the_released_order() -> None:
    s = Specials(mask=0, bos=1, eos=2, soi=3, eoi=4, pad=7)
    blank = canvas([[8, 1, 20, 2], [8, 1, 2]], tail(2, 3, s), s.pad)
    assert blank.ids.tolist() == [[8, 1, 20, 2, 3, 0, 0, 4, 1, 0, 0, 0], [7, 8, 1, 2, 3, 0, 0, 4, 1, 0, 0, 0]]
    assert blank.spans == (Span("image", 5, 7), Span("text", 9, 12))
    assert blank.span("text") == Span("text", 9, 12)
    assert (blank.ids == s.mask).sum(1).tolist() == [sum(len(span) for span in blank.spans)] * 2
    assert canvas([[8]], tail(2, 0, s), s.pad).spans == (Span("image", 2, 4),) and canvas([[8]], tail(2, 0, s), s.pad).span("text") is None
    answer = canvas([[8, 1, 20]], tail(0, 3, s), s.pad)
    assert answer.ids.tolist() == [[8, 1, 20, 0, 0, 0]] and answer.spans == (Span("text", 3, 6),), "an answer follows its question"


def test_the_rows_of_the_modalities_do_not_overlap() -> None:
    vocabulary = Vocabulary(text_size=10, codes=4)
    assert vocabulary.rows("text") == slice(0, 10) and vocabulary.rows("image") == slice(10, 14)
