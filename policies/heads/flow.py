"""Flow matching: the continuous tokens of an image move from noise to data, by an ODE, or by an SDE whose steps have densities."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pararl.options import Drawing, Sampling
from pararl.types import Latents, Modality
from policies.attention.masks import Omni
from policies.backbones.showo2_state import Canvas as Place
from policies.backbones.showo2_state import Prefix, owners
from policies.batch import Batch
from policies.canvas import Span, beside
from policies.heads.base import Lesson, Scene
from policies.image.codec import patched, unpatched
from policies.likelihood.masked import mask_ratios
from policies.records import Draws, DrawTokens, StepTokens
from policies.sampling import flow
from policies.sampling.context import Growing
from policies.sequences import Seen, View


class FlowBackbone(Growing, Protocol):
    """A causal backbone that tells velocities of images."""

    def velocity(self, hidden: Tensor, mask: Omni, times: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Velocities [images, channels, height, width] of the hidden states of whole sequences."""

    def canvas(self, prefix: Prefix, grid: tuple[int, int]) -> Place:
        """The place of an image behind what was read."""

    def velocity_after(self, canvas: Place, latents: Tensor, times: Tensor) -> Tensor:
        """Velocities of latents there, one image a row."""


@dataclass(frozen=True, slots=True)
class FlowTrace:
    """What happened to an image: its tokens, guesses and log-densities are continuous, over all steps."""

    modality: Modality
    tokens: Tensor
    """float32 [batch, n, d]."""
    commit_step: Tensor
    """int64 [batch, n]: the last step."""
    logprob: Tensor
    """float32 [steps, batch, n]: log-density of each move without guidance, NaN where it has none."""
    guesses: Tensor
    """float32 [steps, batch, n, d]."""
    moves: Tensor
    """float32 [steps, 2, batch, n, d]: before and after each step."""
    noise_level: float

    def record(self, row: int, recorded: Sequence[int]) -> Latents:
        """What a rollout keeps of one row: the moves at its recorded steps."""
        steps = list(recorded)
        return Latents(
            modality=self.modality,
            tokens=self.tokens[row].float().cpu().numpy(),
            commit_step=self.commit_step[row].to(torch.int16).cpu().numpy(),
            logprob=self.logprob[steps, row].float().cpu().numpy(),
            guesses=self.guesses[steps, row].float().cpu().numpy(),
            moves=self.moves[steps, :, row].float().cpu().numpy(),
            noise_level=np.full(len(steps), self.noise_level, np.float32),
        )


class FlowHead:
    """An image behind a causal sequence. At draws it is worth its negative flow-matching loss, at recorded steps the density of its moves.

    The former stands in place of a bound in nats: Diffusion-DPO's (arXiv 2311.12908), with the density of the sampler's times as weight.
    """

    whole = True
    normal = True
    by_step = True

    def __init__(self, model: FlowBackbone, grid: tuple[int, int], shift: float) -> None:
        """``grid``: rows and columns of patches. ``shift``: how far the times of the sampler are moved towards the noise."""
        self.model, self.grid, self.shift = model, grid, shift
        self.patch: int = model.config.patch_size
        self.width: int = model.config.image_latent_dim * self.patch**2

    def view(self, tokens: Tensor) -> View:
        """An image that is finished."""
        return View(latents=tokens, times=torch.ones(len(tokens), device=tokens.device))

    # ---- sampling

    def chance(self, generator: torch.Generator, spans: Sequence[Span], sampling: Sampling) -> Tensor:
        """Normals [1 + steps, n, d]: where the image starts, and the noise of each step."""
        (span,) = spans
        normals = torch.randn(1, (1 + sampling.steps) * len(span) * self.width, generator=generator)
        return normals.view(1 + sampling.steps, len(span), self.width)

    def sample(
        self,
        scene: Scene,
        spans: Sequence[Span],
        chance: Sequence[Tensor],
        sampling: Sampling,
        recorded: Sequence[tuple[int, ...]],
    ) -> list[FlowTrace]:
        """One image, along the times of the sampler; the SDE's noise is ``sampling.flow_noise``, 0 = the ODE."""
        (image,) = spans
        fronts = beside([canvas.front(image.start - 1) for canvas in scene.canvases])
        place = self.model.canvas(self.model.begin(scene.layout.sequences(fronts, {})).prefix, self.grid)  # type: ignore[attr-defined]
        scales = [branch.scales["image"] for branch in scene.branches]
        start, *draws = torch.stack(list(chance)).to(fronts.ids.device).unbind(1)
        times = flow.time_grid(sampling.steps + 1, self.shift).to(start.device)
        state, moves, guesses, densities = start, [], [], []
        for t, after, z in zip(times[:-1], times[1:], draws, strict=True):
            copies = unpatched(state, self.patch, self.grid).repeat(1 + len(scales), 1, 1, 1)
            found = self.model.velocity_after(place, copies, t.expand(len(fronts.ids)))
            plain, *others = patched(found, self.patch).chunk(1 + len(scales))
            guided = plain + sum(scale * (plain - v) for scale, v in zip(scales, others, strict=True))
            now, then = t.expand(len(state)), after.expand(len(state))
            taken = flow.step(state, guided, now, then, sampling.flow_noise)
            moved = taken.mean + taken.deviation * z
            # The density of the move that guidance made, under the policy without guidance: what the learner can measure again.
            free = flow.step(state, plain, now, then, sampling.flow_noise)
            densities.append(log_densities(free, moved))
            guesses.append(state + (1 - t) * guided)
            moves.append(torch.stack((state, moved)))
            state = moved
        stamps = torch.full(state.shape[:2], sampling.steps - 1, device=state.device)
        kept = torch.stack(densities), torch.stack(guesses), torch.stack(moves)
        return [FlowTrace("image", state, stamps, *kept, noise_level=sampling.flow_noise)]

    # ---- likelihoods

    def columns(self, span: Span) -> Tensor:
        """Its own; the layers behind the language model see all of them."""
        return span.places()

    def velocities(self, seen: Seen, span: Span) -> Tensor:
        """Velocities [batch, n, d] of the images of a span."""
        mask, times = seen.sequences.mask, seen.sequences.times
        assert isinstance(mask, Omni) and times is not None
        every = self.model.velocity(seen.hidden, mask, times, self.grid)
        return patched(every[owners(mask.blocks)[:, span.start] - 1], self.patch)

    def draws(self, batch: Batch, modalities: Sequence[Modality], which: Tensor, n: int, generator: torch.Generator, how: Drawing) -> Draws:
        """Times and noise, times as dense as the sampler's: what an image shows is decided early. Never 1: a clean image has no velocity to
        tell."""
        (modality,) = modalities
        tokens, prompts = batch.length(modality), int(which.max()) + 1
        times = flow.shifted(1 - mask_ratios(n, prompts, 0.0, 1.0, generator), self.shift)
        noise = torch.randn(n, prompts, tokens, self.width, generator=generator)
        counted = torch.ones(n, len(batch), tokens, dtype=torch.bool, device=batch.device)
        weights = torch.ones(n, len(batch), device=batch.device)
        given = times[:, which].to(batch.device), noise[:, which].to(batch.device)
        return Draws({modality: torch.zeros_like(counted)}, {modality: counted}, {modality: weights}, how.image_rows, *given)

    def at_draw(self, batch: Batch, place: int, draw: Draws) -> View:
        """The image mixed with its noise."""
        assert draw.times is not None and draw.noise is not None
        noise = draw.noise[0, :, batch.part(place)]
        return View(latents=flow.between(batch.stacked(place, "tokens"), noise, draw.times[0]), times=draw.times[0])

    def draw_tokens(self, seen: Seen, batch: Batch, place: int, draw: Draws) -> DrawTokens:
        """Of each token the negative mean over its numbers of the squared difference of velocities."""
        assert draw.noise is not None
        velocities = self.velocities(seen, batch.canvas.spans[place]).float()
        wanted = batch.stacked(place, "tokens") - draw.noise[0, :, batch.part(place)]
        return DrawTokens(-(velocities - wanted).square().mean(2), velocities)

    def at_steps(self, batch: Batch, place: int, steps: Tensor) -> View:
        """The image before each of its recorded moves. Raises ValueError for other steps."""
        if [tuple(row) for row in steps.tolist()] != [rollout.recorded for rollout in batch]:
            raise ValueError("the moves of an image are known at the recorded steps, and at no others")
        return View(latents=self._moves(batch, place)[0], times=self._times(batch)[steps.flatten()])

    def step_tokens(self, seen: Seen, batch: Batch, place: int, steps: Tensor, copies: int) -> StepTokens:
        """Log-density of the SDE's move at each recorded step. The moves of an ODE have none: no token of theirs counts as committed."""
        times, which = self._times(batch), steps.flatten()
        before, after = self._moves(batch, place)
        level = float(batch.stacked(place, "noise_level")[0, 0])
        taken = flow.step(before, self.velocities(seen, batch.canvas.spans[place]), times[which], times[which + 1], level)
        found = log_densities(taken, after).view(len(batch), copies, -1)
        behaviour = batch.stacked(place, "logprob")
        committed = behaviour.isfinite()
        return StepTokens(found.where(committed, 0.0), committed, behaviour.where(committed, 0.0))

    def _moves(self, batch: Batch, place: int) -> tuple[Tensor, Tensor]:
        """Tokens before and after each recorded step, each [batch * step, n, d]."""
        before, after = batch.stacked(place, "moves").flatten(0, 1).unbind(1)
        return before, after

    def _times(self, batch: Batch) -> Tensor:
        """The times of the sampler that made the batch."""
        return flow.time_grid(batch[0].steps + 1, self.shift).to(batch.device)

    # ---- training, and proof of an adapter

    def lessons(self, clean: dict[Span, Tensor], generator: torch.Generator) -> dict[Span, Lesson]:
        """Mean squared error of the velocities."""
        return {span: self._lesson(span, tokens, generator) for span, tokens in clean.items()}

    def _lesson(self, span: Span, tokens: Tensor, generator: torch.Generator) -> Lesson:
        noise = torch.randn(tokens.shape, generator=generator).to(tokens)
        times = training_times(len(tokens), self.shift, generator).to(tokens)

        def loss(seen: Seen) -> Tensor:
            return (self.velocities(seen, span) - (tokens - noise)).square().mean()

        return Lesson(View(latents=flow.between(tokens, noise, times), times=times), loss)

    def canary_view(self, span: Span, device: torch.device) -> View:
        """Fixed noise, half-way."""
        noise = torch.randn(1, len(span), self.width, generator=torch.Generator().manual_seed(0))
        return View(latents=noise.to(device), times=torch.full((1,), 0.5, device=device))

    def canary(self, seen: Seen, span: Span) -> Tensor:
        """Velocities."""
        return self.velocities(seen, span)


def log_densities(step: flow.Step, states: Tensor) -> Tensor:
    """Log-density float32 [batch, n] of the move to each token of states [batch, n, d], the mean over its d numbers. NaN in rows whose step
    has no noise, as the last one of a sampler."""
    noisy = step.deviation.flatten() > 0
    out = torch.full(states.shape[:2], torch.nan, device=states.device)
    if noisy.any():
        out[noisy] = flow.Step(step.mean[noisy], step.deviation[noisy]).log_density(states[noisy]).mean(-1)
    return out


def training_times(batch: int, shift: float, generator: torch.Generator) -> Tensor:
    """Times [batch], logistic-normal and moved towards the noise by the sampler's shift.

    Source: showlab/Show-o, ``show-o2/transport/transport.py`` (``snr_type: lognorm``, ``do_shift``), which shifts by the number of tokens:
    1.8 at 729 of them, 3.2 at 4096. At 16 tokens that gives 1.6, with which the embedded policy learns more slowly what a prompt asks.
    """
    return flow.shifted(torch.randn(batch, generator=generator).sigmoid(), shift)
