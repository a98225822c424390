"""What a causal backbone has read so far, kept as keys and values. Text goes on from it token by token; an image is denoised behind it."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache

from policies.attention.masks import omni
from policies.sampling.denoise import draw
from policies.sampling.guidance import guided
from policies.sequences import Backbone, Sequences

Hidden = Callable[[Tensor, Tensor, Tensor, Cache], Tensor]
"""(ids [batch, n], seen bool [batch, n, keys], positions [batch, n], cache) -> last hidden states [batch, n, width]; ids join the cache."""


class Context:
    """A batch of sequences as far as a backbone has read them. Padding may stand anywhere: it is hidden and takes no position."""

    def __init__(self, hidden: Hidden, batch: int, device: torch.device) -> None:
        self.hidden, self.cache = hidden, DynamicCache()
        self.real = torch.zeros(batch, 0, dtype=torch.bool, device=device)
        self.last = torch.empty(0)
        """Hidden states of what was read last."""

    def read(self, ids: Tensor, real: Tensor | None = None, blocks: Tensor | None = None) -> Tensor:
        """Last hidden states [batch, n, width] of the next ids int64 [batch, n].

        These see all real ones before them, and of themselves what ``blocks`` says (see ``policies.attention.masks``; None = causal).
        """
        real = torch.ones_like(ids, dtype=torch.bool) if real is None else real
        own = omni(torch.zeros_like(ids) if blocks is None else blocks, real).dense()[:, 0]
        seen = torch.cat((self.real[:, None].expand(-1, ids.shape[1], -1), own), -1)
        before = self.real.sum(1, keepdim=True)
        self.real = torch.cat((self.real, real), 1)
        self.last = self.hidden(ids, seen, (before + real.cumsum(1) - 1).clamp_min(0), self.cache)
        return self.last

    def peek(self, ids: Tensor, real: Tensor | None = None, blocks: Tensor | None = None) -> Tensor:
        """The same of ids that are forgotten again."""
        before = self.real
        hidden = self.read(ids, real, blocks)
        self.cache.crop(-ids.shape[1])
        self.real = before
        return hidden

    def spread(self, rows: Tensor) -> None:
        """From here on row i is what row ``rows[i]`` was, int64 [batch]: several go on from what was read once."""
        self.cache.batch_select_indices(rows)
        self.real, self.last = self.real[rows], self.last[rows]


class Reader(Protocol):
    """What reads on, one token a row."""

    last: Tensor
    """Hidden states [batch, n, width] of what was read last."""

    def read(self, ids: Tensor, real: Tensor) -> Tensor:
        """Last hidden states [batch, n, width] of the next ids int64 [batch, n]."""


class Growing(Backbone, Protocol):
    """A causal backbone, which reads a sequence once and goes on from there."""

    def begin(self, sequences: Sequences) -> Reader:
        """What has read ``sequences``."""


def write(
    context: Reader,
    hidden: Tensor,
    rows: Callable[[Tensor], Tensor],
    noise: Tensor,
    temperature: float,
    ends: Sequence[int],
    first: int = 0,
    scales: Sequence[float] = (),
) -> tuple[Tensor, Tensor]:
    """Continue a batch token by token: tokens int64 and their log-probabilities without guidance float32, each [batch, n].

    ``hidden`` [contexts, width]: of the last token read. ``rows`` maps hidden states to logits of which row i is id ``first`` + i.
    ``noise`` float32 [batch, n]: one uniform number in [0, 1) a token, for n tokens at most. Temperature 0 = arg-max. ``scales``: of the
    branches of guidance, each of which is one more batch of contexts behind the first.

    Behind the first token of ``ends`` a row holds that token, at log-probability 0; when all rows have ended nothing is computed any more.
    The context has then read every token but the last ones.
    """
    batch, n = noise.shape
    copies = 1 + len(scales)
    stop = torch.tensor(list(ends), dtype=torch.int64, device=noise.device)
    tokens = torch.zeros(batch, n, dtype=torch.int64, device=noise.device)
    logprob = torch.zeros(batch, n, device=noise.device)
    going = torch.ones(batch, dtype=torch.bool, device=noise.device)
    for i in range(n):
        if i:
            # A row that has ended reads padding, while its batch mates go on.
            hidden = context.read(tokens[:, i - 1 : i].repeat(copies, 1), going[:, None].repeat(copies, 1))[:, 0]
        logits, *others = rows(hidden).float().chunk(copies)
        drawn = draw(guided(logits, zip(scales, others, strict=True)), temperature, noise[:, i])
        # At temperature 1 whatever the draw had, as the learner measures: right after a sync the ratio is 1.
        said = logits.log_softmax(-1).gather(-1, drawn[:, None])[:, 0]
        tokens[:, i] = torch.where(going, drawn + first, tokens[:, i - 1])
        logprob[:, i] = torch.where(going, said, 0.0)
        going = going & ~torch.isin(tokens[:, i], stop)
        if not going.any():
            tokens[:, i + 1 :] = tokens[:, i : i + 1]
            break
    return tokens, logprob
