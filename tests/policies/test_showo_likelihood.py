"""Likelihoods of Show-o: a text is exact, an image has those of its masks; steps have the probabilities that were sampled."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from pararl.options import Drawing, Sampling
from pararl.types import MODALITIES, Modality, Rollout
from policies import Policy
from policies.heads.causal import deal
from tests.policies import showo_by_hand as hand
from tests.policies.by_hand import GUIDED, KINDS, SPOKEN, Kind, prompts
from tests.policies.conftest import MakeShowo

STEPS = 4


def rollouts(policy: Policy, kind: Kind, group: int = 1, recorded: int = 2, guidance: float = 0.0) -> list[Rollout]:
    """Rollouts of four prompts, ``group`` of each."""
    asked = [prompt for prompt in prompts(kind, 4) for _ in range(group)]
    return policy.generate(asked, range(7, 7 + len(asked)), Sampling(steps=STEPS, recorded=recorded, guidance=guidance))


@torch.no_grad()
def image_logprobs(policy: Policy, rollout: Rollout, visible: np.ndarray, rows: Sequence[int] = hand.CODES) -> np.ndarray:
    """Log-probability of every image token of a rollout where the ``visible`` ones are shown, among ``rows``: one unpadded forward."""
    segment, front = rollout.segment("image"), hand.front(policy, rollout)
    assert segment is not None
    shown = np.where(visible, segment.tokens, hand.MASK).tolist()
    full = hand.logits(policy, [*front, hand.SOI, *shown, hand.EOI])[len(front) + 1 :][: len(shown), list(rows)].log_softmax(-1)
    return full[range(len(shown)), [list(rows).index(token) for token in segment.tokens.tolist()]].numpy()


@torch.no_grad()
def text_logprobs(policy: Policy, rollout: Rollout) -> np.ndarray:
    """Log-probability of every token of a rollout's text up to its end token, 0 behind it."""
    segment = rollout.segment("text")
    assert segment is not None
    told = hand.text_logprobs(policy, hand.front(policy, rollout.prompt), segment.tokens.tolist())
    return np.array(told + [0.0] * (len(segment.tokens) - len(told)))


def counts(rollout: Rollout, modality: Modality) -> np.ndarray:
    """Which tokens the policy is answerable for: all of an image, of a text those up to and with its end."""
    segment = rollout.segment(modality)
    assert segment is not None
    n = len(segment.tokens)
    return np.arange(n) < (n if modality == "image" else len(hand.ended(segment.tokens.tolist())))


# ---- steps


@pytest.mark.parametrize("kind", KINDS)
def test_step_probabilities_equal_one_full_forward_per_step(showo: Policy, kind: Kind) -> None:
    """Of an image behind its whole text, with what was committed before the step; of a text token, behind those before it."""
    batch = rollouts(showo, kind, recorded=4)
    steps = [[0, 2], [1, 3], [3, 0], [2, 1]]  # each rollout its own, in any order
    found = showo.step_tokens(batch, steps)
    assert found.keys() == {s.modality for s in batch[0].segments}
    for b, rollout in enumerate(batch):
        for j, step in enumerate(steps[b]):
            for s in rollout.segments:
                ours, committed = found[s.modality], s.commit_step == step
                expected = text_logprobs(showo, rollout) if s.modality == "text" else image_logprobs(showo, rollout, s.commit_step < step)
                assert np.array_equal(ours.committed[b, j].numpy(), committed)
                assert np.allclose(ours.logprob[b, j].detach().numpy(), np.where(committed, expected, 0), atol=2e-5)
                assert np.array_equal(ours.behaviour[b, j].numpy(), np.where(committed, s.logprob, 0))


def test_a_text_alone_takes_one_forward_whatever_the_steps(showo: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = rollouts(showo, "i2t")
    given: list[int] = []
    states = showo.model.states

    def counted(ids: Tensor, *others: Tensor) -> Tensor:
        given.append(len(ids))
        return states(ids, *others)

    monkeypatch.setattr(showo.model, "states", counted)
    showo.step_tokens(batch, [range(STEPS)] * 4)
    assert given == [4]


def test_the_ratio_moves_when_the_weights_move(make_showo: MakeShowo) -> None:
    for kind in ("i2t", "t2i", "interleaved"):
        changed = make_showo()
        batch = rollouts(changed, kind)
        with torch.no_grad():
            changed.model.showo.model.layers[0].mlp.fc1.weight.mul_(1.5)
        for tokens in changed.step_tokens(batch, [range(STEPS)] * len(batch)).values():
            assert float((tokens.logprob - tokens.behaviour)[tokens.committed].detach().abs().mean()) > 1e-2


# ---- where the tokens of a text count


@pytest.mark.parametrize("length", range(1, 12))
@pytest.mark.parametrize("recorded", [(), (2,), (0, 3), (1, 2, 6), (0, 1, 2, 3, 4, 5, 6, 7)])
def test_tokens_are_dealt_in_order_and_evenly_over_the_recorded_steps(length: int, recorded: tuple[int, ...]) -> None:
    steps = list(recorded) or list(range(8))
    counted = torch.arange(11)[None] < length
    (stamps,) = deal(counted, [recorded], 8).tolist()
    assert stamps[length:] == [-1] * (11 - length)
    dealt = stamps[:length]
    assert set(dealt) <= set(steps) and dealt == sorted(dealt)
    shares = [dealt.count(step) for step in steps]
    assert sum(shares) == length and max(shares) - min(shares) <= 1


def test_every_row_has_steps_and_a_length_of_its_own() -> None:
    counted = torch.tensor([[True] * 4, [True, False, False, False], [True, True, True, False]])
    assert deal(counted, [(0, 5), (2, 3), (1, 4)], 6).tolist() == [[0, 0, 5, 5], [2, -1, -1, -1], [1, 1, 4, -1]]


@pytest.mark.parametrize("kind", SPOKEN)
@pytest.mark.parametrize("recorded", [1, 2, 3])
def test_all_of_a_text_is_on_the_recorded_steps_of_its_rollout(showo: Policy, kind: Kind, recorded: int) -> None:
    batch = rollouts(showo, kind, 2, recorded)
    assert len({r.recorded for r in batch}) > 1
    for rollout in batch:
        segment = rollout.segment("text")
        assert segment is not None
        meant = counts(rollout, "text")
        assert set(segment.commit_step[meant].tolist()) <= set(rollout.recorded) and (segment.commit_step[~meant] == -1).all()


def test_where_none_is_recorded_a_text_is_spread_over_all_steps(showo: Policy) -> None:
    long = [s for r in rollouts(showo, "interleaved", 4, recorded=0) if (s := r.segment("text")) and (s.commit_step >= 0).all()]
    assert long and all(np.bincount(s.commit_step, minlength=STEPS).tolist() == [2] * STEPS for s in long)


def test_fill_is_what_stands_behind_the_first_end_of_a_text(showo: Policy) -> None:
    (segment,) = rollouts(showo, "i2t")[0].segments
    word = hand.WORDS[0]
    for tokens in ([word, hand.SOI, hand.EOS, word], [hand.EOS, word, word, word]):
        ours = showo.fill(replace(segment, tokens=np.array(tokens)))
        assert ours.tolist() == [i >= len(hand.ended(tokens)) for i in range(4)]
        assert hand.counted(showo, torch.tensor([tokens]))[0].tolist() == [not fill for fill in ours]


# ---- at draws


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("drawing", [Drawing(), Drawing(text_masks="block", image_rows="all", image_ratio=0.0, text_ratio=0.5)])
def test_a_text_has_the_mean_of_its_tokens_and_an_image_the_elbo_of_its_masks(showo: Policy, kind: Kind, drawing: Drawing) -> None:
    batch = rollouts(showo, kind, 2)
    draws = showo.draws(batch, 3, torch.Generator().manual_seed(1), drawing)
    found, tokens = showo.log_likelihood(batch, draws), [showo.draw_tokens(batch, draw) for draw in draws]
    assert found.shape == (len(batch), 2) and found.dtype == torch.float32
    assert "text" not in draws.masks or not draws.masks["text"].any(), "no text is hidden"
    lengths = set()
    for b, rollout in enumerate(batch):
        expected = np.zeros(2)
        if rollout.segment("text") is not None:
            logp, meant = text_logprobs(showo, rollout), counts(rollout, "text")
            expected[MODALITIES.index("text")] = logp[meant].mean()
            assert all(np.allclose(draw["text"].logprob[b].numpy(), logp, rtol=1e-5, atol=2e-5) for draw in tokens), (
                "every draw has all of it"
            )
            lengths.add(int(meant.sum()))
        if rollout.segment("image") is not None:
            values = []
            for d in range(3):
                hidden = draws.masks["image"][d, b].numpy()
                assert np.array_equal(hidden, draws.counted["image"][d, b].numpy())
                logp = image_logprobs(showo, rollout, ~hidden, hand.CODES if drawing.image_rows == "codes" else range(24))
                values.append(logp[hidden].mean())  # a draw weighs n over how many it hides
                assert np.allclose(tokens[d]["image"].logprob[b].numpy(), np.where(hidden, logp, 0), rtol=1e-5, atol=2e-5)
            expected[MODALITIES.index("image")] = np.mean(values)
        assert np.allclose(found[b].numpy(), expected, rtol=1e-5, atol=2e-5)
    assert kind not in SPOKEN or len(lengths) > 1


@pytest.mark.parametrize("kind", GUIDED)
def test_masks_of_images_are_those_of_the_other_families(showo: Policy, kind: Kind) -> None:
    """One ratio in each share of the range, as many tokens as it says, the same for all rollouts of a prompt."""
    batch = rollouts(showo, kind, 3)
    draws = showo.draws(batch, 5, torch.Generator().manual_seed(0), Drawing(image_ratio=0.5))
    hidden = draws.masks["image"]
    assert len(draws) == 5 and torch.equal(hidden.sum(-1), (6 / draws.weights["image"]).round().long())
    assert hidden.sum(-1).min() >= 3 and (hidden.sum(-1).diff(dim=0) >= 0).all()
    assert torch.equal(hidden[:, ::3], hidden[:, 1::3]) and torch.equal(hidden[:, ::3], hidden[:, 2::3])
    assert not torch.equal(hidden[:, 0], hidden[:, 3])
    picked = draws.rows(torch.tensor([4, 0]))
    assert torch.equal(picked.masks["image"], hidden[:, [4, 0]])
    assert set(draws.masks) == set(draws.counted) == set(draws.weights) == {s.modality for s in batch[0].segments}


@pytest.mark.parametrize("kind", ["i2t", "interleaved+image"])
def test_draw_by_draw_accumulation_gives_the_gradient_of_the_single_pass(make_showo: MakeShowo, kind: Kind) -> None:
    own = make_showo()
    batch = rollouts(own, kind)
    draws = own.draws(batch, 4, torch.Generator().manual_seed(0))
    weights = torch.linspace(-1, 1, 8).view(4, 2)
    grads = []
    for parts in ([draws], list(draws)):
        own.model.zero_grad(set_to_none=True)
        for part in parts:
            (own.log_likelihood(batch, part) * weights * len(part) / 4).sum().backward()
        grads.append({n: p.grad.clone() for n, p in own.model.named_parameters() if p.grad is not None})
    whole, apart = grads
    assert whole.keys() == apart.keys() == {n for n, _ in own.model.named_parameters()}, "a gradient reaches every parameter"
    for name, grad in whole.items():
        assert float(grad.abs().max()) > 0 and torch.allclose(grad, apart[name], rtol=1e-4, atol=1e-5), name


# ---- canary


@torch.no_grad()
def test_the_canary_is_the_logits_of_a_blank_image_and_moves_with_the_weights(make_showo: MakeShowo) -> None:
    own = make_showo()
    first, s = own.canary(), own.settings.specials
    assert first.dtype == torch.float32 and torch.equal(first, own.canary())
    expected = hand.image_logits(own, [s.t2i, s.bos, s.eos], [hand.MASK] * 6).float()
    assert torch.allclose(first[0], expected, rtol=0, atol=1e-5)
    own.model.showo.model.layers[1].mlp.fc2.weight[0, 0] += 0.1
    assert float((own.canary() - first).abs().max()) > 0


@torch.no_grad()
def test_a_policy_that_answers_alone_has_a_canary_of_text(make_showo: MakeShowo) -> None:
    own = make_showo(tasks=("i2t",))
    canary = own.canary()
    assert canary.shape == (1, 15) and torch.isfinite(canary).all()
