"""The grid and the ODE are the released ones; the SDE keeps the marginals of the ODE, and its densities are those of torch."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.distributions import Normal

from policies.sampling.flow import MOST_NOISE, Velocity, between, guided, ode, sde, shifted, step, time_grid
from tests.wording import telling

SAMPLES = 8_000


class Mixture:
    """Isotropic Gaussians as data, of which the velocity is known exactly: each component gives E[x1 - e | x] by linear regression."""

    def __init__(self, weights: list[float], means: list[list[float]], deviations: list[float]) -> None:
        self.weights, self.means, self.deviations = torch.tensor(weights), torch.tensor(means), torch.tensor(deviations)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        which = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        noise = torch.randn(count, self.means.shape[1], generator=generator)
        return self.means[which] + self.deviations[which, None] * noise

    def velocity(self, states: Tensor, times: Tensor) -> Tensor:
        t = times[:, None, None]
        off = states[:, None] - t * self.means
        data, variance = t * self.deviations[:, None] ** 2, t**2 * self.deviations[:, None] ** 2 + (1 - t) ** 2
        each = self.means + (data - (1 - t)) / variance * off
        log = self.weights.log() - (off.square() / (2 * variance)).sum(-1) - 0.5 * states.shape[1] * variance[..., 0].log()
        return (log.softmax(-1)[..., None] * each).sum(1)


GAUSSIAN = Mixture([1.0], [[2.0]], [0.5])
PLANE = Mixture([0.3, 0.7], [[-1.5, 0.5], [1.0, -1.0]], [0.3, 0.5])


def moments(x: Tensor) -> Tensor:
    """Means, standard deviations, and the shares left of the middle of the two modes, in each direction."""
    return torch.cat((x.mean(0), x.std(0), (x < torch.tensor([-0.25, -0.25])[: x.shape[1]]).float().mean(0)))


def run(world: Mixture, kind: str, points: int, level: float = 0.7, shift: float = 1.0) -> Tensor:
    """Samples [count, dims] of one of the samplers."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(SAMPLES, world.means.shape[1], generator=generator)
    times = time_grid(points, shift)
    draws = torch.randn(points - 1, *noise.shape, generator=generator)
    if kind == "ode":
        return ode(world.velocity, noise, times)[-1]
    if kind == "sde":
        return sde(world.velocity, noise, times, draws, level)[-1]
    assert kind == "no score correction"
    for now, then, z in zip(times[:-1], times[1:], draws, strict=True):
        every = now.expand(SAMPLES)
        velocity = world.velocity(noise, every)
        noise = noise + (then - now) * velocity + step(noise, velocity, every, then.expand(SAMPLES), level).deviation * z
    return noise


@pytest.mark.parametrize("world", [GAUSSIAN, PLANE], ids=["gaussian", "mixture in the plane"])
@pytest.mark.parametrize(("level", "shift"), [(0.3, 1.0), (0.7, 1.0), (0.7, 3.0), (MOST_NOISE, 1.0)])
def test_the_sde_ends_in_the_data_as_the_ode_does(world: Mixture, level: float, shift: float) -> None:
    data = moments(world.draw(100_000, torch.Generator().manual_seed(0)))
    assert (moments(run(world, "ode", 100, shift=shift)) - data).abs().max() < 0.03
    assert (moments(run(world, "sde", 100, level, shift)) - data).abs().max() < 0.04
    wrong = (moments(run(world, "no score correction", 100, level, shift)) - data).abs().max()
    assert wrong > 0.05, "noise that the drift does not make up for widens the data"


@pytest.mark.parametrize("time", [0.3, 0.6, 0.9])
def test_the_sde_has_the_marginal_of_every_time_on_its_way(time: float) -> None:
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(SAMPLES, 2, generator=generator)
    times = torch.linspace(0, time, 60)
    found = sde(PLANE.velocity, noise, times, torch.randn(59, *noise.shape, generator=generator), 1.0)[-1]
    data = PLANE.draw(SAMPLES, generator)
    expected = between(data, torch.randn(SAMPLES, 2, generator=generator), torch.full((SAMPLES,), time))
    assert (moments(found) - moments(expected)).abs().max() < 0.04


@pytest.mark.parametrize("points", [2, 3, 5])
@pytest.mark.parametrize("level", [0.7, MOST_NOISE])
def test_one_image_in_the_data_is_reached_through_exact_marginals_in_few_steps(points: int, level: float) -> None:
    image = torch.tensor([1.5, -0.5])
    velocity: Velocity = lambda x, t: (image - x) / (1 - t)[:, None]  # noqa: E731
    generator = torch.Generator().manual_seed(3)
    noise, draws = torch.randn(SAMPLES, 2, generator=generator), torch.randn(points - 1, SAMPLES, 2, generator=generator)
    times = time_grid(points)
    states = sde(velocity, noise, times, draws, level)
    for t, state in zip(times, states, strict=True):
        assert torch.allclose(state.mean(0), t * image, rtol=0, atol=0.03)
        assert torch.allclose(state.std(0), (1 - t).expand(2), rtol=0, atol=0.02)
    assert torch.allclose(states[-1], image.expand(SAMPLES, 2), rtol=0, atol=1e-5)


# ---- the step


def test_without_noise_the_sde_is_the_ode() -> None:
    noise = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    times = time_grid(7)
    draws = torch.randn(6, 64, 2)
    assert torch.allclose(sde(PLANE.velocity, noise, times, draws, 0.0), ode(PLANE.velocity, noise, times), rtol=0, atol=1e-5)
    assert not torch.allclose(sde(PLANE.velocity, noise, times, draws, 0.1)[1:], ode(PLANE.velocity, noise, times)[1:], rtol=0, atol=1e-2)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_a_short_step_is_that_of_flow_grpo(t: float) -> None:
    """Mean and deviation of the recorded formula: x (1 - s^2 dt / (2 (1 - t))) + u (1 + s^2 t / (2 (1 - t))) dt and s sqrt(dt)."""
    generator = torch.Generator().manual_seed(0)
    x, u = (torch.randn(5, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    a, dt = 0.7, 1e-4
    s2 = a**2 * (1 - t) / t
    taken = step(x, u, torch.full((5,), t).double(), torch.full((5,), t + dt).double(), a)
    mean = x * (1 - s2 / (2 * (1 - t)) * dt) + u * (1 + s2 * t / (2 * (1 - t))) * dt
    assert (taken.mean - mean).abs().max() < 20 * dt**2 / t**2
    assert (taken.deviation / (s2 * dt) ** 0.5 - 1).abs().max() < 20 * dt


def test_the_first_step_is_finite_and_the_last_adds_no_noise() -> None:
    x, u = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2)
    zero, half, one = (torch.full((4,), t) for t in (0.0, 0.5, 1.0))
    first = step(x, u, zero, half, 0.7)
    assert torch.allclose(first.deviation, torch.full((4, 1, 1, 1), 0.7 / 2**0.5 * 0.5)) and bool(first.mean.isfinite().all())
    anew = step(x, u, zero, half, MOST_NOISE)
    assert torch.allclose(anew.mean, 0.5 * (x + u), atol=1e-3), "the whole of the noise is drawn anew: the mean is the data's alone"
    last = step(x, u, half, one, 0.7)
    assert torch.equal(last.deviation, torch.zeros(4, 1, 1, 1)) and torch.allclose(last.mean, x + 0.5 * u, atol=1e-6)
    with pytest.raises(ValueError, match=telling("noise", "density")):
        last.log_density(x)


def test_log_densities_are_those_of_torch_with_their_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    x, state = torch.randn(4, 3, 2, 2, generator=generator), torch.randn(4, 3, 2, 2, generator=generator)
    u = torch.randn(4, 3, 2, 2, generator=generator, requires_grad=True)
    now, then = torch.tensor([0.0, 0.2, 0.5, 0.8]), torch.tensor([0.1, 0.5, 0.6, 0.9])
    taken = step(x, u, now, then, 0.7)
    ours = taken.log_density(state)
    theirs = Normal(taken.mean, taken.deviation).log_prob(state)
    assert ours.shape == x.shape and torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(ours.sum(), u, retain_graph=True)
    (expected,) = torch.autograd.grad(theirs.sum(), u)
    assert torch.allclose(gradient, expected, rtol=1e-4, atol=1e-5) and gradient.abs().min() > 0


@pytest.mark.parametrize("level", [-0.1, 1.5])
def test_noise_levels_that_there_are_not_are_an_error(level: float) -> None:
    with pytest.raises(ValueError, match=telling("noise level", level)):
        step(torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1), torch.ones(1), level)


# ---- grid and guidance


@pytest.mark.parametrize(("name", "points"), [("ode_a", 6), ("ode_b", 5)])
def test_the_grid_is_the_recorded_one(golden: Path, name: str, points: int) -> None:
    recorded = load_file(golden / "showo2" / "cases.safetensors")[f"{name}.t_calls"]
    assert torch.allclose(time_grid(points)[:-1], recorded, rtol=0, atol=1e-7) and time_grid(points)[-1] == 1


def test_a_shift_of_one_leaves_the_times_and_a_grid_has_two_ends() -> None:
    assert torch.allclose(time_grid(5, 1.0), torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]))
    assert float(shifted(torch.tensor(0.5), 3.0)) == 0.25
    with pytest.raises(ValueError, match=telling(2, 1)):
        time_grid(1)


def test_times_are_shifted_as_upstream_shifts_those_of_training() -> None:
    """Upstream's form: ``1 - e^mu / (e^mu + 1 / (1 - t) - 1)``."""
    t = torch.linspace(0.05, 0.95, 10)
    for factor in (1.5, 3.0):
        assert torch.allclose(shifted(t, factor), 1 - factor / (factor + 1 / (1 - t) - 1), rtol=0, atol=1e-6)


def test_guidance_of_one_is_the_conditional_velocity() -> None:
    c, u = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 3.0])
    assert torch.equal(guided(c, u, 1.0), c) and torch.equal(guided(c, u, 0.0), u)
    assert torch.equal(guided(c, u, 5.0), torch.tensor([3.0, -2.0]))
