"""Pieces of the masked-diffusion likelihood: log-probabilities where they are wanted, masks, and the bounds that they estimate."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from policies.likelihood.masked import elbo, eubo, hidden_sets, hidden_token_logprobs, mask_ratios


def test_log_probabilities_are_those_of_a_full_softmax_at_the_wanted_positions() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(3, 5, 8, generator=generator), torch.randn(11, 8, generator=generator)
    targets = torch.randint(100, 111, (3, 5), generator=generator)
    wanted = torch.rand(3, 5, generator=generator) < 0.5
    wanted[1] = False
    got = hidden_token_logprobs(hidden, lambda h: h @ weight.T, targets, wanted, 100)
    full = (hidden.double() @ weight.double().T).log_softmax(-1)
    assert got.dtype == torch.float32 and 0 < int(wanted.sum()) < 15
    for b in range(3):
        for i in range(5):
            expected = float(full[b, i, targets[b, i] - 100]) if wanted[b, i] else 0.0
            assert abs(float(got[b, i]) - expected) < 1e-5
            assert wanted[b, i] or float(got[b, i]) == 0.0


def test_nothing_wanted_gives_zeros_and_no_gradient() -> None:
    hidden = torch.randn(2, 3, 4, requires_grad=True)
    got = hidden_token_logprobs(hidden, lambda h: h, torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.bool), 0)
    got.sum().backward()
    assert torch.equal(got, torch.zeros(2, 3)) and hidden.grad is not None and float(hidden.grad.abs().sum()) == 0


def test_only_wanted_positions_get_a_gradient() -> None:
    hidden = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
    wanted = torch.tensor([[True, False, False], [False, True, True]])
    hidden_token_logprobs(hidden, lambda h: h, torch.ones(2, 3, dtype=torch.int64), wanted, 0).sum().backward()
    assert hidden.grad is not None and torch.equal(hidden.grad.abs().sum(-1) > 0, wanted)


def test_every_share_of_the_range_gets_one_ratio_of_each_column() -> None:
    ratios = mask_ratios(5, 400, 0.5, 1.0, torch.Generator().manual_seed(0))
    assert ratios.shape == (5, 400) and ratios.dtype == torch.float32
    for i in range(5):
        low, high = 0.5 + 0.1 * i, 0.6 + 0.1 * i
        assert float(ratios[i].min()) >= low - 1e-6 and float(ratios[i].max()) <= high + 1e-6
        assert abs(float(ratios[i].mean()) - (low + high) / 2) < 4 * 0.1 / 12**0.5 / 400**0.5
        assert float(ratios[i].max() - ratios[i].min()) > 0.09, "anywhere in the share"


def test_a_ratio_is_never_zero_so_its_weight_is_finite() -> None:
    assert float(mask_ratios(1, 1_000_000, 0.0, 1.0, torch.Generator().manual_seed(0)).min()) > 0


def test_the_bound_is_the_weighted_sum_per_token() -> None:
    logp = torch.tensor([[-1.0, 0.0, -2.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert elbo(logp, torch.tensor([2.0, 9.0])).tolist() == [-1.5, 0.0]


# ---- masks and bounds, by enumeration

Model = Callable[[int, frozenset[int]], float]
"""Log-probability of a token where some are hidden."""


def any_model(n: int) -> Model:
    """A log-probability for every token and every set of hidden ones, all different."""
    table = -torch.rand(n, 2**n, generator=torch.Generator().manual_seed(n)).double() * 3 - 0.1
    return lambda token, hidden: float(table[token, sum(1 << i for i in hidden)])


def every_draw(n: int, block: int | None, ratio: tuple[float, float] = (0.0, 1.0), cells: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """All that ``hidden_sets`` may give, equally likely: a clock in each of ``cells * n`` cells of its range, tokens in any order."""
    clock = (torch.arange(cells * n) + 0.5) / (cells * n)
    orders = torch.tensor(list(itertools.permutations(range(n)))) / n
    return hidden_sets(clock.repeat_interleave(len(orders)), orders.repeat(cells * n, 1), ratio, block)


def logprobs(model: Model, hidden: Tensor, counted: Tensor) -> Tensor:
    """Of the tokens that count, float64 [draw, n]; 0 at the others."""
    out = torch.zeros(counted.shape, dtype=torch.float64)
    for d, (row, own) in enumerate(zip(hidden.tolist(), counted.tolist(), strict=True)):
        for i in range(len(row)):
            if own[i]:
                out[d, i] = model(i, frozenset(j for j, masked in enumerate(row) if masked))
    return out


def mean_over_orders(model: Model, n: int, block: int) -> float:
    """log p of the tokens written one by one, block behind block and within a block in a random order, averaged over the orders: what
    independent masks weighted by 1 / ratio bound (the order-agnostic form of the ELBO, Hoogeboom et al. 2022, arXiv 2110.02037)."""
    total = 0.0
    for start in range(0, n, block):
        own, later = range(start, min(start + block, n)), range(min(start + block, n), n)
        orders = list(itertools.permutations(own))
        total += sum(model(order[t], frozenset((*order[t:], *later))) for order in orders for t in range(len(own))) / len(orders)
    return total


@pytest.mark.parametrize(("n", "block"), [(4, None), (6, 3), (6, 2), (4, 1), (5, 3), (5, 4)])
def test_the_expectation_over_every_mask_is_the_mean_log_probability_over_orders(n: int, block: int | None) -> None:
    model = any_model(n)
    hidden, counted, weights = every_draw(n, block)
    expected = elbo(logprobs(model, hidden, counted), weights.double()).mean()
    assert expected.item() == pytest.approx(mean_over_orders(model, n, block or n) / n, rel=1e-6)
    others = mean_over_orders(model, n, n if block else 2) / n
    assert abs(expected.item() - others) > 1e-3, "the bound of other blocks is another one"


@pytest.mark.parametrize("block", [6, 3, 2, 4])
def test_blocks_before_the_clock_are_visible_those_behind_it_hidden_and_do_not_count(block: int) -> None:
    hidden, counted, weights = every_draw(6, block)
    ends = [min(start + block, 6) for start in range(0, 6, block)]
    seen = set()
    for masks, own, weight in zip(hidden, counted, weights, strict=True):
        which = int(own.nonzero()[0]) // block
        start, end, k = which * block, ends[which], int(own.sum())
        seen.add((start, k))
        assert own[start:end].sum() == k and not masks[:start].any() and masks[end:].all()
        assert torch.equal(masks[start:end], own[start:end]) and weight == 6 / k
    assert seen == {(i * block, k) for i, end in enumerate(ends) for k in range(1, end - i * block + 1)}
    shares = hidden.float().mean(-1).view(6, -1)
    assert torch.equal(shares, ((torch.arange(6) + 1) / 6)[:, None].expand_as(shares)), "as much is hidden as the clock says"


def test_every_token_counts_once_on_average() -> None:
    for block in (None, 3, 2, 4):
        _, counted, weights = every_draw(6, block)
        assert torch.allclose((counted * weights[:, None]).mean(0), torch.ones(6))


def test_the_bounds_of_the_ratio_are_those_within_a_block() -> None:
    _, counted, weights = every_draw(6, 3, (0.5, 1.0), cells=2)
    sizes = counted.sum(-1)
    # Ratios even on (.5, 1] of three tokens: two in (1.5, 2], a third of the range, three in (2, 3].
    assert sizes.unique().tolist() == [2, 3] and (sizes == 2).float().mean().item() == pytest.approx(1 / 3)
    assert torch.equal(weights, 6 / sizes)
    always, own, _ = every_draw(4, None, (1.0, 1.0))
    assert always.all() and own.all()


@pytest.mark.parametrize("clock", [2.0**-24, 0.5, 1.0])
def test_the_ends_of_the_clock_hide_one_token_and_all(clock: float) -> None:
    for block in (None, 128, 100):
        hidden, counted, _ = hidden_sets(torch.tensor([clock]), torch.rand(1, 512), block=block)
        assert hidden.sum() == max(1, round(clock * 512)) and counted.any()


# ---- the upper bound


def test_the_upper_bound_is_its_formula_written_with_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    draws, batch, n, beta = 3, 2, 5, 1.5
    counted = torch.rand(draws, batch, n, generator=generator) < 0.5
    counted[:, :, 0] = False
    counted[:, :, 1] = True
    logp = -torch.rand(draws, batch, n, generator=generator).double() * 4 * counted
    weights = torch.rand(draws, batch, generator=generator).double() + 1
    found = eubo(logp, counted, weights, beta)
    for b in range(batch):
        terms = []
        for i in range(n):
            total = sum(float(weights[d, b]) * math.exp(float(logp[d, b, i])) ** beta for d in range(draws) if counted[d, b, i])
            if total:
                terms.append(math.log(total / draws) / beta)
        assert 0 < len(terms) < n
        assert found[b].item() == pytest.approx(sum(terms) / len(terms), rel=1e-9)


def test_a_modality_that_no_draw_counts_has_an_upper_bound_of_zero_and_no_gradient() -> None:
    logp = torch.zeros(2, 1, 3, requires_grad=True)
    found = eubo(logp, torch.zeros(2, 1, 3, dtype=torch.bool), torch.ones(2, 1), 1.5)
    found.sum().backward()
    assert found.tolist() == [0.0] and logp.grad is not None and logp.grad.eq(0).all()


@pytest.mark.parametrize("block", [None, 2, 3])
def test_with_every_mask_drawn_the_bounds_stand_in_their_order(block: int | None) -> None:
    """Jensen: at equal weights in sum, log of a mean is above the mean of logs, and power means grow with the power."""
    hidden, counted, weights = every_draw(4, block)
    logp = logprobs(any_model(4), hidden, counted)[:, None]
    weights = weights.double()[:, None]
    lower = elbo(logp, weights).mean().item()
    uppers = [eubo(logp, counted[:, None], weights, beta).item() for beta in (1.0, 1.5, 3.0)]
    assert lower < uppers[0] < uppers[1] < uppers[2]
    # One draw whose every token counts leaves no gap.
    alone = eubo(logp[-1:], torch.ones(1, 1, 4, dtype=torch.bool), torch.ones(1, 1).double(), 2.0).item()
    assert alone == pytest.approx(logp[-1].mean().item())
