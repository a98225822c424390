"""Pieces of the masked-diffusion likelihood: log-probabilities where they are wanted, stratified ratios, the weighted sum."""

import torch

from policies.likelihood.masked import elbo, hidden_token_logprobs, mask_ratios


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
