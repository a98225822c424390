"""The ``showo2`` family: text token by token, images by flow matching over the latents of a VAE, both in one sequence.

The released sampler is the ODE with a time shift of 3; the SDE with the same marginals (``policies.sampling.flow``) is what gives the
steps of an image a density.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pararl.options import Drawing, Sampling
from pararl.types import MODALITIES, Latents, Modality, Prompt, Rollout, Segment
from policies.attention.masks import Omni, omni
from policies.backbones.showo2 import Showo2
from policies.backbones.showo2_state import Prefix, first_columns, owners, patched
from policies.base import Draws, DrawTokens, StepTokens
from policies.families.mmada import Branch
from policies.families.showo import ShowoPolicy
from policies.layout import Canvas, Span
from policies.likelihood.masked import mask_ratios
from policies.mmada_codec import IMAGE_INPUT
from policies.sampling import flow
from policies.sampling.context import write
from policies.sampling.denoise import SegmentTrace
from policies.showo2_codec import Showo2Codec


@dataclass(frozen=True, slots=True)
class FlowTrace(SegmentTrace):
    """What happened to an image: its tokens, guesses and log-densities are continuous, over all steps."""

    moves: Tensor
    """float32 [steps, 2, batch, n, d]: before and after each step."""
    noise_level: float


class Reading:
    """A prefix that grows, as ``policies.sampling.context.write`` reads on."""

    def __init__(self, model: Showo2, prefix: Prefix) -> None:
        self.model, self.prefix = model, prefix

    def read(self, ids: Tensor, real: Tensor) -> Tensor:
        """Last hidden states [batch, n, width] of the next ids."""
        self.prefix = self.model.read(ids, real=real, after=self.prefix)
        return self.prefix.hidden[:, -ids.shape[1] :]


class Showo2Policy(Showo2Codec):
    """Show-o2. What its text is worth to it is exact; its images are worth their flow-matching loss, or the density of their steps."""

    family = "showo2"
    lora_targets = r".*(showo\.model\.layers|diffusion_head_a)\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"

    # ---- whole sequences

    def states(self, blank: Canvas, text: Tensor | None, images: Tensor | None, times: Tensor | None) -> tuple[Tensor, Omni, Tensor | None]:
        """Last hidden states of filled canvases, their mask, and the times of all their images.

        ``text`` int64 [batch, n] of the text span, ``images`` float32 [batch, n, d] and ``times`` [batch] of the image span, None where the
        canvas has no such span.
        """
        spans = tuple(s for s in blank.spans if s.modality == "text")
        ids, attention = self.reveal(replace(blank, spans=spans), {} if text is None else {"text": text}, {})
        blocks = self.blocks(ids)
        latents, when = blank.latents, None if blank.latents is None else torch.ones(len(blank.latents), device=ids.device)
        if images is not None and times is not None:
            latents, when = self._merged(first_columns(blocks).sum(1) > 1, latents, self._grid(images), times)
        mask = omni(blocks, attention)
        return self.model.hidden(self.model.embed(ids, blocks, latents, when), mask), mask, when

    @staticmethod
    def _merged(shows: Tensor, inputs: Tensor | None, outputs: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """Images and times in row-major order: in each row the input image, if it ``shows`` one, and then the output."""
        if inputs is None:
            return outputs, times
        given = shows.long()
        place = torch.arange(len(shows), device=shows.device) + given.cumsum(0)  # of each row's output
        latents = outputs.new_empty(len(inputs) + len(outputs), *outputs.shape[1:])
        when = torch.ones(len(latents), device=times.device)
        latents = latents.index_copy(0, place, outputs).index_copy(0, place[shows] - 1, inputs)
        return latents, when.index_copy(0, place, times.float())

    def velocities(self, hidden: Tensor, mask: Omni, times: Tensor) -> Tensor:
        """Velocities [batch, n, d] of the last image of every row."""
        every = self.model.velocity(hidden, mask, times, self.settings.grid)
        last = torch.where(mask.blocks == mask.blocks.amax(1, keepdim=True), owners(mask.blocks), 0).amax(1) - 1
        return patched(every[last], self.model.config.patch_size)

    def text_hidden(self, hidden: Tensor, span: Span) -> Tensor:
        """Hidden states [batch, n, width] that tell the tokens of a text: those one place before."""
        return hidden[:, span.start - 1 : span.stop - 1]

    # ---- sampling

    def _chance(self, generator: torch.Generator, words: int, tokens: int, sampling: Sampling) -> Tensor:
        """Uniforms for the words, and behind them normals [1 + steps, n, d]: where the image starts, and the noise of each step."""
        width = self.model.config.image_latent_dim * self.model.config.patch_size**2
        normals = torch.randn(1, (1 + sampling.steps) * tokens * width, generator=generator)
        return torch.cat((torch.rand(1, words, generator=generator), normals), 1).to(self.device)

    def _read(self, ids: Tensor, attention: Tensor, latents: Tensor | None) -> Prefix:
        times = None if latents is None else torch.ones(len(latents), device=ids.device)
        return self.model.read(ids, self.blocks(ids), latents, times, attention)

    def _write(self, front: Canvas, noise: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        reading = Reading(self.model, self._read(front.ids, front.attention, front.latents))
        hidden = reading.prefix.hidden[:, -1]
        return write(reading, hidden, lambda h: self.rows(h, "text"), noise, temperature, self.ends)

    def _paint(
        self, canvases: Sequence[Canvas], branches: Sequence[Branch], noise: Tensor, sampling: Sampling, wanted: Collection[int]
    ) -> SegmentTrace:
        image = canvases[0].span("image")
        assert image is not None
        front = [torch.cat(x)[:, : image.start - 1] for x in ([c.ids for c in canvases], [c.attention for c in canvases])]
        there = [c.latents for c in canvases if c.latents is not None]
        place = self.model.canvas(self._read(front[0], front[1], torch.cat(there) if there else None), self.settings.grid)
        times = flow.time_grid(sampling.steps + 1, self.settings.time_shift).to(noise.device)
        start, *draws = noise.view(len(noise), 1 + sampling.steps, len(image), -1).unbind(1)
        state, moves, guesses, densities = start, [], [], []
        for t, after, z in zip(times[:-1], times[1:], draws, strict=True):
            found = self.model.velocity_after(place, self._grid(state).repeat(len(canvases), 1, 1, 1), t.expand(len(front[0])))
            plain, *others = patched(found, self.model.config.patch_size).chunk(len(canvases))
            guided = plain + sum(b.scales["image"] * (plain - v) for b, v in zip(branches, others, strict=True))
            now, then = t.expand(len(state)), after.expand(len(state))
            taken = flow.step(state, guided, now, then, sampling.flow_noise)
            moved = taken.mean + taken.deviation * z
            free = flow.step(state, plain, now, then, sampling.flow_noise)
            densities.append(log_densities(free, moved))
            guesses.append(state + (1 - t) * guided)
            moves.append(torch.stack((state, moved)))
            state = moved
        stamps = torch.full(state.shape[:2], sampling.steps - 1, device=state.device)
        found = torch.stack(densities), torch.stack(guesses), torch.stack(moves)
        return FlowTrace("image", state, stamps, *found, noise_level=sampling.flow_noise)

    @staticmethod
    def segment(trace: SegmentTrace, row: int, recorded: Sequence[int]) -> Segment:
        """The record of one row of a trace, of an image with the moves at its recorded steps."""
        if not isinstance(trace, FlowTrace):
            return ShowoPolicy.segment(trace, row, recorded)
        steps = list(recorded)
        return Latents(
            modality=trace.modality,
            tokens=trace.tokens[row].float().cpu().numpy(),
            commit_step=trace.commit_step[row].to(torch.int16).cpu().numpy(),
            logprob=trace.logprob[steps, row].float().cpu().numpy(),
            guesses=trace.guesses[steps, row].float().cpu().numpy(),
            moves=trace.moves[steps, :, row].float().cpu().numpy(),
            noise_level=np.full(len(steps), trace.noise_level, np.float32),
        )

    # ---- likelihoods

    def draws(self, rollouts: Sequence[Rollout], n: int, generator: torch.Generator, drawing: Drawing | None = None) -> Draws:
        """Times and noise of the images, the same for the rollouts of a prompt. A text is exact: every draw has all of it."""
        prompts = list(dict.fromkeys(r.prompt.id for r in rollouts))
        which = torch.tensor([prompts.index(r.prompt.id) for r in rollouts])
        draws = Draws({}, {}, {})
        for m in (s.modality for s in rollouts[0].segments):
            tokens = self._stacked(rollouts, m, "tokens")
            counted = self.counted(tokens) if m == "text" else torch.ones(tokens.shape[:2], dtype=torch.bool, device=self.device)
            draws.masks[m] = torch.zeros_like(counted).expand(n, -1, -1)
            draws.counted[m] = counted.expand(n, -1, -1)
            draws.weights[m] = (counted.shape[1] / counted.sum(1)).expand(n, -1)
            if m == "image":
                # As dense as the sampler's: what an image shows is decided early. Never 1: a clean image has no velocity to tell.
                times = flow.shifted(1 - mask_ratios(n, len(prompts), 0.0, 1.0, generator), self.settings.time_shift)
                noise = torch.randn(n, len(prompts), *tokens.shape[1:], generator=generator)
                draws = replace(draws, times=times[:, which].to(self.device), noise=noise[:, which].to(self.device))
        return draws

    def log_likelihood(self, rollouts: Sequence[Rollout], draws: Draws) -> Tensor:
        """Of a text the mean log-probability of its tokens; of an image the negative flow-matching loss, the mean over its numbers of the
        squared difference of velocities, in place of a bound in nats (Diffusion-DPO's, arXiv 2311.12908, with the density of the sampler's
        times for their weight)."""
        total = torch.zeros(len(rollouts), 2, device=self.device)
        for draw in draws:
            found = self.draw_tokens(rollouts, draw)
            means = [found[m].logprob.sum(-1) / draw.counted[m][0].sum(-1) if m in found else total[:, 0] * 0 for m in MODALITIES]
            total = total + torch.stack(means, -1)
        return total / len(draws)

    def draw_tokens(self, rollouts: Sequence[Rollout], draw: Draws) -> dict[Modality, DrawTokens]:
        """See ``Policy``. Of a token of an image the negative mean over its numbers of the squared difference of velocities."""
        blank = self._blank(rollouts)
        clean = self._stacked(rollouts, "image", "tokens") if blank.span("image") else None
        text = self._stacked(rollouts, "text", "tokens") if blank.span("text") else None
        seen = times = None
        if clean is not None and draw.times is not None and draw.noise is not None:
            times = draw.times[0]
            seen = flow.between(clean, draw.noise[0], times)
        hidden, mask, when = self.states(blank, text, seen, times)
        found: dict[Modality, DrawTokens] = {}
        if text is not None:
            found["text"] = DrawTokens(self.text_logprobs(hidden, blank, text))
        if clean is not None and draw.noise is not None and when is not None:
            velocities = self.velocities(hidden, mask, when).float()
            found["image"] = DrawTokens(-(velocities - (clean - draw.noise[0])).square().mean(2), velocities)
        return found

    def step_tokens(self, rollouts: Sequence[Rollout], steps: Sequence[Sequence[int]]) -> dict[Modality, StepTokens]:
        """Exact: of a text token by token, of an image the log-density of the SDE's move at each recorded step. The moves of an ODE have
        none: no token of theirs counts as committed.

        Raises ValueError for other steps than the recorded ones.
        """
        blank = self._blank(rollouts)
        text = self._stacked(rollouts, "text", "tokens") if blank.span("text") else None
        out: dict[Modality, StepTokens] = {}
        if blank.span("image") is None:
            hidden, _, _ = self.states(blank, text, None, None)
        else:
            if [tuple(s) for s in steps] != [r.recorded for r in rollouts]:
                raise ValueError("the moves of an image are known at the recorded steps, and at no others")
            hidden, out["image"] = self._moves(rollouts, blank, text)
        if text is not None:
            stamps, behaviour = (self._stacked(rollouts, "text", name)[:, None] for name in ("commit_step", "logprob"))
            committed = stamps == torch.tensor(steps, device=self.device)[..., None]
            logp = self.text_logprobs(hidden, blank, text)[:, None]
            out = {"text": StepTokens(logp * committed, committed, behaviour * committed), **out}
        return out

    def _moves(self, rollouts: Sequence[Rollout], blank: Canvas, text: Tensor | None) -> tuple[Tensor, StepTokens]:
        """Hidden states of each rollout's first copy, and the log-densities of its image's moves."""
        levels = self._stacked(rollouts, "image", "noise_level")
        count = levels.shape[1]
        steps = torch.tensor([r.recorded for r in rollouts], device=self.device).flatten()
        grid = flow.time_grid(rollouts[0].steps + 1, self.settings.time_shift).to(self.device)
        before, after = self._stacked(rollouts, "image", "moves").flatten(0, 1).unbind(1)
        copies = self._repeated(blank, count)
        hidden, mask, when = self.states(copies, None if text is None else text.repeat_interleave(count, 0), before, grid[steps])
        assert when is not None
        taken = flow.step(before, self.velocities(hidden, mask, when), grid[steps], grid[steps + 1], float(levels[0, 0]))
        found = log_densities(taken, after).view(len(rollouts), count, -1)
        behaviour = self._stacked(rollouts, "image", "logprob")
        committed = behaviour.isfinite()
        return hidden[::count], StepTokens(found.where(committed, 0.0), committed, behaviour.where(committed, 0.0))

    def _blank(self, rollouts: Sequence[Rollout]) -> Canvas:
        if len({r.prompt.task for r in rollouts}) != 1:
            raise ValueError("a likelihood batch holds rollouts of one task; split it by task")
        return self.canvas([r.prompt for r in rollouts]).to(self.device)

    def _repeated(self, blank: Canvas, count: int) -> Canvas:
        """Every row ``count`` times."""
        latents = None if blank.latents is None else blank.latents.repeat_interleave(count, 0)
        ids, attention = (x.repeat_interleave(count, 0) for x in (blank.ids, blank.attention))
        return replace(blank, ids=ids, attention=attention, latents=latents)

    def _stacked(self, rollouts: Sequence[Rollout], modality: Modality, name: str) -> Tensor:
        """One array of the segments of a modality, [batch, ...]."""
        return torch.from_numpy(np.stack([getattr(r.segment(modality), name) for r in rollouts])).to(self.device)

    def text_logprobs(self, hidden: Tensor, blank: Canvas, text: Tensor) -> Tensor:
        span = blank.span("text")
        assert span is not None
        return self._token_logprobs(self.text_hidden(hidden, span), "text", text, self.counted(text))

    @torch.no_grad()
    def canary(self) -> Tensor:
        task = "t2i" if "t2i" in self.settings.tasks else self.settings.tasks[0]
        black = np.zeros((*self.image_size, 3), np.uint8) if IMAGE_INPUT[task] else None
        blank = self.canvas([Prompt("canary", task, "", image=black)]).to(self.device)
        text = torch.full((1, len(blank.span("text") or ())), self.settings.specials.eos, device=self.device)
        image = blank.span("image")
        if image is None:
            hidden, _, _ = self.states(blank, text, None, None)
            return self.rows(self.text_hidden(hidden, blank.spans[0])[:, 0], "text").float().cpu()
        width = self.model.config.image_latent_dim * self.model.config.patch_size**2
        noise = torch.randn(1, len(image), width, generator=torch.Generator().manual_seed(0)).to(self.device)
        half = torch.full((1,), 0.5, device=self.device)
        hidden, mask, when = self.states(blank, text if len(blank.spans) > 1 else None, noise, half)
        assert when is not None
        return self.velocities(hidden, mask, when).float().cpu()


def log_densities(step: flow.Step, states: Tensor) -> Tensor:
    """Log-density float32 [batch, n] of the move to each token of states [batch, n, d], the mean over its d numbers; NaN in rows whose step
    has no noise, as the last one of a sampler."""
    noisy = step.deviation.flatten() > 0
    out = torch.full(states.shape[:2], torch.nan, device=states.device)
    if noisy.any():
        out[noisy] = flow.Step(step.mean[noisy], step.deviation[noisy]).log_density(states[noisy]).mean(-1)
    return out
