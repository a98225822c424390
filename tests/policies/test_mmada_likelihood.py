"""Likelihoods of the mmada policy: steps have the probabilities they were sampled with, gradients add up draw by draw."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from pararl.types import MODALITIES, Modality, Prompt, Rollout, Task
from policies import Policy
from policies.families.mmada import MMADA
from policies.records import Draws
from tests.policies.by_hand import (
    KINDS,
    SPOKEN,
    STEPS,
    Kind,
    prompts,
    rollouts,
    sequence,
    step_means,
    token_logprobs,
)
from tests.policies.conftest import MakePolicy

# ---- steps


def test_the_ratio_moves_when_the_weights_move(make_policy: MakePolicy) -> None:
    changed = make_policy()
    batch = rollouts(changed, "t2i")
    with torch.no_grad():
        changed.model.model.transformer["blocks"][0].v_proj.weight.mul_(1.5)
    tokens = changed.step_tokens(batch, [range(STEPS)] * len(batch))["image"]
    assert float((tokens.logprob - tokens.behaviour)[tokens.committed].detach().abs().mean()) > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_step_probabilities_equal_one_full_forward_per_step(policy: Policy, kind: Kind) -> None:
    batch = rollouts(policy, kind)
    steps = [[0, 2], [1, 3], [3, 0], [2, 1]]  # each rollout its own, in any order
    found = policy.step_tokens(batch, steps)
    for b, rollout in enumerate(batch):
        for j, step in enumerate(steps[b]):
            expected = token_logprobs(policy, rollout, {s.modality: s.commit_step >= step for s in rollout.segments})
            for segment in rollout.segments:
                ours = found[segment.modality]
                committed = segment.commit_step == step
                assert np.array_equal(ours.committed[b, j].numpy(), committed)
                assert np.allclose(ours.logprob[b, j].detach().numpy(), np.where(committed, expected[segment.modality], 0), atol=1e-5)


def test_step_likelihoods_are_means_over_the_committed_tokens(policy: Policy) -> None:
    idle = 0
    for kind in KINDS:
        batch = rollouts(policy, kind, steps=8)
        means = step_means(policy, batch, [range(8)] * len(batch)).detach()
        assert means.shape == (len(batch), 8, 2)
        for b, rollout in enumerate(batch):
            for m, modality in enumerate(MODALITIES):
                segment = rollout.segment(modality)
                for step in range(8):
                    own = segment.logprob[segment.commit_step == step] if segment else np.empty(0)
                    assert abs(float(means[b, step, m]) - (own.mean() if len(own) else 0.0)) < 1e-5
                    idle += segment is not None and len(own) == 0
    assert idle > 0, "steps at which a modality rests are among them"


def test_fill_is_what_stands_behind_the_first_end_of_a_text(policy: Policy) -> None:
    (rollout,) = rollouts(policy, SPOKEN[0])[:1]
    segment = next(s for s in rollout.segments if s.modality == "text")
    word, end = int(policy.layout.text.encode("red")[0]), policy.settings.specials.eos
    for tokens, expected in (
        ([word, end, end, word], [False, False, True, True]),
        ([end, end, end, end], [False, True, True, True]),
        ([word, word, word, end], [False] * 4),
        ([word] * 4, [False] * 4),
    ):
        assert policy.fill(replace(segment, tokens=np.array(tokens))).tolist() == expected
        assert not policy.fill(replace(segment, modality="image", tokens=np.array(tokens))).any(), "an image has no end"


# ---- gradients


def gradient(policy: Policy, batch: list[Rollout], parts: list[Draws]) -> tuple[Tensor, dict[str, Tensor]]:
    """Likelihood and gradients when every part is propagated back by itself, each weighted with its share of the draws."""
    model = policy.model
    model.zero_grad(set_to_none=True)
    count = sum(len(p) for p in parts)
    total = torch.zeros(len(batch), 2)
    weights = torch.linspace(-1, 1, len(batch) * 2).view(-1, 2)
    for part in parts:
        value = policy.log_likelihood(batch, part) * len(part) / count
        (value * weights).sum().backward()
        total += value.detach()
    return total, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["i2t", "interleaved+image"])
def test_draw_by_draw_accumulation_gives_the_value_and_the_gradient_of_the_single_pass(make_policy: MakePolicy, kind: Kind) -> None:
    own = make_policy()
    batch = rollouts(own, kind)
    draws = own.draws(batch, 4, torch.Generator().manual_seed(0))
    value, whole = gradient(own, batch, [draws])
    again, parts = gradient(own, batch, list(draws))
    assert [len(d) for d in draws] == [1] * 4
    assert torch.allclose(value, again, atol=1e-5)
    assert whole.keys() == parts.keys() == {n for n, _ in own.model.named_parameters()}, "a gradient reaches every parameter"
    for name, grad in whole.items():
        assert float(grad.abs().max()) > 0 and torch.allclose(grad, parts[name], rtol=1e-4, atol=1e-5), name


def test_rows_of_a_likelihood_are_independent(policy: Policy) -> None:
    """A micro-batch of some rollouts with their rows of the draws gives their part of the whole."""
    batch = rollouts(policy, "interleaved")
    draws = policy.draws(batch, 3, torch.Generator().manual_seed(0))
    index = torch.tensor([2, 0])
    with torch.no_grad():
        whole = policy.log_likelihood(batch, draws)
        part = policy.log_likelihood([batch[2], batch[0]], draws.rows(index))
    assert torch.allclose(part, whole[index], rtol=0, atol=1e-4) and not torch.allclose(part, whole[:2], atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_step_likelihoods_have_gradients(make_policy: MakePolicy, kind: Kind) -> None:
    own = make_policy()
    batch = rollouts(own, kind)
    step_means(own, batch, [[1, 2]] * len(batch)).sum().backward()
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in own.model.parameters())


def test_the_gradient_is_the_slope_of_the_likelihood(make_policy: MakePolicy) -> None:
    own = make_policy()
    batch = rollouts(own, "interleaved")
    draws = own.draws(batch, 2, torch.Generator().manual_seed(0))
    _, grads = gradient(own, batch, [draws])
    weights = torch.linspace(-1, 1, len(batch) * 2).view(-1, 2)
    name = "model.transformer.blocks.1.up_proj.weight"
    direction = grads[name] / grads[name].norm()
    values = []
    for sign in (1, -1):
        moved = copy.deepcopy(own.model)
        with torch.no_grad():
            moved.get_parameter(name).add_(sign * 1e-3 * direction)
            other = MMADA.policy(moved, own.layout.text.tokenizer, own.layout.images.module, own.settings)
            values.append(float((other.log_likelihood(batch, draws) * weights).sum()))
    slope = (values[0] - values[1]) / 2e-3
    assert abs(slope - float(grads[name].norm())) < 0.02 * slope


# ---- canary


def test_the_canary_is_fixed_and_moves_with_the_weights(make_policy: MakePolicy) -> None:
    own = make_policy()
    first = own.canary()
    assert first.dtype == torch.float32 and not first.requires_grad and torch.equal(first, own.canary())
    s = own.settings.specials
    ids = torch.tensor([[s.t2i, s.bos, s.eos, s.soi, *[s.mask] * 6, s.eoi]])
    with torch.no_grad():
        assert torch.allclose(first[0], own.model(ids)[0, 4:10, 16:24], rtol=0, atol=1e-5)
        own.model.model.transformer["blocks"][1].ff_out.weight[0, 0] += 0.1
    assert float((own.canary() - first).abs().max()) > 0


@torch.no_grad()
@pytest.mark.parametrize(("task", "kind"), [("t2t", "t2t"), ("i2t", "i2t"), ("edit", "edit"), ("interleaved", "interleaved")])
def test_a_policy_of_one_task_has_a_canary_of_that_task(make_policy: MakePolicy, task: Task, kind: Kind) -> None:
    own = make_policy(tasks=(task,))
    black = np.zeros((4, 6, 3), np.uint8) if prompts(kind, 1)[0].image is not None else None
    mask = own.settings.specials.mask
    blank: dict[Modality, list[int]] = {"text": [mask] * 6} if kind in ("t2t", "i2t") else {"image": [mask] * 6}
    if kind == "interleaved":
        blank["text"] = [mask] * 8
    ids, starts = sequence(own, Prompt("", task, "", image=black), blank)
    modality: Modality = "text" if kind in ("t2t", "i2t") else "image"
    rows = slice(0, 16) if modality == "text" else slice(16, 24)
    expected = own.model(torch.tensor([ids]))[:, starts[modality] : starts[modality] + 6, rows]
    canary = own.canary()
    assert torch.isfinite(canary).all() and torch.allclose(canary, expected, rtol=0, atol=1e-5)
