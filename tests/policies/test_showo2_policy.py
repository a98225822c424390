"""The Show-o2 policy: rollouts, what they are worth, and the learner on them."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import policies
import policies.heads.flow
from pararl import adapter
from pararl.arms import ARM_SPECS
from pararl.config import LearnerConfig
from pararl.learner.learner import Learner
from pararl.learner.prefer import Feedback
from pararl.loop import checkpoint
from pararl.options import Sampling
from pararl.types import Judgement, Latents, Pair, Prompt, Rollout, Task
from policies import Policy
from policies.families.showo2 import Showo2Settings
from policies.heads.flow import FlowHead, training_times
from policies.image.codec import patched, unpatched
from policies.pretraining import supervised_loss
from policies.sampling import flow
from tests.policies.subjects import build_showo2
from tests.wording import telling

HOW = Sampling(steps=4, recorded=3, flow_noise=0.7)
TASKS: tuple[Task, ...] = ("i2t", "t2i", "interleaved")


@pytest.fixture(scope="module")
def policy() -> Policy:
    return build_showo2()


def test_it_is_sampled_as_its_settings_say_where_nobody_says_otherwise() -> None:
    made = build_showo2(steps=7, choice_temperature=2.5, flow_noise=0.3)
    assert made.sampling == Sampling(steps=7, choice_temperature=2.5, flow_noise=0.3)


def latents_of(policy: Policy, tokens: torch.Tensor) -> torch.Tensor:
    """Latents of tokens, as released: not those of the patch that a token reads."""
    return unpatched(tokens, policy.model.config.patch_size, policy.grid)


def shift_of(policy: Policy) -> float:
    head = policy.heads["image"]
    assert isinstance(head, FlowHead)
    return head.shift


def prompts(task: Task, seen: Sequence[bool] = (True, False, True)) -> list[Prompt]:
    """Three prompts of different lengths, with input images where the task has them."""
    rng = np.random.default_rng(0)
    texts = ("a red circle", "two blue squares above a green cross", "is there a triangle ?")
    shows = {"i2t": (True,) * 3, "t2i": (False,) * 3, "interleaved": tuple(seen)}[task]
    pixels = [rng.integers(0, 256, (32, 32, 3), np.uint8) if shown else None for shown in shows]
    return [Prompt(f"p{i}", task, text, image=image) for i, (text, image) in enumerate(zip(texts, pixels, strict=True))]


def test_moves_have_the_density_of_a_gaussian_by_hand(policy: Policy) -> None:
    """One row, no padding: the velocity from the model's plain call, the density from torch.distributions."""
    (asked, *_) = prompts("t2i")
    (rollout,) = policy.generate([asked], [5], HOW)
    image = rollout.segment("image")
    assert isinstance(image, Latents)
    sp = policy.settings.specials
    ids = torch.tensor([[sp.bos, *policy.layout.text.encode(asked.text), sp.soi, *[sp.mask] * 17, sp.eoi]])
    blocks = (ids == sp.mask).long()
    grid = flow.time_grid(HOW.steps + 1, shift_of(policy))
    for place, step in enumerate(rollout.recorded):
        before, after = (torch.from_numpy(x)[None] for x in image.moves[place])
        t, then = grid[step : step + 1], grid[step + 1 : step + 2]
        with torch.no_grad():
            velocity = policy.model(ids, blocks, latents_of(policy, before), t)[1]
        taken = flow.step(latents_of(policy, before), velocity, t, then, HOW.flow_noise)
        if step == HOW.steps - 1:
            assert np.isnan(image.logprob[place]).all() and not image.at(rollout.recorded)[0][place].any()
            continue
        normal = torch.distributions.Normal(taken.mean, taken.deviation.expand_as(taken.mean))
        assert math.isclose(normal.log_prob(latents_of(policy, after)).mean(), image.logprob[place].mean(), abs_tol=1e-4)


@torch.no_grad()
def test_guided_moves_leave_the_velocities_without_text_and_without_image_by_their_scales(policy: Policy) -> None:
    """Three plain calls a step, one row each and no padding: what a prompt is without is not in the sequence, its latents neither. The text
    that was written stands in front of the image in all three."""
    batch = prompts("interleaved", (True, True, True))
    how = Sampling(steps=3, recorded=3, guidance=1.5, input_guidance=0.75, flow_noise=0.0)
    sp, patch, grid = policy.settings.specials, policy.model.config.patch_size, flow.time_grid(4, shift_of(policy))
    for rollout in policy.generate(batch, [1, 2, 3], how):
        image, text = rollout.segment("image"), rollout.segment("text")
        assert isinstance(image, Latents) and text is not None and rollout.prompt.image is not None
        given = latents_of(policy, policy.layout.images.encode(rollout.prompt.image[None]))
        shown, said = [sp.mask] * 17, policy.layout.text.written(text.tokens.tolist())
        fronts = [
            (policy.layout.prefix(rollout.prompt, shown), 1),
            (policy.layout.prefix(rollout.prompt, shown, "text"), 1),
            (policy.layout.prefix(rollout.prompt), 0),
        ]
        for step, (before, after) in enumerate(torch.from_numpy(image.moves)):
            found = []
            for front, inputs in fronts:
                ids = torch.tensor([[*front, *said, sp.soi, *shown, sp.eoi]])
                starts = (ids == sp.mask) & (ids.roll(1) == sp.soi)
                latents = torch.cat((given[:inputs], latents_of(policy, before[None])))
                times = torch.cat((torch.ones(inputs), grid[step : step + 1]))
                velocities = policy.model(ids, starts.cumsum(1) * (ids == sp.mask), latents, times)[1]
                found.append(patched(velocities[-1:], patch)[0])
            plain, without_text, without_image = found
            guided = plain + 1.5 * (plain - without_text) + 0.75 * (plain - without_image)
            assert torch.allclose(after, before + (grid[step + 1] - grid[step]) * guided, rtol=0, atol=1e-3)
            assert np.allclose(image.guesses[step], before + (1 - grid[step]) * guided, rtol=0, atol=1e-3)


def test_a_text_is_worth_the_mean_of_its_tokens(policy: Policy) -> None:
    (asked, *_) = prompts("i2t")
    (rollout,) = policy.generate([asked], [3], HOW)
    tokens = rollout.segments[0].tokens.tolist()
    words = policy.layout.text.written(tokens)
    said = tokens[: len(words) + 1]
    sp = policy.settings.specials
    front = [sp.bos, sp.soi, *[sp.mask] * 17, sp.eoi, *policy.layout.text.encode_template(policy.settings.dialogue, asked.text)]
    ids = torch.tensor([front + said])
    assert asked.image is not None
    latents = latents_of(policy, policy.layout.images.encode(asked.image[None]))
    with torch.no_grad():
        logits = policy.model(ids, (ids == sp.mask).long(), latents, torch.ones(1))[0][0, len(front) - 1 : -1]
        logits[:, list(policy.layout.text.vocabulary.forbidden)] = -torch.inf
        expected = logits.log_softmax(-1).gather(-1, torch.tensor(said)[:, None]).mean()
        found = policy.log_likelihood([rollout], policy.draws([rollout], 2, torch.Generator().manual_seed(0)))
    assert math.isclose(expected, found[0, 0], abs_tol=1e-5) and found[0, 1] == 0


def test_an_image_is_worth_its_flow_matching_loss_at_shared_draws(policy: Policy) -> None:
    asked = prompts("t2i")[0]
    rollouts = policy.generate([asked, asked], [3, 4], HOW)
    draws = policy.draws(rollouts, 3, torch.Generator().manual_seed(0))
    assert draws.times is not None and draws.noise is not None
    assert (draws.times[:, 0] == draws.times[:, 1]).all() and (draws.noise[:, 0] == draws.noise[:, 1]).all()
    sp = policy.settings.specials
    ids = torch.tensor([[sp.bos, *policy.layout.text.encode(asked.text), sp.soi, *[sp.mask] * 17, sp.eoi]])
    with torch.no_grad():
        found = policy.log_likelihood(rollouts, draws)
        for b, rollout in enumerate(rollouts):
            clean, total = torch.from_numpy(rollout.segments[0].tokens)[None], 0.0
            for t, noise in zip(draws.times[:, b], draws.noise[:, b], strict=True):
                seen = latents_of(policy, t * clean + (1 - t) * noise)
                velocity = policy.model(ids, (ids == sp.mask).long(), seen, t[None])[1]
                total -= (velocity - latents_of(policy, clean - noise)).square().mean().item() / 3
            assert math.isclose(found[b, 1], total, rel_tol=1e-4)


def test_draws_and_training_have_their_times_where_the_sampler_has_them(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shifted by 3: half of the draws lie below a quarter. The draws are stratified, so that shifted back they are one in every stratum."""
    generator = torch.Generator().manual_seed(0)
    (rollout, *_) = policy.generate(prompts("t2i"), [1, 2, 3], HOW)
    times = policy.draws([rollout], 50, generator).times
    assert times is not None and shift_of(policy) == 3
    back = flow.shifted(times[:, 0].double(), 1 / 3)
    assert sorted((back * 50).floor().int().tolist()) == list(range(50)) and times.max() < 1
    assert abs(training_times(4000, 3.0, generator).median().item() - 0.25) < 0.02
    asked: list[float] = []

    def seen(batch: int, shift: float, own: torch.Generator) -> torch.Tensor:
        asked.append(shift)
        return training_times(batch, shift, own)

    monkeypatch.setattr(policies.heads.flow, "training_times", seen)
    supervised_loss(policy, [rollout.prompt], [rollout.output], generator)
    assert asked == [3.0]


def test_a_seed_draws_the_normals_of_the_image_before_the_uniforms_of_the_text(policy: Policy) -> None:
    """So that the image of a seed starts where it did in every version, whether a text is written in front of it or not."""
    how = replace(HOW, steps=2, recorded=2)
    for task in TASKS[1:]:
        for seed, rollout in enumerate(policy.generate(prompts(task), range(3), how)):
            image = rollout.segment("image")
            assert isinstance(image, Latents)
            normals = torch.randn(3 * image.tokens.size, generator=torch.Generator().manual_seed(seed))
            assert np.array_equal(image.moves[0, 0].ravel(), normals[: image.tokens.size].numpy())


def test_no_draw_stands_at_the_clean_image(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ratios are of (0, 1]: the largest is the time of noise, not that at which there is no velocity to tell."""
    (rollout, *_) = policy.generate(prompts("t2i"), [1, 2, 3], HOW)
    monkeypatch.setattr(policies.heads.flow, "mask_ratios", lambda n, batch, *_: torch.ones(n, batch))
    times = policy.draws([rollout], 2, torch.Generator().manual_seed(0)).times
    assert times is not None and times.eq(0).all()


def test_rollouts_survive_a_checkpoint(policy: Policy, tmp_path: Path) -> None:
    rollouts = [checkpoint.without_outputs(r) for r in policy.generate(prompts("interleaved"), [1, 2, 3], HOW)]
    checkpoint.save_rollouts(tmp_path / "r", rollouts, [Judgement(None)] * 3, 1)
    loaded = checkpoint.load_rollouts(tmp_path / "r")
    assert loaded is not None
    for ours, theirs in zip(rollouts, loaded[0], strict=True):
        assert [type(s) for s in ours.segments] == [type(s) for s in theirs.segments]
        moved = [segment.moves for segment in (ours.segments[1], theirs.segments[1]) if isinstance(segment, Latents)]
        np.testing.assert_array_equal(moved[0], moved[1])


def test_the_steps_of_an_ode_have_no_density_and_its_flow_loss_teaches(policy: Policy) -> None:
    rollouts = policy.generate(prompts("t2i"), [1, 2, 3], replace(HOW, flow_noise=0.0))
    (found,) = policy.step_tokens(rollouts, [r.recorded for r in rollouts]).values()
    assert not found.committed.any() and not found.logprob.any()
    assert policy.log_likelihood(rollouts, policy.draws(rollouts, 1, torch.Generator().manual_seed(0)))[:, 1].isfinite().all()


@pytest.mark.parametrize("likelihood", ["steps", "elbo"])
def test_the_learner_takes_a_step_and_every_target_of_images_and_texts_has_a_gradient(
    policy: Policy, tmp_path: Path, likelihood: Any
) -> None:
    policy.save(tmp_path / "p")
    fresh = policies.load(tmp_path / "p")
    base = fresh.canary()
    assert isinstance(fresh, Policy) and torch.allclose(base, policy.canary(), atol=1e-4)
    peft = adapter.attach(fresh, 4, 8)
    targets = len(adapter.tensors(peft)) // 2
    assert targets == 7 * (3 + 2), "the language model's layers and the diffusion head's"
    learner = Learner(fresh, peft, LearnerConfig(likelihood=likelihood, reference_every=0), ARM_SPECS["online_dpo"])
    asked = prompts("interleaved")[0]
    rollouts: list[Rollout] = fresh.generate([asked, asked], [1, 2], HOW)
    metrics = learner.update(rollouts, Feedback(pairs=(Pair(0, 1, 0.5),)))
    assert math.isclose(metrics["loss/total"], math.log(2), abs_tol=1e-4)
    assert sum(bool(x.any()) for name, x in adapter.tensors(peft).items() if "lora_B" in name) == targets
    assert not torch.allclose(fresh.canary(), base, atol=1e-5)
    with adapter.base(peft):
        assert torch.equal(fresh.canary(), base)


def test_a_finished_image_stands_behind_those_that_were_shown_before_it(policy: Policy) -> None:
    """Its latents too, which the backbone takes in the order of their columns."""
    batch = prompts("interleaved", (True, True, True))
    pixels = [p.image for p in batch if p.image is not None]
    shown, first, second = (policy.layout.images.encode(image[None]) for image in pixels)
    made = policy.layout.with_image(policy.layout.with_image(policy.layout.canvas(batch[:1]), first), second)
    assert made.latents is not None
    assert torch.equal(made.latents, torch.cat([latents_of(policy, tokens) for tokens in (shown, first, second)]))


def test_texts_and_images_alternate_and_the_supervised_losses_are_finite(policy: Policy) -> None:
    asked = prompts("interleaved", (False, False, False))
    parts = policy.mixed(asked[0], seed=1, sampling=HOW, images=1)
    assert parts and sum(p.image is not None for p in parts) <= 1
    (whole,) = policy.generate(asked[:1], [1], HOW)
    assert parts[0].text == whole.output.text
    losses = supervised_loss(policy, asked, [whole.output] * 3, torch.Generator().manual_seed(0))
    assert losses.keys() == {"text", "image"} and all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize("dialogue", ["{image} no text", "a {text} b {image}", "{image} {image} {text}", "{text} {text}"])
def test_a_dialogue_without_one_place_for_the_text_behind_that_of_the_image_is_an_error(dialogue: str) -> None:
    with pytest.raises(ValueError, match=telling("{text}", "{image}", dialogue)):
        Showo2Settings(dialogue=dialogue)
