"""Texts and images in turn: every part sees all that came before it, an image opens where a text says so, and the end is the end."""

import numpy as np
import pytest
import torch

from pararl.options import Sampling
from pararl.types import Output, Prompt
from policies import Policy
from tests.policies import showo_by_hand as hand
from tests.policies.by_hand import picture, prefix, prompts
from tests.policies.conftest import MakeShowo
from tests.policies.test_showo_sampling import STEPS, leaning, looks_same
from tests.wording import telling

PLAIN = Sampling(steps=STEPS)


def by_hand(policy: Policy, prompt: Prompt, seed: int, sampling: Sampling, images: int) -> list[Output]:
    """The same parts from forwards over everything."""
    generator, n = torch.Generator().manual_seed(seed), policy.settings.text_tokens
    fronts = [prefix(policy, prompt), prefix(policy, prompt, with_text=False)]
    history: list[int] = []
    parts: list[Output] = []
    while True:
        noise = torch.rand(n + 2 * sampling.steps * 6, generator=generator)
        tokens, _ = hand.write(policy, [*fronts[0], *history], noise[:n].tolist(), sampling.temperature)
        words = hand.said(tokens)
        if words:
            parts.append(Output(text=" ".join(policy.layout.text.tokenizer.convert_ids_to_tokens(words))))
        history += words
        if tokens[-1] != hand.SOI or not images:
            return parts
        images -= 1
        behind = [[*front, *history] for front in fronts]
        painted = hand.paint(policy, behind, [sampling.guidance], noise[n:].view(2, sampling.steps, 6), sampling)
        codes = torch.tensor([painted.tokens]) - len(policy.layout.text.tokenizer)
        pixels = (policy.layout.images.module.decode_code(codes, (2, 3))[0].clamp(-1, 1) + 1) * 127.5
        parts.append(Output(image=pixels.round().byte().movedim(0, -1).numpy()))
        history += [hand.SOI, *painted.tokens, hand.EOI]


def kinds_of(parts: list[Output]) -> str:
    """t for a text, i for an image."""
    assert all((p.text is None) != (p.image is None) for p in parts), "each part is one or the other"
    return "".join("t" if p.text is not None else "i" for p in parts)


@torch.no_grad()
@pytest.mark.parametrize("guidance", [0.0, 1.5])
@pytest.mark.parametrize("shown", [False, True])
def test_parts_are_those_of_forwards_over_all_that_came_before(make_showo: MakeShowo, guidance: float, shown: bool) -> None:
    own = leaning(make_showo, hand.SOI, 4.0)
    sampling = Sampling(steps=STEPS, guidance=guidance)
    found = []
    for i, prompt in enumerate(prompts("interleaved+image" if shown else "interleaved")):
        ours = own.mixed(prompt, 40 + i, sampling, images=3)
        expected = by_hand(own, prompt, 40 + i, sampling, 3)
        assert kinds_of(ours) == kinds_of(expected)
        assert all(looks_same(a, b) for a, b in zip(ours, expected, strict=True))
        found.append(kinds_of(ours))
    assert any(x.count("i") == 3 for x in found) and len(set(found)) > 1 and any("ti" in x for x in found)
    assert any(x.count("i") < 3 for x in found), "some end before they must"


@pytest.mark.parametrize("guidance", [0.0, 1.5])
def test_the_first_text_and_image_are_those_of_a_rollout_of_the_same_seed(make_showo: MakeShowo, guidance: float) -> None:
    """There the image comes whatever the text says; here where the text opens one."""
    showo = leaning(make_showo, hand.SOI, 3.0)
    sampling, opened = Sampling(steps=STEPS, guidance=guidance), 0
    batch = prompts("interleaved", 20)
    for seed, (prompt, rollout) in enumerate(zip(batch, showo.generate(batch, range(20), sampling), strict=True)):
        parts = showo.mixed(prompt, seed, sampling, images=1)
        text = rollout.segment("text")
        assert text is not None
        opens = hand.ended(text.tokens.tolist())[-1] == hand.SOI
        first = [Output(text=rollout.output.text)] if rollout.output.text else []
        first += [Output(image=rollout.output.image)] if opens else []
        assert len(parts) >= len(first) and all(looks_same(a, b) for a, b in zip(parts, first, strict=False))
        assert opens == any(p.image is not None for p in parts)
        opened += opens
    assert 3 <= opened <= 17


@pytest.mark.parametrize("images", [0, 1, 3])
def test_a_policy_that_always_opens_an_image_stops_at_as_many_as_asked_for(make_showo: MakeShowo, images: int) -> None:
    parts = leaning(make_showo, hand.SOI).mixed(prompts("interleaved", 1)[0], 0, PLAIN, images)
    assert kinds_of(parts) == "i" * images
    assert all(p.image is not None and p.image.shape == (4, 6, 3) and p.image.dtype == np.uint8 for p in parts)


def test_an_end_token_ends_all(make_showo: MakeShowo) -> None:
    assert leaning(make_showo, hand.EOS).mixed(prompts("interleaved", 1)[0], 0, PLAIN) == []


def test_a_text_that_fills_its_window_ends_all(make_showo: MakeShowo) -> None:
    parts = leaning(make_showo, hand.WORDS[2]).mixed(prompts("interleaved", 1)[0], 0, PLAIN)
    assert parts == [Output(text=" ".join(["green"] * 8))]


def test_parts_follow_the_seed(make_showo: MakeShowo) -> None:
    own = leaning(make_showo, hand.SOI, 4.0)
    prompt = Prompt("x", "interleaved", "red circle", image=picture(0))
    first, again, other = (own.mixed(prompt, seed, PLAIN) for seed in (1, 1, 2))
    assert len(first) == len(again) > 1 and all(looks_same(a, b) for a, b in zip(first, again, strict=True))
    assert len(other) != len(first) or not all(looks_same(a, b) for a, b in zip(first, other, strict=True))


def test_what_cannot_be_asked_for_is_an_error(showo: Policy) -> None:
    with pytest.raises(ValueError, match=telling("x", "[8, 6, 3]", "[4, 6, 3]")):
        showo.mixed(Prompt("x", "interleaved", "red", image=np.zeros((8, 6, 3), np.uint8)))
    with pytest.raises(ValueError, match=telling("x", 9, 8)):
        showo.mixed(Prompt("x", "interleaved", "red " * 9))


def test_a_task_that_is_not_mixed_is_an_error(showo: Policy) -> None:
    with pytest.raises(ValueError, match=telling("x", "interleaved", "t2i")):
        showo.mixed(Prompt("x", "t2i", "red"))
    with pytest.raises(ValueError, match=telling("images", -1)):
        showo.mixed(prompts("interleaved", 1)[0], images=-1)


def test_guidance_of_the_texts_is_an_error(showo: Policy) -> None:
    with pytest.raises(ValueError, match="text_guidance"):
        showo.mixed(Prompt("x", "interleaved", "red"), sampling=Sampling(steps=STEPS, text_guidance=1.0))


def test_without_settings_it_samples_as_the_checkpoint_is_best_sampled(make_showo: MakeShowo) -> None:
    own = leaning(make_showo, hand.SOI, steps=3, choice_temperature=2.0)
    prompt = prompts("interleaved", 1)[0]
    ours, best, other = own.mixed(prompt, 5), own.mixed(prompt, 5, Sampling(steps=3, choice_temperature=2.0)), own.mixed(prompt, 5, PLAIN)
    assert kinds_of(ours) == "iiii" and all(looks_same(a, b) for a, b in zip(ours, best, strict=True))
    assert not all(looks_same(a, b) for a, b in zip(ours, other, strict=True))
