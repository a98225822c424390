"""Flow matching between noise at time 0 and data at time 1: the ODE sampler, and an SDE sampler whose steps have densities.

Between noise e ~ N(0, I) and data x1 a sample moves on ``x_t = (1 - t) e + t x1`` with velocity ``x1 - e``. The model learns the mean of
that velocity, ``u(x, t) = E[x1 - e | x_t = x]`` (showlab/Show-o, ``show-o2/transport/path.py``). Both ends follow from it:

    E[x1 | x] = x + (1 - t) u          E[e | x] = x - t u

**ODE.** ``dx = u dt`` carries the marginal p_t of every time into that of the next.

**SDE.** So does ``dx = (u + s^2/2 score) dt + s dW`` for any s(t). In the Fokker-Planck equation the noise adds s^2/2 Laplace(p). The
score, grad log p, takes away div(p s^2/2 grad log p), which is the same. Given x1, p_t is N(t x1, (1 - t)^2), so that the score is

    score = -E[x - t x1 | x] / (1 - t)^2 = -E[e | x] / (1 - t) = -(x - t u) / (1 - t)

Flow-GRPO has s = a sqrt((1 - t) / t) (arXiv 2505.05470, there for t = 1 at noise). The drift is then u + (a^2 / 2t) (t u - x): singular
at 0.

**Step.** We do not take Euler's step of it, but DDIM's with noise (arXiv 2010.02502, Eq. 12 and 16). That is right for any length of step
where x1 is known, and needs no care at 0. From t to t':

    x' = t' E[x1 | x] + sqrt((1 - t')^2 - d^2) E[e | x] + d z          d = a / sqrt(2) (1 - t') sqrt(1 - (r' / r)^2)

with z ~ N(0, I) and the ratio of noise to data r = (1 - t) / t. If the two means were the x1 and e that made x, x' would have exactly the
marginal of t'. For a = 0 it is Euler's step of the ODE, x + (t' - t) u. For short steps (r' / r)^2 = 1 - 2 dt / (t (1 - t)), hence
d^2 = a^2 (1 - t) / t dt = s^2 dt. By the expansion of the root, the drift is u - d^2 / (2 dt (1 - t)) E[e | x] = u + s^2/2 score. So it is
the SDE above. At t = 0 r is infinite and d = a / sqrt(2) (1 - t'): with a = sqrt(2), the most there is, all noise is drawn anew. At t' = 1
d is 0: the last step adds no noise to the image, and has no density.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(states [batch, ...], times [batch]) -> velocities [batch, ...], from noise to data."""
MOST_NOISE = math.sqrt(2)
"""At this noise level a step from pure noise draws all of it anew."""


def shifted(times: Tensor, factor: float) -> Tensor:
    """Times moved towards the noise, t / (t + factor (1 - t)); a factor of 1 leaves them. Show-o2 samples with 3."""
    return times / (times + factor - factor * times)


def time_grid(points: int, shift: float = 3.0) -> Tensor:
    """Times float32 [points] from 0 to 1: one step less than points, each at its first time. Raises ValueError for fewer than two."""
    if points < 2:
        raise ValueError(f"a grid from noise to data has at least 2 points, got {points}")
    return shifted(torch.linspace(0, 1, points), shift)


def guided(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance as Show-o2 has it: 1 is the conditional velocity alone, 0 the unconditional one."""
    return unconditional + scale * (conditional - unconditional)


def between(data: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """States x_t [batch, ...] of data and noise [batch, ...] at times [batch]; the velocity there is ``data - noise``."""
    t = _like(times, data)
    return t * data + (1 - t) * noise


def _like(times: Tensor, states: Tensor) -> Tensor:
    return times.view(-1, *[1] * (states.ndim - 1)).to(states.dtype)


@torch.no_grad()
def ode(velocity: Velocity, noise: Tensor, times: Tensor) -> Tensor:
    """All states of Euler's method, [points, batch, ...], from noise [batch, ...] on along ``times`` [points]; the last is the image."""
    states = [noise]
    for now, then in zip(times[:-1], times[1:], strict=True):
        states.append(states[-1] + (then - now) * velocity(states[-1], now.expand(len(noise))))
    return torch.stack(states)


@dataclass(frozen=True, slots=True)
class Step:
    """The Gaussian that a state is drawn from, given the one before it."""

    mean: Tensor
    """[batch, ...]."""
    deviation: Tensor
    """[batch, 1, ...]; 0 = there is no noise, and no density."""

    def log_density(self, state: Tensor) -> Tensor:
        """Of each number of a state [batch, ...], float32 of the same shape; Flow-GRPO takes the mean over them. Differentiable.

        Raises ValueError for a step without noise.
        """
        # Float32 whatever the backbone: densities are compared by their differences.
        mean, deviation = self.mean.float(), self.deviation.float()
        if not bool((deviation > 0).all()):
            raise ValueError("a step without noise has no density: the last one to the data, and every one at a noise level of 0")
        return -0.5 * ((state.float() - mean) / deviation).square() - deviation.log() - 0.5 * math.log(2 * math.pi)


def step(states: Tensor, velocities: Tensor, now: Tensor, then: Tensor, noise_level: float) -> Step:
    """The SDE's step from states [batch, ...] with their velocities at times ``now`` [batch] to ``then`` [batch], differentiable.

    ``noise_level``: a of the module's derivation, 0 (the ODE) to sqrt(2); Flow-GRPO has 0.7. Raises ValueError beyond.
    """
    if not 0 <= noise_level <= MOST_NOISE:
        raise ValueError(f"the noise level must be from 0 to sqrt(2), got {noise_level}")
    t, after = _like(now, states), _like(then, states)
    # r' / r without dividing by t, which is 0 at the first step.
    ratio = (1 - after) * t / ((1 - t) * after)
    deviation = noise_level / MOST_NOISE * (1 - after) * (1 - ratio.square()).clamp_min(0).sqrt()
    # At the most noise the difference below is 0, and rounding must not make it a root of less.
    data, noise = states + (1 - t) * velocities, states - t * velocities
    return Step(after * data + ((1 - after).square() - deviation.square()).clamp_min(0).sqrt() * noise, deviation)


@torch.no_grad()
def sde(velocity: Velocity, noise: Tensor, times: Tensor, draws: Tensor, noise_level: float = 0.7) -> Tensor:
    """All states of the SDE, [points, batch, ...], from noise [batch, ...] on along ``times`` [points].

    ``draws`` standard normal [points - 1, batch, ...]: given, so that a rollout is a function of its own seed whatever its batch. What the
    last one is does not matter.
    """
    states = [noise]
    for now, then, z in zip(times[:-1], times[1:], draws, strict=True):
        now, then = now.expand(len(noise)), then.expand(len(noise))
        taken = step(states[-1], velocity(states[-1], now), now, then, noise_level)
        states.append(taken.mean + taken.deviation * z)
    return torch.stack(states)
