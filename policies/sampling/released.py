"""The samplers of the releases, step by step and row by row as their code does it, faults included.

``denoise`` is what policies sample with. These are for comparison: parity with recorded runs, and the published samplers as a baseline.
Sources: Gen-Verse/MMaDA ``generate.py`` and ``models/modeling_mmada.py``; tyfeld/MMaDA-Parallel
``MMaDA-Parallel-M/models/modeling_mmada.py`` and ``MMaDA-Parallel-A/generators/parallel_generator.py``. They differ from the papers. Text
is the arg-max over the whole vocabulary, so it may be MASK or an image code. The parallel ones have no text blocks and begin the image
after a quarter of the steps. They push text away from its prompt where ``text_cfg`` is above 0. One image token of -A is left to chance.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pararl.steps import late_updates
from policies.sampling.schedules import left_masked, transfer_counts

Forward = Callable[[Tensor], Tensor]
"""Ids int64 [batch, length] -> logits [batch, length, vocabulary]."""

UNKNOWN = -1
"""Code of an image token that is still masked."""


class Chance:
    """The random choices about an image: draws, and which drawn tokens stay masked. MMaDA's; -A has normal noise in place of Gumbel's.

    ``generator``: of the device that the model is on.
    """

    def __init__(self, generator: torch.Generator | None = None, normal: bool = False) -> None:
        self.generator, self.normal = generator, normal

    def draw(self, probabilities: Tensor, temperature: float) -> Tensor:
        """Codes int64 [batch, n] from probabilities [batch, n, codes]; -A takes the most probable at temperature 0."""
        if self.normal and temperature == 0:
            return probabilities.argmax(-1)
        return torch.multinomial(probabilities.flatten(0, -2), 1, generator=self.generator).view(probabilities.shape[:-1])

    def stay(self, probabilities: Tensor, counts: Tensor, temperature: float) -> Tensor:
        """Which tokens are masked again, bool [batch, n]: the ``counts`` [batch] least sure ones, sureness [batch, n] blurred by noise."""
        device = probabilities.device
        if self.normal:
            noise = torch.randn(probabilities.shape, generator=self.generator, device=device)
        else:
            uniform = torch.rand(probabilities.shape, generator=self.generator, device=device)
            noise = -(-uniform.clamp_min(1e-20).log()).clamp_min(1e-20).log()
        sure = probabilities.clamp_min(1e-20).log() + temperature * noise
        return sure.argsort(-1).argsort(-1) < counts[:, None]


@dataclass(frozen=True, slots=True)
class ImageStep:
    """One update of the image."""

    step: int
    probabilities: Tensor
    """float32 [batch, n, codes]."""
    drawn: Tensor
    """int64 [batch, n]: codes, the known ones in their place."""
    left: Tensor
    """int64 [batch]: how many are masked again."""
    masking: Tensor
    """bool [batch, n]: which."""


def image_step(step: int, guided: Tensor, codes: Tensor, ratio: float, draw_at: float, blur: float, chance: Chance) -> ImageStep:
    """MaskGIT's update from guided logits [batch, n, codes] and the codes so far [batch, n]; ``ratio`` of the way behind it.

    At least one token stays masked, even at the last step: what is returned then is ``drawn``.
    """
    probabilities = guided.softmax(-1)
    unknown = codes == UNKNOWN
    drawn = torch.where(unknown, chance.draw(probabilities, draw_at), codes)
    sure = probabilities.gather(-1, drawn[..., None]).squeeze(-1).masked_fill(~unknown, torch.finfo(torch.float32).max)
    left = torch.tensor([left_masked(codes.shape[1], int(count), ratio) for count in unknown.sum(-1)], device=codes.device)
    return ImageStep(step, probabilities, drawn, left, chance.stay(sure, left, blur))


def most_probable(logits: Tensor, ids: Tensor, mask: int, counts: Sequence[int], stop: int | None = None) -> Tensor:
    """``ids`` [batch, n] after one step of text: in each row its count of masked positions, the surest before ``stop``, get their arg-max.

    Sureness is its probability in float64. An arg-max that is MASK uses up a place and stays masked.
    """
    masked = ids == mask
    best = torch.where(masked, logits.argmax(-1), ids)
    sure = logits.double().softmax(-1).gather(-1, best[..., None]).squeeze(-1).masked_fill(~masked, -torch.inf)
    if stop is not None:
        sure[:, stop:] = -torch.inf
    out = ids.clone()
    for row, count in enumerate(counts):
        chosen = sure[row].topk(count).indices
        out[row, chosen] = best[row, chosen]
    return out


def answer(forward: Forward, prompt: Tensor, length: int, steps: int, block: int, mask: int) -> Tensor:
    """MMaDA's text after ``prompt`` [batch, p], block by block: ids [batch, p + length]."""
    ids = torch.cat((prompt, torch.full((len(prompt), length), mask, device=prompt.device)), 1)
    each = steps // (length // block)
    for start in range(prompt.shape[1], ids.shape[1], block):
        tables = [transfer_counts(int(n), each) for n in (ids[:, start : start + block] == mask).sum(1)]
        for counts in zip(*tables, strict=True):
            ids = most_probable(forward(ids), ids, mask, counts, start + block)
    return ids


def image(forward: Forward, start: Tensor, steps: int, temperature: float, chance: Chance) -> list[ImageStep]:
    """MMaDA's MaskGIT from ``start`` [batch, n] (codes or UNKNOWN). ``forward``: such codes -> guided logits [batch, n, codes].

    The noise of the choice falls faster than intended: its temperature is multiplied up, step for step.
    """
    codes, trace = start, []
    for step in range(steps):
        ratio = (step + 1) / steps
        # Kept as released, for parity with recorded runs.
        temperature *= 1 - ratio
        trace.append(image_step(step, forward(codes), codes, ratio, 1.0, temperature, chance))
        codes = trace[-1].drawn.masked_fill(trace[-1].masking, UNKNOWN)
    return trace


@dataclass(frozen=True, slots=True)
class Parallel:
    """Where things are in a sequence of one row, and how text and image of it are decoded together."""

    image: Tensor
    """int64 [n]: columns of the image tokens."""
    text: slice
    codes: slice
    """Vocabulary rows of the image codes."""
    mask: int
    text_steps: int
    image_steps: int
    temperature: float
    text_cfg: float
    image_cfg: float

    def codes_of(self, ids: Tensor) -> Tensor:
        """Codes so far [1, n]."""
        tokens = ids[:, self.image]
        return torch.where(tokens == self.mask, UNKNOWN, tokens - self.codes.start)

    def update(self, ids: Tensor, step: int, guided: Tensor, chance: Chance) -> tuple[Tensor, ImageStep]:
        """``ids`` after the image step ``step``, and that step."""
        ratio = (step + 1) / self.text_steps
        done = image_step(step, guided, self.codes_of(ids), ratio, self.temperature, self.temperature * (1 - ratio), chance)
        out = ids.clone()
        out[:, self.image] = torch.where(done.masking, self.mask, done.drawn + self.codes.start)
        return out, done

    def rows(self, logits: Tensor) -> Tensor:
        """Logits [batch, n, codes] of the image."""
        return logits[:, self.image, self.codes]


def parallel_m(forward: Forward, ids: Tensor, free: Tensor, plan: Parallel, chance: Chance) -> tuple[Tensor, list[ImageStep]]:
    """-M's text and image together: final ids [1, length] and the image's steps. ``free`` [1, p]: the unconditional prompt."""
    trace, updates = [], late_updates(plan.text_steps, plan.image_steps)
    counts = transfer_counts(int((ids[:, plan.text] == plan.mask).sum()), plan.text_steps)
    for step in range(plan.text_steps):
        with_prompt, without = forward(torch.cat((ids, torch.cat((free, ids[:, free.shape[1] :]), 1)))).chunk(2)
        # The image of this step comes from the same forward, but is read after the text is written.
        text = (with_prompt + plan.text_cfg * (without - with_prompt))[:, plan.text]
        ids = ids.clone()
        ids[:, plan.text] = most_probable(text, ids[:, plan.text], plan.mask, [counts[step]])
        if step in updates:
            guided = (1 + plan.image_cfg) * plan.rows(with_prompt) - plan.image_cfg * plan.rows(without)
            ids, done = plan.update(ids, step, guided, chance)
            trace.append(done)
    return ids, trace


def parallel_a(
    forward: Forward,
    ids: Tensor,
    no_text: Tensor | None,
    no_image: Tensor | None,
    plan: Parallel,
    chance: Chance,
    written: Sequence[Tensor] | None = None,
) -> tuple[Tensor, list[ImageStep]]:
    """-A's: three forwards at an image step, the unconditional prefixes [1, p] laid over the start of the sequence; text is not guided.

    ``written``: the text [n] after each step, where it is given; otherwise it is the arg-max.
    """
    trace, updates = [], late_updates(plan.text_steps, plan.image_steps)
    counts = floor_counts(int((ids[:, plan.text] == plan.mask).sum()), plan.text_steps)
    free = [(scale, prefix) for scale, prefix in ((plan.text_cfg, no_text), (plan.image_cfg, no_image)) if prefix is not None]
    for step in range(plan.text_steps):
        logits = forward(ids)
        ids = ids.clone()
        if written is None:
            ids[:, plan.text] = most_probable(logits[:, plan.text], ids[:, plan.text], plan.mask, [counts[step]])
        else:
            ids[:, plan.text] = written[step]
        if step in updates:
            guided = plan.rows(logits)
            if plan.text_cfg > 0 or plan.image_cfg > 0:
                without = [plan.rows(forward(torch.cat((prefix, ids[:, prefix.shape[1] :]), 1))) for _, prefix in free]
                gaps = [scale * (plan.rows(logits) - rows) for (scale, _), rows in zip(free, without, strict=True)]
                guided = guided + sum(gaps, torch.zeros(()))
            ids, done = plan.update(ids, step, guided, chance)
            trace.append(done)
    return ids, trace


def floor_counts(tokens: int, steps: int) -> list[int]:
    """-A's tokens committed at each step: those left are ``int(tokens * (1 - ratio))``, in the rounding of Python's floats."""
    left = [tokens] + [int(tokens * (1 - (step + 1) / steps)) for step in range(steps)]
    return [max(0, before - after) for before, after in zip(left, left[1:], strict=False)]
