"""Who sees whom in a sequence of Show-o: padding is seen by nobody, text sees what stands before it, an image that and all of itself."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from pararl.types import Modality
from policies import Policy
from policies.canvas import Canvas, Span, pad_left
from tests.policies import showo_by_hand as hand
from tests.policies.by_hand import KINDS, SHOWN, Kind, prefix, prompts

E = hand.EOS
ENDS = (3, 0, 5, 1, 8)
"""Where the end token of each row's text stands; 8 = in no place of the window."""


def filled(showo: Policy, kind: Kind, seed: int = 0) -> tuple[Canvas, dict[Modality, Tensor], dict[Modality, Tensor]]:
    """The blank canvas of five prompts of different lengths, texts that end in different places, and images of which half is visible."""
    generator = torch.Generator().manual_seed(seed)
    blank = showo.layout.canvas(prompts(kind))
    tokens: dict[Modality, Tensor] = {}
    for span in blank.spans:
        low, high = (hand.CODES[0], hand.CODES[-1]) if span.modality == "image" else (hand.WORDS[0], hand.WORDS[-1])
        tokens[span.modality] = torch.randint(low, high + 1, (5, len(span)), generator=generator)
    for row, end in enumerate(ENDS):
        if "text" in tokens and end < tokens["text"].shape[1]:
            tokens["text"][row, end] = E if row % 2 else hand.SOI
    visible: dict[Modality, Tensor] = {m: torch.rand(x.shape, generator=generator) < 0.5 for m, x in tokens.items()}
    return blank, tokens, visible


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_padding_in_front_and_behind_a_short_text_changes_no_logit(showo: Policy, kind: Kind) -> None:
    """Every row of a padded batch has the logits of that row alone and unpadded, its mask from a loop, over the whole vocabulary."""
    blank, tokens, visible = filled(showo, kind)
    ids, attention = hand.revealed(showo, blank, tokens, visible)
    assert (~attention[:, : blank.prefix]).any()
    found = hand.states(showo, ids, attention, blank.spans)
    for row, prompt in enumerate(prompts(kind)):
        front = prefix(showo, prompt)
        if "text" in tokens:
            text = tokens["text"][row].tolist()
            told, words = hand.ended(text), blank.spans[0]
            ours = showo.model.head(found[0][row, : len(told)]).double()
            assert len(found[0][row]) == len(words)
            expected = hand.logits(showo, [*front, *told])[len(front) - 1 : len(front) + len(told) - 1]
            assert torch.allclose(ours, expected, rtol=0, atol=2e-5)
            front += hand.said(text)
        if "image" in tokens:
            image = tokens["image"][row].where(visible["image"][row], hand.MASK).tolist()
            expected = hand.logits(showo, [*front, hand.SOI, *image, hand.EOI])[len(front) + 1 : len(front) + 7]
            assert torch.allclose(showo.model.head(found[-1][row]).double(), expected, rtol=0, atol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize("width", [1, 7, 40])
def test_more_padding_in_front_changes_no_logit(showo: Policy, width: int) -> None:
    blank, tokens, visible = filled(showo, "interleaved+image")
    ids, attention = hand.revealed(showo, blank, tokens, visible)
    more = torch.full((5, width), hand.PAD)
    shifted = [Span(s.modality, s.start + width, s.stop + width) for s in blank.spans]
    wide = hand.states(showo, torch.cat((more, ids), 1), torch.cat((torch.zeros(5, width, dtype=torch.bool), attention), 1), shifted)
    text, image = hand.states(showo, ids, attention, blank.spans)
    counted = hand.counted(showo, tokens["text"])
    assert torch.allclose(wide[0][counted], text[counted], rtol=0, atol=1e-5)
    assert torch.allclose(wide[1], image, rtol=0, atol=1e-5)
    seen = hand.states(showo, torch.cat((more, ids), 1), torch.cat((torch.ones(5, width, dtype=torch.bool), attention), 1), shifted)
    assert not torch.allclose(seen[1], image, atol=1e-2), "where it is not hidden it is seen"


@torch.no_grad()
@pytest.mark.parametrize("seed", range(3))
def test_the_mask_of_a_policy_is_what_a_loop_gives(showo: Policy, seed: int) -> None:
    """Texts, images and a question about one in turn, padded on the left."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for count in (0, 1, 2, 3):
        row = [6] if count == 1 else [7]
        for _ in range(count):
            row += [hand.SOI, *torch.randint(15, 23, (4,), generator=generator).tolist(), hand.EOI]
            row += torch.randint(9, 15, (int(torch.randint(0, 4, (), generator=generator)),), generator=generator).tolist()
        rows.append([*row, 9, 10])
    ids, real = pad_left(rows, hand.PAD)
    ours = showo.layout.mask(ids, real).dense()[:, 0]
    for i, row in enumerate(rows):
        start = ids.shape[1] - len(row)
        assert torch.equal(ours[i, start:, start:], hand.seen(row)) and not ours[i, start:, :start].any()


# ---- what changes when something is changed


@torch.no_grad()
def every(showo: Policy, ids: Tensor, attention: Tensor) -> Tensor:
    """Last hidden states of all columns of one row, [length, width]."""
    return hand.states(showo, ids, attention, [Span("image", 0, ids.shape[1])])[0][0]


def one(showo: Policy, kind: Kind) -> tuple[Tensor, Tensor, Mapping[Modality, slice]]:
    """One row of a kind, its real columns in order, and where its parts stand: ``text`` and ``image`` as generated."""
    blank, tokens, visible = filled(showo, kind)
    ids, attention = hand.revealed(showo, blank, tokens, visible)
    ids, attention = ids[:1, attention[0]], attention[:1, attention[0]]
    length, front = ids.shape[1], len(prefix(showo, prompts(kind, 1)[0]))
    if "image" not in tokens:
        return ids, attention, {"text": slice(front, length)}
    return ids, attention, {"text": slice(front, length - 8), "image": slice(length - 8, length)}


def changes(showo: Policy, ids: Tensor, attention: Tensor, column: int) -> Tensor:
    """Which columns notice that another token stands at ``column``, bool [length]."""
    other = ids.clone()
    other[0, column] = hand.WORDS[0] + (int(ids[0, column]) + 1) % 6  # a word, whatever it was
    moved = (every(showo, other, attention) - every(showo, ids, attention)).abs().amax(-1)
    assert ((moved == 0) | (moved < 1e-5) | (moved > 1e-4)).all()
    return moved > 1e-4


@pytest.mark.parametrize("kind", ["t2i", "edit", "interleaved", "interleaved+image"])
def test_text_never_sees_what_stands_behind_it_and_an_image_all_before_it_and_of_itself(showo: Policy, kind: Kind) -> None:
    ids, attention, parts = one(showo, kind)
    image, inner = parts["image"], range(ids.shape[1] - 7, ids.shape[1] - 1)
    columns = torch.arange(ids.shape[1])
    shown = columns < 0
    if kind in SHOWN:  # the input image: <task> <soi> 6 codes <eoi>
        shown = (columns >= 1) & (columns <= 8)
    for column in range(ids.shape[1]):
        if int(ids[0, column]) in (hand.SOI, hand.EOI):  # another token there would be another block
            continue
        moved = changes(showo, ids, attention, column)
        expected = columns >= column
        if column in inner:
            expected |= columns >= image.start
        if shown[column]:
            expected |= shown
        assert torch.equal(moved, expected), column


@pytest.mark.parametrize("kind", ["i2t"])
def test_an_answer_and_the_task_token_see_the_image_that_is_asked_about(showo: Policy, kind: Kind) -> None:
    ids, attention, _ = one(showo, kind)
    columns = torch.arange(ids.shape[1])
    assert ids[0, :2].tolist() == [6, hand.SOI] and int(ids[0, 8]) == hand.EOI
    for column in range(2, 8):
        assert changes(showo, ids, attention, column).all(), "all stands in the image or behind it, but the task token, which sees it"
    for column in range(9, ids.shape[1]):
        assert torch.equal(changes(showo, ids, attention, column), columns >= column), "the image does not see the question"


def test_a_later_text_sees_the_image_and_an_earlier_one_does_not(showo: Policy) -> None:
    """text, image, text, image, as ``mixed`` makes them: both images are blocks of their own."""
    ids = torch.tensor([[7, 0, 9, 1, 10, hand.SOI, *hand.CODES[:6], hand.EOI, 11, 12, hand.SOI, *hand.CODES[2:], hand.EOI]])
    attention, columns = torch.ones_like(ids, dtype=torch.bool), torch.arange(ids.shape[1])
    for column in range(6, 12):
        assert torch.equal(changes(showo, ids, attention, column), columns >= 5)
    for column in range(13, 15):
        assert torch.equal(changes(showo, ids, attention, column), columns >= column), "the first image does not see the second text"
    for column in range(16, 22):
        assert torch.equal(changes(showo, ids, attention, column), columns >= 15)
