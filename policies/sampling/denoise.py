"""The denoising loop: every sampler of a masked-diffusion policy is a plan for this one loop.

At each step one forward shows every segment to every other. Then each segment draws all of its masked positions and commits some of them:
the most confident, or each by a chance. Image alone is MaskGIT, text alone is LLaDA's block-wise sampler, both at once is MMaDA-Parallel's
parallel sampler.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from pararl.steps import late_updates, spread
from pararl.types import Modality, Segment
from policies.canvas import Span
from policies.sampling.schedules import block_counts, left_masked, remaining, reveal_chances

Logits = Callable[[Tensor, Sequence[Span]], list[tuple[Tensor, Tensor]]]
"""(ids [batch, length], spans) -> per span (plain, guided) logits [batch, span, rows]: guidance-free, and as the sampler draws from."""


@dataclass(frozen=True, slots=True)
class SegmentPlan:
    """What one segment does at each step."""

    span: Span
    commits: tuple[int, ...]
    """Tokens committed at each step; 0 = the segment rests."""
    window: tuple[int, ...]
    """Only the first ``window[t]`` positions of the span may be committed at step t."""
    temperature: float
    """Temperature of the token draws; 0 = arg-max."""
    choice: tuple[float, ...]
    """Gumbel temperature of the confidence at each step; 0 = most probable first."""
    reveal: tuple[float, ...] = ()
    """Chance of each masked position to be committed at each step, whatever its confidence and in place of ``commits``; empty = by
    ``commits``."""

    def moves(self, step: int) -> bool:
        """Whether any token may be committed at a step."""
        return bool(self.commits[step] or (self.reveal and self.reveal[step]))

    def part(self, step: int) -> slice:
        """The positions that may be committed at a step: all, or the text block that is being filled."""
        # Tokens of earlier blocks are all committed, so that only the open block is computed.
        before = max((end for end in self.window[:step] if end < self.window[step]), default=0)
        return slice(before, self.window[step])

    def within(self, active: range, steps: int) -> "SegmentPlan":
        """The plan, made for ``len(active)`` steps, at the steps ``active`` of a loop of ``steps``; it rests at the others."""
        before, after = active.start, steps - active.stop
        return replace(
            self,
            commits=(0,) * before + self.commits + (0,) * after,
            window=(0,) * before + self.window + (len(self.span),) * after,
            choice=(0.0,) * before + self.choice + (0.0,) * after,
            reveal=(0.0,) * before + self.reveal + (0.0,) * after if self.reveal else (),
        )


@dataclass(frozen=True, slots=True)
class SegmentTrace:
    """What happened to one segment, over ``steps`` steps."""

    modality: Modality
    tokens: Tensor
    """int64 [batch, n]: vocabulary ids."""
    commit_step: Tensor
    """int64 [batch, n]."""
    logprob: Tensor
    """float32 [batch, n]: guidance-free log-probability of each token at its commit step."""
    guesses: Tensor
    """int64 [steps, batch, n]: what the sampler would return after each step; where that was not wanted, the tokens before it."""

    def record(self, row: int, recorded: Sequence[int]) -> Segment:
        """What a rollout keeps of one row."""
        return Segment(
            modality=self.modality,
            tokens=self.tokens[row].cpu().numpy(),
            commit_step=self.commit_step[row].to(torch.int16).cpu().numpy(),
            logprob=self.logprob[row].float().cpu().numpy(),
            guesses=self.guesses[list(recorded), row].cpu().numpy(),
        )


def image_plan(span: Span, updates: int, steps: int, temperature: float, choice_temperature: float) -> SegmentPlan:
    """MaskGIT with the cosine schedule, its updates spread evenly over the steps of the loop.

    ``choice_temperature``: Gumbel temperature of the confidence, annealed linearly from there to 0 at the last step.
    """
    left = [len(span), *remaining(len(span), updates)]
    commits = [0] * steps
    for update, step in enumerate(spread(updates, steps)):
        commits[step] = left[update] - left[update + 1]
    return SegmentPlan(span, tuple(commits), (len(span),) * steps, temperature, annealed(choice_temperature, steps))


def late_image_plan(span: Span, updates: int, steps: int, temperature: float, choice_temperature: float) -> SegmentPlan:
    """The image as the code of MMaDA-Parallel decodes it. It commits nothing for a quarter of the steps. Then each of ``late_updates``
    commits as much as the cosine schedule of the whole loop says, so the first one commits many tokens at once. The last commits all that
    is left."""
    commits, unknown = [0] * steps, len(span)
    moments = late_updates(steps, updates)
    for step in moments:
        left = 0 if step == moments[-1] else min(unknown, left_masked(len(span), unknown, (step + 1) / steps))
        commits[step], unknown = unknown - left, left
    return SegmentPlan(span, tuple(commits), (len(span),) * steps, temperature, annealed(choice_temperature, steps))


def emerge_plan(span: Span, updates: int, steps: int, temperature: float) -> SegmentPlan:
    """MaskGRPO's emerge sampler, its updates spread as those of ``image_plan``. It commits as many tokens on average, but each by its own
    chance. What and how much is committed does not depend on how sure the policy is."""
    chances = [0.0] * steps
    for step, chance in zip(spread(updates, steps), reveal_chances(updates), strict=True):
        chances[step] = chance
    return SegmentPlan(span, (0,) * steps, (len(span),) * steps, temperature, (0.0,) * steps, tuple(chances))


def annealed(temperature: float, steps: int) -> tuple[float, ...]:
    """From ``temperature`` linearly to 0 at the last step."""
    # From the first value each time: the released code multiplies on, and its noise is gone too early.
    return tuple(temperature * (1 - (step + 1) / steps) for step in range(steps))


def text_plan(span: Span, steps: int, block: int, temperature: float) -> SegmentPlan:
    """LLaDA's block-wise sampler: left to right over blocks, the most probable drawn tokens first."""
    commits, window = block_counts(len(span), steps, block)
    return SegmentPlan(span, tuple(commits), tuple(window), temperature, (0.0,) * steps)


def draw(logits: Tensor, temperature: float, uniform: Tensor) -> Tensor:
    """Sample an index of the last axis of logits [..., rows] by inverse transform of uniform [...] in [0, 1); arg-max at temperature 0.

    Rows at -inf are never drawn. One uniform number a position keeps a rollout a function of its own seed whatever its batch.
    """
    if temperature == 0:
        return logits.argmax(-1)
    # Not exponentials of logits, as released: those overflow.
    probabilities = (logits.float() / temperature).softmax(-1)
    # On a GPU a running sum may round upwards across a row of probability 0: such rows are taken out of the race.
    reach = probabilities.cumsum(-1).masked_fill_(probabilities == 0, 0.0)
    return (reach > uniform[..., None] * reach.amax(-1, keepdim=True)).byte().argmax(-1)


def most_confident(confidence: Tensor, eligible: Tensor, count: int) -> Tensor:
    """Mask bool [batch, n] of the ``count`` eligible positions with the highest confidence in each row."""
    # Stable, so that ties have one order on every device: a rollout is a function of its seed.
    ranked = confidence.masked_fill(~eligible, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    chosen = torch.zeros_like(eligible)
    chosen.scatter_(1, ranked[:, :count], True)
    return chosen & eligible


def chosen_at(plan: SegmentPlan, step: int, logprob: Tensor, masked: Tensor, uniform: Tensor, first: int = 0) -> Tensor:
    """Which masked positions [batch, n] are committed at a step, by the plan's chance or by confidence, with uniform noise [batch, n].

    The positions are those of the span from its ``first`` on.
    """
    if plan.reveal:
        return masked & (uniform < plan.reveal[step])
    # clamp: a uniform of exactly 0 would make the Gumbel noise infinite
    return commit(plan, step, logprob, masked, -(-uniform.clamp_min(1e-20).log()).clamp_min(1e-20).log(), first)


def commit(plan: SegmentPlan, step: int, logprob: Tensor, masked: Tensor, gumbel: Tensor, first: int = 0) -> Tensor:
    """The same by confidence, the log-probability of the drawn tokens under the sampler."""
    eligible = masked.clone()
    eligible[:, plan.window[step] - first :] = False
    return most_confident(logprob + plan.choice[step] * gumbel, eligible, plan.commits[step])


def denoise(
    logits: Logits,
    blank: Tensor,
    plans: Sequence[SegmentPlan],
    noise: Tensor,
    mask_id: int,
    offsets: Sequence[int],
    wanted: Collection[int] | None = None,
) -> list[SegmentTrace]:
    """Fill blank sequences of ids int64 [batch, length].

    ``noise`` float32 [2, steps, batch, generated]: uniforms in [0, 1) for draws and for confidences, the spans one behind the other.
    ``offsets``: first vocabulary row of each plan's logits. ``wanted``: the steps whose guesses matter, None = all. At the others only what
    may be committed is drawn. A segment that rests is left alone, and a step at which all rest needs no forward. Returns one trace per
    plan; no position is left at MASK.
    """
    ids = blank.clone()
    steps = len(plans[0].commits)
    columns = [plan.span.columns for plan in plans]
    records: list[list[Tensor]] = [[] for _ in plans]
    stamps = [torch.full((len(ids), len(p.span)), -1, dtype=torch.int64, device=ids.device) for p in plans]
    logps = [torch.zeros(len(ids), len(p.span), device=ids.device) for p in plans]
    ends = list(accumulate((len(p.span) for p in plans), initial=0))
    for step in range(steps):
        whole = wanted is None or step in wanted
        moves = [i for i, plan in enumerate(plans) if whole or plan.moves(step)]
        parts = [slice(0, len(plans[i].span)) if whole else plans[i].part(step) for i in moves]
        spans = [plans[i].span.cut(part) for i, part in zip(moves, parts, strict=True)]
        found = logits(ids, spans) if moves else []
        guesses = [ids[:, place].clone() for place in columns]
        for i, part, (plain, guided) in zip(moves, parts, found, strict=True):
            plan = plans[i]
            uniform, other = noise[:, step, :, ends[i] + part.start : ends[i] + part.stop]
            rows = draw(guided, plan.temperature, uniform)[..., None]
            masked = stamps[i][:, part] < 0
            guesses[i][:, part] = torch.where(masked, rows.squeeze(-1) + offsets[i], guesses[i][:, part])
            sure = guided.float().log_softmax(-1).gather(-1, rows).squeeze(-1)
            chosen = chosen_at(plan, step, sure, masked, other, part.start)
            # Without guidance, as the learner measures it: right after a sync the ratio of the two must be 1.
            behaviour = sure if guided is plain else plain.float().log_softmax(-1).gather(-1, rows).squeeze(-1)
            logps[i][:, part] = torch.where(chosen, behaviour, logps[i][:, part])
            stamps[i][:, part] = torch.where(chosen, step, stamps[i][:, part])
        # Only now: every segment of this step has seen the same canvas.
        for i, place in enumerate(columns):
            records[i].append(guesses[i])
            kept = torch.where(stamps[i] == step, guesses[i], ids[:, place])
            ids[:, place] = torch.where(stamps[i] >= 0, kept, mask_id)
    return [
        SegmentTrace(plan.span.modality, ids[:, columns[i]].clone(), stamps[i], logps[i], torch.stack(records[i]))
        for i, plan in enumerate(plans)
    ]
