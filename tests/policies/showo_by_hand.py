"""Show-o's sequences put together by hand, masks and positions from loops over their definition, whole-vocabulary logits of unpadded
rows: what the tests compare the policy with."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pararl.options import Sampling
from pararl.types import Modality, Prompt, Rollout
from policies import Policy
from policies.canvas import Canvas, Span
from policies.heads.causal import CausalHead
from policies.sequences import Sequences, View
from tests.policies.by_hand import draw_one, prefix

WORDS, CODES = list(range(9, 15)), list(range(15, 23))
"""Ids of the words and of the image codes of the policy of ``conftest``: eight special tokens and the unknown one come first."""
EOS, SOI, EOI, PAD, MASK = 1, 3, 4, 2, 23
SAYS = [EOS, SOI, *WORDS]
"""All that a text may hold."""


def blocks(ids: Sequence[int], mmu: int = 6) -> list[int]:
    """By token 0 for text, k for the k-th image: from its ``<|soi|>`` to its ``<|eoi|>``, with an ``<|mmu|>`` right in front of it."""
    out, number, inside = [], 0, False
    for i, token in enumerate(ids):
        if token == SOI and not inside:
            number, inside = number + 1, True
        ahead = token == mmu and i + 1 < len(ids) and ids[i + 1] == SOI
        out.append(number if inside else number + 1 if ahead else 0)
        inside = inside and token != EOI
    return out


def seen(ids: Sequence[int]) -> Tensor:
    """Bool [length, length]: every token sees those up to itself, one of an image all of its image."""
    block = blocks(ids)
    rows = [[column <= row or 0 < block[row] == block[column] for column in range(len(ids))] for row in range(len(ids))]
    return torch.tensor(rows)


def logits(policy: Policy, ids: Sequence[int]) -> Tensor:
    """Float64 logits [length, vocabulary] of one sequence without padding, by one forward over all of it."""
    row = torch.tensor([list(ids)])
    return policy.model(row, seen(ids)[None], torch.arange(len(ids))[None])[0].double()


def ended(tokens: Sequence[int]) -> list[int]:
    """The tokens of a text up to its end token, which is with them."""
    at = next((i for i, token in enumerate(tokens) if token in (EOS, SOI)), len(tokens) - 1)
    return list(tokens[: at + 1])


def said(tokens: Sequence[int]) -> list[int]:
    """The same without the end token."""
    return [token for token in ended(tokens) if token not in (EOS, SOI)]


def text_logprobs(policy: Policy, front: Sequence[int], tokens: Sequence[int]) -> list[float]:
    """Log-probabilities of a text's tokens up to its end token behind ``front``, among what a text may hold."""
    told = ended(tokens)
    rows = logits(policy, [*front, *told])[len(front) - 1 : -1]
    logp = rows[:, SAYS].log_softmax(-1)
    return [float(logp[i, SAYS.index(token)]) for i, token in enumerate(told)]


def image_logits(policy: Policy, front: Sequence[int], image: Sequence[int]) -> Tensor:
    """Float64 logits [tokens, codes] of an image's places, where ``image`` holds ids, MASK among them."""
    full = logits(policy, [*front, SOI, *image, EOI])
    return full[len(front) + 1 : len(front) + 1 + len(image), CODES]


def front(policy: Policy, rollout: Rollout | Prompt, with_text: bool = True) -> list[int]:
    """What stands in front of the image of a rollout: prompt and text; of a prompt, the prompt."""
    prompt = rollout.prompt if isinstance(rollout, Rollout) else rollout
    ids = prefix(policy, prompt, with_text)
    text = rollout.segment("text") if isinstance(rollout, Rollout) else None
    return ids if text is None else [*ids, *said(text.tokens.tolist())]


# ---- samplers of one row, in python, with a forward over the whole sequence for whatever they want to know


@torch.no_grad()
def write(policy: Policy, front: Sequence[int], uniforms: Sequence[float], temperature: float) -> tuple[list[int], list[float]]:
    """The tokens of a text up to its end, at most one a uniform number, and their log-probabilities."""
    tokens: list[int] = []
    logp: list[float] = []
    for uniform in uniforms:
        row = logits(policy, [*front, *tokens])[-1, SAYS].softmax(-1).tolist()
        place = draw_one(row, temperature, uniform)
        tokens.append(SAYS[place])
        logp.append(math.log(row[place]))
        if tokens[-1] in (EOS, SOI):
            break
    return tokens, logp


@dataclass
class Image:
    """What became of an image."""

    tokens: list[int]
    when: list[int]
    logprob: list[float]
    guesses: list[list[int]] = field(default_factory=list)


@torch.no_grad()
def paint(policy: Policy, fronts: Sequence[Sequence[int]], scales: Sequence[float], noise: Tensor, sampling: Sampling) -> Image:
    """MaskGIT behind the first of ``fronts``, guided away from each other one at its scale; ``noise`` [2, steps, tokens]: for draws, then
    for confidences."""
    n, steps = noise.shape[2], sampling.steps
    out = Image([MASK] * n, [-1] * n, [0.0] * n)
    for step in range(steps):
        plain, *others = (image_logits(policy, front, out.tokens) for front in fronts)
        guided = plain + sum(scale * (plain - other) for scale, other in zip(scales, others, strict=True))
        logp, honest = guided.log_softmax(-1), plain.log_softmax(-1)
        masked = [i for i in range(n) if out.when[i] < 0]
        stay = math.floor(n * math.cos(math.pi / 2 * (step + 1) / steps))
        stay = 0 if step == steps - 1 else max(1, min(len(masked) - 1, stay))
        drawn = {i: draw_one(logp[i].exp().tolist(), sampling.temperature, float(noise[0, step, i])) for i in masked}
        heat = sampling.choice_temperature * (1 - (step + 1) / steps)
        sure = {i: float(logp[i, code]) - heat * math.log(-math.log(float(noise[1, step, i]))) for i, code in drawn.items()}
        out.guesses.append([CODES[drawn[i]] if i in drawn else token for i, token in enumerate(out.tokens)])
        for i in sorted(masked, key=lambda i: -sure[i])[: len(masked) - stay]:
            out.tokens[i], out.when[i], out.logprob[i] = CODES[drawn[i]], step, float(honest[i, drawn[i]])
    return out


def counted(policy: Policy, tokens: Tensor) -> Tensor:
    """The policy's own word on which tokens of texts count."""
    head = policy.heads["text"]
    assert isinstance(head, CausalHead)
    return head.counted(tokens)


def revealed(policy: Policy, blank: Canvas, tokens: Mapping[Modality, Tensor], visible: Mapping[Modality, Tensor]) -> tuple[Tensor, Tensor]:
    """Ids and real columns of a canvas with whole texts, and with the image tokens that are ``visible``."""
    views = {}
    for span in blank.spans:
        own = tokens[span.modality]
        hidden = View(own.where(visible["image"], MASK)) if span.modality == "image" else policy.heads["text"].view(own)
        views[span] = hidden
    return policy.layout.filled(blank, views)


def states(policy: Policy, ids: Tensor, attention: Tensor, spans: Sequence[Span]) -> list[Tensor]:
    """Last hidden states [batch, n, width] that tell the tokens of each span, from one forward of whole sequences."""
    every = policy.model.hidden(Sequences(ids, policy.layout.mask(ids, attention)))
    return [every[:, policy.heads[span.modality].columns(span)] for span in spans]


def view_of(text: Tensor) -> View:
    """What stands in front of an image of texts [batch, n]: the tokens up to an end, padding behind."""
    told = [said(row) for row in text.tolist()]
    real = torch.tensor([[i < len(row) for i in range(text.shape[1])] for row in told])
    return View(text.where(real, PAD), real)
