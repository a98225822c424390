"""What a causal backbone keeps of a batch: reading in parts is reading at once, a peek leaves no trace, and padding none either."""

from itertools import chain

import pytest
import torch
from torch import Tensor

from policies import Policy
from policies.sampling.context import Context, write
from tests.policies import showo_by_hand as hand
from tests.policies.by_hand import draw_one

IMAGE = [hand.SOI, *hand.CODES[:6], hand.EOI]
OTHER = [hand.SOI, *hand.CODES[2:], hand.EOI]
ROWS: tuple[tuple[list[int], list[int], list[int]], ...] = (
    ([7, 0, 9, 10], IMAGE, [11]),
    ([5, 0, 12], [], [9, 9, 10, 13]),
    ([7, 0], OTHER, [13, 9, 9]),
)
"""Three sequences of different lengths, each a text, an image or none, and a text."""


def scattered(part: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A part of all sequences, with padding in front of, between and behind their tokens: ids and which of them are real, [3, width]."""
    generator = torch.Generator().manual_seed(seed + part)
    rows = [row[part] for row in ROWS]
    width = max(map(len, rows)) + 2
    ids, real = torch.full((3, width), hand.PAD), torch.zeros(3, width, dtype=torch.bool)
    for i, row in enumerate(rows):
        places = torch.randperm(width, generator=generator)[: len(row)].sort().values
        ids[i, places] = torch.tensor(row, dtype=torch.int64)
        real[i, places] = True
    return ids, real


def new(showo: Policy, batch: int = 3) -> Context:
    return Context(showo.model.states, batch, showo.device)


def read(showo: Policy, context: Context, part: int) -> tuple[Tensor, Tensor]:
    """Logits of a part read behind what was read before, and which are real."""
    ids, real = scattered(part)
    return showo.model.head(context.read(ids, real, showo.layout.blocks(ids))), real


def expected(showo: Policy, row: int, part: int) -> Tensor:
    """Logits of a part of a row, from one forward over that row alone."""
    before = len(list(chain(*ROWS[row][:part])))
    return hand.logits(showo, list(chain(*ROWS[row])))[before : before + len(ROWS[row][part])].float()


@torch.no_grad()
def test_reading_in_parts_is_reading_at_once_wherever_padding_stands(showo: Policy) -> None:
    context = new(showo)
    for part in range(3):
        logits, real = read(showo, context, part)
        for row in range(3):
            assert torch.allclose(logits[row, real[row]], expected(showo, row, part), rtol=0, atol=2e-5)
    assert context.real.sum(1).tolist() == [len(list(chain(*row))) for row in ROWS]


@torch.no_grad()
def test_a_peek_gives_what_a_read_gives_and_is_forgotten(showo: Policy) -> None:
    context = new(showo)
    read(showo, context, 0)
    before = context.real.clone()
    ids, real = scattered(1)
    peeked = [context.peek(ids, real, showo.layout.blocks(ids)) for _ in range(2)]
    assert torch.equal(peeked[0], peeked[1]) and torch.equal(context.real, before)
    context.peek(*scattered(2))
    assert torch.equal(context.read(ids, real, showo.layout.blocks(ids)), peeked[0])
    logits, real = read(showo, context, 2)
    for row in range(3):
        assert torch.allclose(logits[row, real[row]], expected(showo, row, 2), rtol=0, atol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_text_goes_on_behind_rows_of_different_lengths(showo: Policy, temperature: float) -> None:
    """The last column of each row is real, as behind a left-padded prompt; no token ends a text here."""
    fronts = [[5, 0], [7, 0, 9, 10, 11], [5, 0, 12, 9]]
    ids = torch.tensor([[hand.PAD] * (5 - len(row)) + row for row in fronts])
    context, noise = new(showo), torch.rand(3, 7, generator=torch.Generator().manual_seed(1))
    hidden = context.read(ids, ids != hand.PAD)[:, -1]
    tokens, logprob = write(context, hidden, lambda h: showo.tokens.rows(h, "text"), noise, temperature, ())
    for row, front in enumerate(fronts):
        said: list[int] = []
        for i in range(7):
            logp = hand.logits(showo, [*front, *said])[-1, hand.SAYS].log_softmax(-1)
            place = draw_one(logp.exp().tolist(), temperature, float(noise[row, i]))
            said.append(hand.SAYS[place])
            assert abs(float(logprob[row, i]) - float(logp[place])) < 1e-4
        assert tokens[row].tolist() == said
    assert context.real.shape[1] == 5 + 6, "all tokens but the last were read"


@torch.no_grad()
def test_what_has_ended_is_not_read_as_said(showo: Policy) -> None:
    """An image behind texts of different lengths sees of each what stands in front of its end token."""
    ids = torch.tensor([[7, 0, 9], [7, 0, 10], [7, 0, 11], [7, 0, 12]])
    context, noise = new(showo, 4), torch.rand(4, 40, generator=torch.Generator().manual_seed(6))
    tokens, _ = write(context, context.read(ids)[:, -1], lambda h: showo.tokens.rows(h, "text"), noise, 1.0, (hand.EOS, hand.SOI))
    ended = [hand.ended(row) for row in tokens.tolist()]
    assert all(row[-1] in (hand.EOS, hand.SOI) for row in ended) and len({len(row) for row in ended}) > 1
    assert context.real.sum(1).tolist() == [3 + len(row) - 1 for row in ended]
    block = torch.tensor([IMAGE] * 4)
    logits = showo.model.head(context.peek(block, blocks=torch.ones_like(block)))
    for row in range(4):
        front = [*ids[row].tolist(), *hand.said(tokens[row].tolist())]
        assert torch.allclose(logits[row], hand.logits(showo, [*front, *IMAGE])[len(front) :].float(), rtol=0, atol=2e-5)
