"""Each objective as a pure function of likelihoods and a signal, against loops over pairs, rollouts and tokens."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pararl.config import LearnerConfig
from pararl.learner.credit import Signal
from pararl.learner.objectives import group_relative, likelihood, preference
from pararl.learner.terms import Likelihoods, TokenTerms
from pararl.types import MODALITIES, Pair

CONFIG = LearnerConfig(beta=0.7, text_weight=0.5, image_weight=2.0, clip_ratio=0.2)
WEIGHTS = {"text": 0.5, "image": 2.0}
PAIRS = (Pair(0, 1, 0.4, step=0), Pair(2, 3, 0.9, step=1, weight=0.3), Pair(2, 0, 0.2), Pair(3, 1, 0.6))


def random(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def both(values: Tensor) -> float:
    """Weighted sum of one value a modality."""
    return 0.5 * values[0].item() + 2.0 * values[1].item()


def sigmoid_loss(chosen: float, rejected: float, weight: float) -> float:
    return weight * math.log(1 + math.exp(-0.7 * (chosen - rejected)))


@pytest.mark.parametrize("nll", [0.0, 0.3])
@pytest.mark.parametrize("mixture", [False, True])
def test_a_preference_compares_each_pair_at_its_level(nll: float, mixture: bool) -> None:
    policy, reference, upper, upper_reference = (random(4, 3, 2, seed=i) for i in range(4))
    records = Likelihoods(policy, upper if mixture else None), Likelihoods(reference, upper_reference if mixture else None)
    loss, metrics = preference(*records, Signal(PAIRS), replace(CONFIG, nll=nll))
    total, mass, gaps, wins = 0.0, 0.0, [], []
    for chosen, rejected, level, weight in ((0, 1, 0, 0.4), (2, 3, 1, 0.3), (2, 0, 2, 0.2), (3, 1, 2, 0.6)):
        up = both(policy[chosen, level]) - both(reference[chosen, level])
        down = both(policy[rejected, level]) - both(reference[rejected, level])
        if mixture:
            down = both(upper[rejected, level]) - both(upper_reference[rejected, level])
        total, mass = total + sigmoid_loss(up, down, weight), mass + weight
        wins.append(up > down)
        gaps.append(both(policy[chosen, level]) - both(policy[rejected, level]))
    anchor = -sum(both(policy[i, 2]) for i in (0, 2, 3)) / 3
    assert loss.item() == pytest.approx(total / mass + nll * anchor, rel=1e-5)
    assert metrics["loss/accuracy"] == pytest.approx(sum(wins) / 4)
    assert metrics["loss/likelihood_margin"] == pytest.approx(sum(gaps) / 4, rel=1e-5)
    assert metrics["loss/likelihood_accuracy"] == pytest.approx(sum(gap > 0 for gap in gaps) / 4)
    assert metrics.get("loss/nll") == (pytest.approx(anchor, rel=1e-5) if nll else None)


def test_the_likelihood_is_that_of_the_final_output_alone() -> None:
    policy = random(5, 3, 2, seed=0)
    loss, metrics = likelihood(Likelihoods(policy), None, Signal(), CONFIG)
    mean = sum(both(policy[i, -1]) for i in range(5)) / 5
    assert loss.item() == pytest.approx(-mean, rel=1e-5) and metrics == {"loss/loglik": pytest.approx(mean, rel=1e-5)}


def counted(seed: int) -> Tensor:
    """Tokens that count at one of the two steps or draws of three rollouts, the last of which has no image."""
    some: Tensor = torch.rand(3, 2, 2, 5, generator=torch.Generator().manual_seed(seed)) < 0.6
    some[0, 0, 0] = False
    some[2, :, 1] = False
    return some


def k3_by_hand(logprob: float, reference: float) -> float:
    return math.exp(reference - logprob) - 1 - (reference - logprob)


@pytest.mark.parametrize("kl", [0.0, 0.7])
def test_at_steps_every_token_has_the_clipped_ratio_of_equation_3_times_the_advantage_of_its_step(kl: float) -> None:
    own = counted(1)
    logprob, behaviour, base = (random(3, 2, 2, 5, seed=i, scale=0.3) * own for i in range(3))
    advantages = random(3, 3, 2, 5, seed=4)
    config = replace(CONFIG, kl=kl)
    reference = Likelihoods(logprob, tokens=TokenTerms(base, own, behaviour)) if kl else None
    signal = Signal(advantages=advantages)
    loss, metrics = group_relative(Likelihoods(logprob, tokens=TokenTerms(logprob, own, behaviour)), reference, signal, config)
    total = 0.0
    for m, modality in enumerate(MODALITIES):
        gains, moved, clipped = [], [], []
        for i in range(3):
            steps = [t for t in range(2) if own[i, t, m].any()]
            if not steps:
                continue
            gain = 0.0
            for t in steps:
                places = own[i, t, m].nonzero().flatten().tolist()
                for k in places:
                    ratio, advantage = math.exp(logprob[i, t, m, k] - behaviour[i, t, m, k]), advantages[i, t, m, k].item()
                    gain += min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage) / len(places) / len(steps)
                    moved.append(k3_by_hand(logprob[i, t, m, k].item(), base[i, t, m, k].item()))
                    clipped.append(abs(ratio - 1) > 0.2)
            gains.append(gain)
        penalty = sum(moved) / len(moved)
        total += WEIGHTS[modality] * (-sum(gains) / len(gains) + kl * penalty)
        assert metrics.get(f"loss/kl_penalty_{modality}") == (pytest.approx(penalty, rel=1e-4) if kl else None)
        assert metrics[f"loss/clipped_{modality}"] == pytest.approx(sum(clipped) / len(clipped))
    assert loss.item() == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("kl", [0.0, 0.7])
def test_at_draws_every_token_has_its_part_of_the_elbo_times_the_advantage_of_the_final_output(kl: float) -> None:
    own = counted(2)
    logprob, moved, advantages = random(3, 2, 2, 5, seed=0) * own, random(3, 2, 2, 5, seed=1).abs() * own, random(3, 3, 2, 5, seed=2)
    policy = Likelihoods(logprob, tokens=TokenTerms(logprob, own, moved=moved if kl else None))
    reference = Likelihoods(logprob, tokens=TokenTerms(logprob, own)) if kl else None
    loss, metrics = group_relative(policy, reference, Signal(advantages=advantages), replace(CONFIG, kl=kl))
    total = 0.0
    for m, modality in enumerate(MODALITIES):
        gains, penalties = [], []
        for i in range(3):
            for d in range(2):
                places = own[i, d, m].nonzero().flatten().tolist()
                if places:
                    gains.append(sum((advantages[i, 2, m, k] * logprob[i, d, m, k]).item() for k in places) / len(places))
                    penalties.append(sum(moved[i, d, m, k].item() for k in places) / len(places))
        penalty = sum(penalties) / len(penalties)
        total += WEIGHTS[modality] * (-sum(gains) / len(gains) + kl * penalty)
        assert metrics.get(f"loss/kl_penalty_{modality}") == (pytest.approx(penalty, rel=1e-4) if kl else None)
    assert loss.item() == pytest.approx(total, rel=1e-5)
    assert {name for name in metrics if "kl_penalty" not in name} == set(), "no sampler met the draws: there is no ratio"


def test_at_draws_the_loss_is_linear_so_that_one_pass_gives_its_gradient() -> None:
    own, advantages = counted(3), random(3, 3, 2, 5, seed=2)
    gradients = []
    for seed in (0, 1):
        parts = torch.stack((random(3, 2, 2, 5, seed=seed), random(3, 2, 2, 5, seed=seed + 5))).requires_grad_()
        policy = Likelihoods(parts[0], tokens=TokenTerms(parts[0], own, moved=parts[1]))
        config = replace(CONFIG, kl=0.7)
        group_relative(policy, Likelihoods(parts[0], tokens=TokenTerms(parts[0], own)), Signal(advantages=advantages), config)[0].backward()
        assert parts.grad is not None
        gradients.append(parts.grad)
    assert torch.equal(*gradients) and gradients[0][0].any() and gradients[0][1].any()


@pytest.mark.parametrize("behaviour", [False, True])
def test_a_modality_without_tokens_adds_nothing(behaviour: bool) -> None:
    own = counted(1)
    own[:, :, 0] = False
    logprob, advantages = random(3, 2, 2, 5, seed=0) * own, random(3, 3, 2, 5, seed=1)
    tokens = TokenTerms(logprob, own, logprob if behaviour else None)
    found: list[Any] = []
    for text_weight in (0.5, 5.0):
        config = replace(CONFIG, text_weight=text_weight)
        found.append(group_relative(Likelihoods(logprob, tokens=tokens), None, Signal(advantages=advantages), config))
    (loss, metrics), (other, _) = found
    assert torch.equal(loss, other) and loss.item() != 0 and not any("text" in name for name in metrics)
