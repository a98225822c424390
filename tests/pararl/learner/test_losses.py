"""The losses against closed forms and independent computations."""

import math

import numpy as np
import pytest
import torch

from pararl.learner.losses import accuracy, clipped_loss, draw_mean, likelihood_loss, preference_loss, weighted_loss
from policies.likelihood.kl import k3


def test_preference_loss_is_dpo_with_normalised_weights() -> None:
    rng = np.random.default_rng(0)
    chosen, rejected, weights = rng.normal(size=7), rng.normal(size=7), rng.random(7) + 0.1
    loss, metrics = preference_loss(torch.tensor(chosen), torch.tensor(rejected), 0.7, torch.tensor(weights))
    by_hand = [-w * math.log(1 / (1 + math.exp(-0.7 * (c - r)))) for c, r, w in zip(chosen, rejected, weights, strict=True)]
    assert loss.item() == pytest.approx(sum(by_hand) / weights.sum(), rel=1e-6)
    assert metrics["loss/accuracy"] == pytest.approx(np.mean(chosen > rejected))


def test_preference_gradient_at_the_reference_is_a_policy_gradient_with_group_mean_baseline() -> None:
    reward = torch.tensor([0.9, 0.1, 0.4, 0.6])
    ratio = torch.zeros(4, requires_grad=True)
    pairs = [(i, j) for i in range(4) for j in range(4) if reward[i] > reward[j]]
    chosen, rejected = (torch.tensor(x) for x in zip(*pairs, strict=True))
    loss, _ = preference_loss(ratio[chosen], ratio[rejected], 1.0, reward[chosen] - reward[rejected])
    loss.backward()
    assert ratio.grad is not None
    advantage = reward - reward.mean()
    assert torch.allclose(-ratio.grad / ratio.grad.norm(), advantage / advantage.norm(), atol=1e-6)


def test_equal_weights_give_the_mean_sigmoid_loss_that_trl_documents() -> None:
    # The documented loss of TRL's DPOTrainer (loss type "sigmoid", no label smoothing); its trainer itself takes autoregressive models.
    chosen, rejected = (
        torch.randn(5, generator=torch.Generator().manual_seed(0)),
        torch.randn(5, generator=torch.Generator().manual_seed(1)),
    )
    ours, _ = preference_loss(chosen, rejected, 0.1, torch.ones(5))
    assert ours.item() == pytest.approx(torch.nn.functional.softplus(-0.1 * (chosen - rejected)).mean().item(), rel=1e-6)


def test_the_preference_loss_is_finite_far_from_zero() -> None:
    """log(sigmoid(x)) in float32 is -infinity from x = -104 on."""
    far = torch.tensor([1000.0, -1000.0], requires_grad=True)
    loss, _ = preference_loss(far, torch.zeros(2), 1.0, torch.ones(2))
    loss.backward()
    assert loss.item() == 500.0 and far.grad is not None and far.grad.tolist() == [0.0, -0.5]


@pytest.mark.parametrize("clip", [0.1, 0.3])
def test_clipped_loss_is_equation_3_written_with_loops(clip: float) -> None:
    g = torch.Generator().manual_seed(3)
    new, old = torch.randn(4, 2, 5, generator=g) * 0.3 - 1, torch.randn(4, 2, 5, generator=g) * 0.3 - 1
    committed = torch.rand(4, 2, 5, generator=g) < 0.5
    committed[0, 0] = False
    committed[3] = False
    advantage = torch.randn(4, 2, generator=g)
    loss, metrics = clipped_loss(new, old, advantage[..., None], committed, clip)
    total = 0.0
    for i in range(3):
        for t in range(2):
            tokens = [k for k in range(5) if committed[i, t, k]]
            for k in tokens:
                r, a = math.exp(new[i, t, k] - old[i, t, k]), advantage[i, t].item()
                # Rollout 0 has one step that committed something, rollouts 1 and 2 have two.
                total += min(r * a, min(max(r, 1 - clip), 1 + clip) * a) / len(tokens) / (1 if i == 0 else 2)
    assert committed[1:3].any(-1).all() and committed[0, 1].any()
    assert loss.item() == pytest.approx(-total / 3, rel=1e-5)
    assert 0 < metrics["loss/clipped"] < 1


def test_k3_estimates_the_kl_of_categoricals() -> None:
    g = torch.Generator().manual_seed(0)
    p, q = (torch.randn(6, generator=g).log_softmax(-1) for _ in range(2))
    drawn = torch.multinomial(p.exp(), 200_000, replacement=True, generator=g)
    estimate = k3(p[drawn], q[drawn]).mean()
    assert estimate.item() == pytest.approx((p.exp() * (p - q)).sum().item(), rel=0.02)


def test_likelihood_loss_is_the_negative_mean() -> None:
    loss, metrics = likelihood_loss(torch.tensor([-1.0, -3.0]))
    assert loss.item() == 2.0
    assert metrics["loss/loglik"] == -2.0


def test_accuracy_counts_a_tie_as_half() -> None:
    assert accuracy(torch.tensor([1.0, 0.0, -1.0, 2.0])) == pytest.approx(2.5 / 4)
    assert accuracy(torch.zeros(3)) == 0.5


def test_the_weighted_loss_is_a_mean_over_tokens_first_and_then_over_draws_that_count_any() -> None:
    logprob = torch.tensor([[[-1.0, 0.0, -3.0], [0.0, -2.0, 0.0]], [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]])
    counted = torch.tensor([[[True, False, True], [False, True, False]], [[False] * 3, [False] * 3]])
    advantage = torch.tensor([[[0.5, 9.0, -1.0]], [[4.0, 4.0, 4.0]]])
    # Draw 1: (0.5 * -1 - 1 * -3) / 2 = 1.25; draw 2: 9 * -2 = -18; the other rollout has no token.
    assert weighted_loss(logprob, advantage, counted).item() == pytest.approx(-(1.25 - 18) / 2)
    assert draw_mean(logprob, counted).item() == pytest.approx((-2.0 - 2.0) / 2)
