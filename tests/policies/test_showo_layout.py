"""Show-o's sequences are laid out as its released prompting code lays them out, but for where padding stands."""

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

from pararl.types import Modality, Prompt, Task
from policies import Policy
from policies.backbones.showo import Showo, ShowoConfig
from policies.canvas import Span, Specials, canvas
from policies.families.showo import SHOWO
from policies.image.magvitv2 import MAGVITv2, MAGVITv2Config
from policies.layout import extended
from policies.settings import Settings
from tests.policies import showo_by_hand as hand
from tests.policies.by_hand import KINDS, Kind, prefix, prompts, task_of, text_length
from tests.wording import telling

BLACK = np.zeros((32, 32, 3), np.uint8)
NARROW = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}


@pytest.fixture(scope="module")
def recorded(golden: Path) -> dict[str, Any]:
    return json.loads((golden / "prompts" / "prompts.json").read_text())["showo"]


def release(recorded: dict[str, Any], **settings: Any) -> Policy:
    """A policy with the released vocabulary (a tokenizer whose word "7" is id 7) on a narrow backbone without memory."""
    names = {"soi": "<|soi|>", "eoi": "<|eoi|>", "t2i": "<|t2i|>", "mmu": "<|mmu|>", "interleave": "<|lvg|>", "bos": "<|sot|>"}
    ids = {name: recorded["special"][token] for name, token in (names | {"eos": "<|eot|>", "pad": "<|pad|>"}).items()}
    core = Tokenizer(WordLevel({str(i): i for i in range(recorded["len_tokenizer"])}, unk_token="0"))
    core.pre_tokenizer = WhitespaceSplit()
    with torch.device("meta"):
        model, images = Showo(ShowoConfig(phi=NARROW)), MAGVITv2(MAGVITv2Config())
    given = {"grid": (2, 2), "prompt_tokens": 10, "dialogue": "{text}", **settings}
    specials = Specials(**ids, mask=recorded["mask"])
    return SHOWO.policy(model, PreTrainedTokenizerFast(tokenizer_object=core), images, Settings(**given, specials=specials))


@pytest.fixture(scope="module")
def released(recorded: dict[str, Any]) -> Policy:
    return release(recorded)


def test_codes_stand_behind_the_tokenizer_and_mask_behind_the_codes(released: Policy, recorded: dict[str, Any]) -> None:
    assert released.layout.text.vocabulary.rows("text") == slice(0, 50305) and recorded["len_tokenizer"] == 50305
    assert released.layout.text.vocabulary.rows("image") == slice(50305, 50305 + 8192)
    assert released.settings.specials.mask == recorded["mask"] == released.model.config.mask_token_id == 50305 + 8192
    sp = released.settings.specials
    assert (sp.bos, sp.eos) == (50256, 50256) and set(released.layout.text.ends) == {sp.eos, sp.soi}, "one token begins and ends a text"
    assert set(released.layout.text.vocabulary.forbidden) == {sp.pad, sp.eoi, sp.t2i, sp.mmu, sp.interleave, sp.mask}


@pytest.mark.parametrize("name", ["t2i_gen", "t2i"])
def test_text_to_image_prompts_equal_the_recorded_ones(released: Policy, recorded: dict[str, Any], name: str) -> None:
    case = recorded["cases"][name]
    texts = case["texts"][:2]
    assert "" in texts
    asked = [Prompt(str(i), "t2i", text) for i, text in enumerate(texts)]
    prefixes = [released.layout.prefix(prompt) for prompt in asked]
    # Ours pads to the longest prompt, the release always to max_text_len with one more for the task token.
    blank = canvas(prefixes, released.layout.tail("t2i"), recorded["pad_id"], recorded["max_text_len"] + 1)
    image = torch.tensor(case["image_ids"][:2])
    ids, attention = hand.revealed(released, blank, {"image": image}, {"image": image != recorded["mask"]})
    assert ids.tolist() == case["out"]["input_ids"][:2]
    assert torch.equal(attention, ids != recorded["pad_id"])
    assert [released.layout.prefix(prompt, without="text") for prompt in asked] == [prefixes[texts.index("")]] * 2


def test_a_prompt_that_is_too_long_is_an_error_where_the_release_cuts_it(released: Policy, recorded: dict[str, Any]) -> None:
    text = recorded["cases"]["t2i_gen"]["texts"][2]
    with pytest.raises(ValueError, match=telling("long", 14, 10)):
        released.layout.canvas([Prompt("long", "t2i", text)])


@pytest.mark.parametrize("words", [0, 2])
def test_questions_and_answers_about_an_image_hold_the_recorded_tokens(recorded: dict[str, Any], words: int) -> None:
    """The release pads on the right, we on the left and where an answer has ended: the real tokens are the recorded ones. The recorded end
    token is a target of ours and never read; each row is cut in two, question and answer."""
    case, sp = recorded["cases"]["mmu"], release(recorded).settings.specials
    own = release(recorded, answer_tokens=12)
    rows = [row[: len(row) - row[::-1].index(sp.eos)] for row in case["out"]["input_ids"]]
    texts = [row[row.index(sp.bos) + 1 : -1] for row in rows]
    assert len({len(text) for text in texts}) > 1, "of different lengths"
    asked = [Prompt(str(i), "i2t", " ".join(map(str, text[:words])), image=BLACK) for i, text in enumerate(texts)]
    answers = torch.tensor([(text[words:] + [sp.eos] * 12)[:12] for text in texts])
    prefixes = [own.layout.prefix(prompt, codes) for prompt, codes in zip(asked, case["image_ids"], strict=True)]
    blank = canvas(prefixes, own.layout.tail("i2t"), sp.pad)
    ids, attention = hand.revealed(own, blank, {"text": answers}, {})
    assert [[*row[real].tolist(), sp.eos] for row, real in zip(ids, attention, strict=True)] == rows
    told = [answer[count].tolist() for answer, count in zip(answers, hand.counted(own, answers), strict=True)]
    labels = [[i for i in row if i != -100] for row in case["out"]["labels"]]
    assert [[sp.bos, *text[:words], *answer] for text, answer in zip(texts, told, strict=True)] == labels


def test_plain_text_holds_the_recorded_tokens(recorded: dict[str, Any]) -> None:
    case = recorded["cases"]["lm"]
    own = release(recorded, prompt_tokens=20)
    for text, row in zip(case["texts"], case["out"]["input_ids"], strict=True):
        real = [i for i in row if i != recorded["pad_id"]]
        assert [*own.layout.prefix(Prompt("x", "t2t", text)), 50256] == real


def test_the_released_dialogue_is_a_setting(recorded: dict[str, Any]) -> None:
    own = release(recorded, dialogue="11 {text} 12")
    assert own.layout.prefix(Prompt("x", "i2t", "5 6", image=BLACK), [50305]) == [50301, 50296, 50305, 50297, 50256, 11, 5, 6, 12]


# ---- the tails


@pytest.mark.parametrize("kind", KINDS)
def test_a_canvas_is_prompt_text_and_image_in_this_order(showo: Policy, kind: Kind) -> None:
    task = task_of(kind)
    batch, words, image = prompts(kind), text_length(showo, task), kind not in ("t2t", "i2t")
    blank = showo.layout.canvas(batch)
    width = max(len(prefix(showo, p)) for p in batch)
    assert blank.prefix == width and blank.ids.shape[1] == width + words + (8 if image else 0)
    for row, real, prompt in zip(blank.ids.tolist(), blank.attention.tolist(), batch, strict=True):
        own = prefix(showo, prompt)
        tail = [hand.PAD] * words + ([hand.SOI, *[hand.MASK] * 6, hand.EOI] if image else [])
        assert row == [hand.PAD] * (width - len(own)) + own + tail
        assert real[:width] == [False] * (width - len(own)) + [True] * len(own)
    spans: list[tuple[Modality, int, int]] = [("text", width, width + words)] if words else []
    spans += [("image", width + words + 1, width + words + 7)] if image else []
    assert [(s.modality, s.start, s.stop) for s in blank.spans] == spans


@pytest.mark.parametrize(
    ("tokens", "kept", "counted"),
    [
        ([9, 10, 1, 11], [9, 10], 3),
        ([9, 10, 3, 3], [9, 10], 3),
        ([3, 1, 9, 9], [], 1),
        ([9, 10, 11, 12], [9, 10, 11, 12], 4),
        ([9, 10, 11, 1], [9, 10, 11], 4),
    ],
)
def test_a_text_is_there_up_to_its_end_token_and_counts_with_it(showo: Policy, tokens: list[int], kept: list[int], counted: int) -> None:
    own = SHOWO.policy(showo.model, showo.layout.text.tokenizer, showo.layout.images.module, replace(showo.settings, text_tokens=4))
    blank = own.layout.canvas(prompts("interleaved", 2))
    image = torch.tensor([hand.CODES[:6]] * 2)
    visible = torch.tensor([[True, False, True, True, False, True]] * 2)
    ids, attention = hand.revealed(own, blank, {"text": torch.tensor([tokens] * 2), "image": image}, {"image": visible})
    for row, real, prompt in zip(ids, attention, prompts("interleaved", 2), strict=True):
        shown = [code if show else hand.MASK for code, show in zip(hand.CODES[:6], visible[0].tolist(), strict=True)]
        assert row[real].tolist() == [*prefix(own, prompt), *kept, hand.SOI, *shown, hand.EOI]
        assert set(row[~real].tolist()) <= {hand.PAD}
    assert hand.counted(own, torch.tensor([tokens])).tolist() == [[i < counted for i in range(4)]]
    assert own.layout.text.written(tokens) == kept and blank.attention[:, blank.prefix :].all(), "the blank canvas is left as it was"


@pytest.mark.parametrize(("task", "spans"), [("t2i", (Span("image", 1, 7),)), ("i2t", (Span("text", 0, 6),))])
def test_a_tail_of_one_modality(showo: Policy, task: Task, spans: tuple[Span, ...]) -> None:
    assert showo.layout.tail(task).spans == spans


def test_a_canvas_is_extended_by_real_tokens(showo: Policy) -> None:
    blank = showo.layout.canvas(prompts("t2i", 2))
    front = replace(blank, ids=blank.ids[:, : blank.prefix], attention=blank.attention[:, : blank.prefix], spans=())
    more = extended(front, [9, 10], (Span("text", 1, 2),))
    assert more.ids[:, :-2].equal(front.ids) and more.ids[:, -2:].tolist() == [[9, 10]] * 2
    assert more.attention[:, -2:].all() and more.attention[:, :-2].equal(front.attention) and more.spans == (Span("text", 1, 2),)
    assert extended(front, []).ids.equal(front.ids)
