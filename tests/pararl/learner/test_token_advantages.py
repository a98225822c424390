"""The loss of pararl_grpo: a mean per modality, and credit for single cells and words."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pararl.config import Arm
from pararl.learner.credit import image_credit, text_credit
from pararl.learner.learner import by_task
from pararl.learner.prefer import Feedback
from pararl.learner.tables import longest
from pararl.types import MODALITIES
from tests.pararl.learner.learning import ALL_TASKS, CONFIG, make, sample, table_of, teach
from tests.wording import telling


def test_grpo_gives_every_modality_its_own_mean_and_weight(tiny_policy_dir: Path) -> None:
    """By hand, in numpy, from the definition: a mean over the tokens of a modality at a step, whatever the other modality has there."""
    arm: Arm = "pararl_grpo"
    gradients, found = {}, {}
    for weights in ((1.0, 0.0), (0.0, 1.0), (2.0, 0.5)):
        config = replace(CONFIG, text_weight=weights[0], image_weight=weights[1], clip_norm=1e9)
        learner = make(tiny_policy_dir, arm, config)
        rollouts = sample(learner, [("interleaved", False)])
        feedback = teach(rollouts, learner.arm)
        # An update of random size first, so that the ratios are not all 1.
        with torch.no_grad():
            generator = torch.Generator().manual_seed(3)
            for parameter in learner.parameters:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.03)
            table = table_of(learner.policy, rollouts)
        metrics = learner.update(rollouts, feedback)
        gradients[weights] = torch.cat([p.grad.flatten() for p in learner.parameters if p.grad is not None])
        assert feedback.advantages is not None
        used = [i for i in range(len(rollouts)) if feedback.advantages[i].any()]
        expected = {}
        for m, modality in enumerate(MODALITIES):
            gains = []
            for i in used:
                steps = [s for s in range(len(rollouts[i].recorded)) if table.committed[i, s, m].any()]
                gains += [0.0] if steps else []
                for s in steps:
                    here = table.committed[i, s, m]
                    ratio = (table.logprob[i, s, m] - table.behaviour[i, s, m])[here].exp().double().numpy()
                    advantage = float(feedback.advantages[i, s])
                    gains[-1] += np.minimum(ratio * advantage, ratio.clip(0.8, 1.2) * advantage).mean() / len(steps)
            expected[modality] = -float(np.mean(gains))
        assert metrics["loss/total"] == pytest.approx(weights[0] * expected["text"] + weights[1] * expected["image"], abs=1e-5)
        found[weights] = metrics
        assert {f"loss/{name}_{m}" for name in ("ratio", "clipped") for m in MODALITIES} <= metrics.keys()
    both = 2 * gradients[(1.0, 0.0)] + 0.5 * gradients[(0.0, 1.0)]
    assert (both - gradients[(2.0, 0.5)]).norm() < 1e-4 * both.norm() > 0


def test_credit_moves_the_tokens_of_its_cells_alone(tiny_policy_dir: Path) -> None:
    """Without any other advantage, an update with credit at one quarter of the image is one on the tokens of that quarter."""
    learner = make(tiny_policy_dir, "pararl_grpo", replace(CONFIG, clip_norm=1e9))
    rollouts = sample(learner)
    credit = np.zeros((len(rollouts), 2, 2), np.float32)
    credit[3, 0, 1] = 0.7
    width = 2 + longest(rollouts)
    tokens = image_credit(learner.policy, rollouts, credit, width)
    assert tokens.shape == (len(rollouts), width) and tokens[3, :16].reshape(4, 4)[:2, 2:].eq(0.7).all() and tokens.count_nonzero() == 4
    nothing = np.zeros((len(rollouts), len(rollouts[0].recorded) + 1), np.float32)
    metrics = learner.update(rollouts, Feedback(advantages=nothing, credit=credit))
    got = torch.cat([p.grad.flatten() for p in learner.parameters if p.grad is not None])
    # The same by hand: the mean of the quarter's tokens over those committed at a step, over the steps that committed any.
    other = make(tiny_policy_dir, "pararl_grpo")
    table = table_of(other.policy, [rollouts[3]])
    image = MODALITIES.index("image")
    here = table.committed[0, :, image, :16]
    per_step = ((table.logprob - table.behaviour.detach())[0, :, image, :16].exp() * tokens[3, :16] * here).sum(-1)
    loss = -(per_step / here.sum(-1).clamp_min(1)).sum() / here.any(-1).sum()
    loss.backward()
    expected = torch.cat([p.grad.flatten() for p in other.parameters if p.grad is not None])
    assert metrics["loss/total"] == pytest.approx(loss.item(), abs=1e-5) and expected.norm() > 0
    assert (got - expected).norm() < 1e-4 * expected.norm()


def test_credit_moves_the_tokens_of_its_words_alone(tiny_policy_dir: Path) -> None:
    learner = make(tiny_policy_dir, "pararl_grpo", replace(CONFIG, clip_norm=1e9))
    rollouts = sample(learner, [("t2t", False)])
    whole = table_of(learner.policy, rollouts)
    text = MODALITIES.index("text")
    # A word is a token in this vocabulary; one that was committed at a recorded step, in a text of several.
    seen = [
        (i, w) for i, r in enumerate(rollouts) for w in range(1, len((r.output.text or "").split())) if whole.committed[i, :, text, w].any()
    ]
    chosen, word = seen[0]
    words = np.zeros(len((rollouts[chosen].output.text or "").split()), np.float32)
    words[word] = -0.7
    nothing = np.zeros((len(rollouts), len(rollouts[0].recorded) + 1), np.float32)
    metrics = learner.update(rollouts, Feedback(advantages=nothing, words={chosen: words}))
    got = torch.cat([p.grad.flatten() for p in learner.parameters if p.grad is not None])
    other = make(tiny_policy_dir, "pararl_grpo")
    table = table_of(other.policy, [rollouts[chosen]])
    here = table.committed[0, :, text]
    (step,) = here[:, word].nonzero()[0].tolist()
    ratio = (table.logprob - table.behaviour.detach())[0, step, text, word].exp()
    gain = -0.7 * ratio / here[step].sum()
    loss = -gain / here.any(-1).sum()
    loss.backward()
    expected = torch.cat([p.grad.flatten() for p in other.parameters if p.grad is not None])
    assert metrics["loss/total"] == pytest.approx(loss.item(), abs=1e-5) and expected.norm() > 0
    assert (got - expected).norm() < 1e-4 * expected.norm()
    with pytest.raises(ValueError, match=telling("credit", 1)):
        learner.update(rollouts, Feedback(advantages=nothing, words={chosen: words[:1] + 1}))


def test_credit_of_words_reaches_the_rows_of_its_rollouts(tiny_policy_dir: Path) -> None:
    learner = make(tiny_policy_dir, "pararl_grpo")
    rollouts = sample(learner, ALL_TASKS, prompts=1)
    spoken = [i for i, r in enumerate(rollouts) if r.output.text]
    words = {i: np.arange(1, len((rollouts[i].output.text or "").split()) + 1, dtype=np.float32) / (i + 1) for i in spoken[1::2]}
    used = by_task(rollouts, range(len(rollouts)))[::-1]
    width = longest(rollouts) + 3
    found = text_credit(learner.policy, [rollouts[i] for i in used], Feedback(words=words).take(used).words, width)
    assert found.shape == (len(used), width) and len(words) > 3
    for row, i in enumerate(used):
        expected = words.get(i, np.zeros(0, np.float32))  # a word is a token in this vocabulary
        assert found[row, : len(expected)].tolist() == expected.tolist() and not found[row, len(expected) :].any()
