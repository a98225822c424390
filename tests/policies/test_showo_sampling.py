"""Rollouts of Show-o: what keeps keys and values says what a forward over all says; ends, guidance, what a rollout depends on."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pararl.options import Sampling
from pararl.types import Modality, Output, Prompt, Rollout
from policies import Policy
from policies.canvas import Span
from policies.heads.base import Branch, Scene
from policies.heads.masked import MaskedHead
from policies.sampling.denoise import denoise
from policies.sampling.look import behind
from tests.policies import showo_by_hand as hand
from tests.policies.by_hand import GUIDED, KINDS, SHOWN, SPOKEN, Kind, picture, prompts, task_of, text_length
from tests.policies.conftest import MakeShowo
from tests.wording import telling

STEPS = 4
COUNT = 12
"""Prompts a kind in the comparisons with the samplers of one row: of different lengths, with texts that end in different places."""


def same(a: Rollout, b: Rollout) -> bool:
    """Whether two rollouts hold the same tokens at the same steps through the same guesses."""
    pairs = list(zip(a.segments, b.segments, strict=True))
    return all(np.array_equal(getattr(x, name), getattr(y, name)) for x, y in pairs for name in ("tokens", "commit_step", "guesses"))


def looks_same(a: Output, b: Output) -> bool:
    images = [x.image for x in (a, b) if x.image is not None]
    return a.text == b.text and len(images) != 1 and all(np.array_equal(images[0], image) for image in images)


def noise_of(seed: int, words: int, steps: int, tokens: int) -> tuple[list[float], Tensor]:
    """The uniform numbers of a rollout: one a token of text, then [2, steps, tokens] for the image."""
    every = torch.rand(words + 2 * steps * tokens, generator=torch.Generator().manual_seed(seed))
    return every[:words].tolist(), every[words:].view(2, steps, tokens)


def leaning(make_showo: MakeShowo, token: int, by: float = 50.0, **settings: Any) -> Policy:
    """A policy that nearly always says one token."""
    own = make_showo(**settings)
    with torch.no_grad():
        own.model.showo.lm_head.bias[token] += by
    return own


def with_text(scene: Scene, text: Tensor) -> Scene:
    """The scene with texts [batch, n] in place."""
    view = hand.view_of(text)
    return scene.changed(lambda canvas: scene.layout.put(canvas, {s: view for s in canvas.spans if s.modality == "text"}))


# ---- the same as without kept keys and values


@pytest.mark.parametrize("kind", SPOKEN)
@pytest.mark.parametrize("temperature", [0.0, 0.6, 1.0])
def test_text_is_that_of_a_full_forward_for_every_token(make_showo: MakeShowo, kind: Kind, temperature: float) -> None:
    showo = leaning(make_showo, hand.SOI, 0.0 if temperature else 3.0)  # arg-max would hardly ever end
    words, image = text_length(showo, task_of(kind)), 6 if kind in GUIDED else 0
    batch, seeds = prompts(kind, COUNT), range(20, 20 + COUNT)
    lengths = set()
    rollouts = showo.generate(batch, seeds, Sampling(steps=STEPS, temperature=temperature))
    for prompt, seed, rollout in zip(batch, seeds, rollouts, strict=True):
        uniforms, _ = noise_of(seed, words, STEPS, image)
        tokens, logp = hand.write(showo, hand.front(showo, prompt), uniforms, temperature)
        segment = rollout.segment("text")
        assert segment is not None and len(segment.tokens) == words
        n = len(tokens)
        assert segment.tokens.tolist() == tokens + [tokens[-1]] * (words - n), "what has ended stays ended"
        assert np.allclose(segment.logprob[:n], logp, rtol=0, atol=1e-4) and not segment.logprob[n:].any()
        assert (segment.commit_step[n:] == -1).all() and (segment.commit_step[:n] >= 0).all()
        assert rollout.output.text == " ".join(showo.layout.text.tokenizer.convert_ids_to_tokens(hand.said(tokens)))
        lengths.add(n)
    assert len(lengths) >= 3, "the texts of the batch end in different places"


@pytest.mark.parametrize("kind", GUIDED)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("scales", [(0.0, 0.0), (1.5, 0.0), (1.5, 0.7)])
def test_images_are_those_of_a_full_forward_at_every_step(
    showo: Policy, kind: Kind, temperature: float, scales: tuple[float, float]
) -> None:
    """Guided away from the prompt without its text and, at the second scale, from that without its image; the text that was written
    stands in front of the image in both."""
    sampling = Sampling(
        steps=STEPS,
        recorded=STEPS,
        temperature=temperature,
        choice_temperature=temperature,
        guidance=scales[0],
        input_guidance=scales[1],
    )
    batch, seeds, words = prompts(kind), range(30, 35), text_length(showo, task_of(kind))
    for prompt, seed, rollout in zip(batch, seeds, showo.generate(batch, seeds, sampling), strict=True):
        _, noise = noise_of(seed, words, STEPS, 6)
        blind = replace(rollout, prompt=replace(prompt, image=None))
        fronts = [hand.front(showo, rollout), hand.front(showo, rollout, with_text=False), hand.front(showo, blind)]
        expected = hand.paint(showo, fronts[: 2 + (kind in SHOWN)], scales[: 1 + (kind in SHOWN)], noise, sampling)
        segment = rollout.segment("image")
        assert segment is not None and segment.tokens.tolist() == expected.tokens
        assert segment.commit_step.tolist() == expected.when and segment.guesses.tolist() == expected.guesses
        assert np.allclose(segment.logprob, expected.logprob, rtol=0, atol=1e-4)
    if scales[0]:
        free = showo.generate(batch, seeds, replace(sampling, guidance=0.0, input_guidance=0.0))
        guided = showo.generate(batch, seeds, sampling)
        assert not all(same(a, b) for a, b in zip(free, guided, strict=True)), "guidance is felt"


@torch.no_grad()
@pytest.mark.parametrize("kind", GUIDED)
def test_an_image_behind_what_was_read_once_is_that_of_the_whole_canvas_at_every_step(showo: Policy, kind: Kind) -> None:
    """The denoising loop with forwards over all of the canvas, padding and text included, in the place of kept keys."""
    sampling, batch, scale = Sampling(steps=STEPS, guidance=1.5), prompts(kind), 1.5
    scene = showo.sampler.scene(batch, sampling)
    blank, branches = scene.blank, scene.branches
    assert len(branches) == 1
    text = torch.tensor([[9, 10, hand.SOI] + [hand.SOI] * 5, [hand.EOS] * 8, [9] * 8, [12, hand.EOS, *[10] * 6], [11] * 4 + [hand.SOI] * 4])
    scene = with_text(scene, text) if kind in SPOKEN else scene
    whole = scene.canvases
    span = blank.spans[-1]
    uniforms = torch.rand(5, 2 * STEPS * 6, generator=torch.Generator().manual_seed(0)).view(5, 2, STEPS, 6)
    head = showo.heads["image"]
    assert isinstance(head, MaskedHead)
    (ours,) = head.sample(scene, [span], list(uniforms), sampling, [tuple(range(STEPS))] * 5)

    def logits(ids: Tensor, spans: Sequence[Span]) -> list[tuple[Tensor, Tensor]]:
        free = torch.cat((whole[1].ids[:, : span.start - 1], ids[:, span.start - 1 :]), 1)
        both = zip((ids, free), whole, strict=True)
        plain, without = (showo.tokens.rows(hand.states(showo, x, canvas.attention, [span])[0], "image") for x, canvas in both)
        return [(plain, (1 + scale) * plain - scale * without)]

    plans, noise = head.plans([span], sampling), uniforms.permute(1, 2, 0, 3)
    (trace,) = denoise(logits, whole[0].ids, plans, noise, hand.MASK, [hand.CODES[0]])
    assert torch.equal(ours.tokens, trace.tokens) and torch.equal(ours.commit_step, trace.commit_step)
    assert torch.equal(ours.guesses, trace.guesses) and torch.allclose(ours.logprob, trace.logprob, rtol=0, atol=1e-5)
    # A branch that is of texts alone is not computed for an image.
    more = replace(scene, branches=(Branch(branches[0].canvas, {"image": 0.0, "text": 1.0}), *scene.branches))
    (again,) = head.sample(more, [span], list(uniforms), sampling, [tuple(range(STEPS))] * 5)
    assert torch.equal(ours.tokens, again.tokens) and torch.equal(ours.logprob, again.logprob)


@torch.no_grad()
@pytest.mark.parametrize("kind", GUIDED)
def test_guided_logits_are_those_of_two_forwards(showo: Policy, kind: Kind) -> None:
    batch, scale, generator = prompts(kind), 1.5, torch.Generator().manual_seed(0)
    blank, free = showo.layout.canvases(batch, [None, "text"], showo.layout.shown(batch))
    given: dict[Modality, Tensor] = {}
    if kind in SPOKEN:
        given["text"] = torch.randint(9, 15, (5, 8), generator=generator).masked_fill(torch.arange(8) >= torch.arange(5)[:, None], hand.SOI)
    scene = Scene(showo.layout, blank, (Branch(free, {"image": scale, "text": 0.0}),))
    scene = with_text(scene, given["text"]) if given else scene
    whole, head = scene.canvases, showo.heads["image"]
    assert isinstance(head, MaskedHead)
    image = blank.span("image")
    assert image is not None
    ids = whole[0].ids.clone()
    ids[:, image.start + 2] = torch.randint(15, 23, (5,), generator=generator)
    call = head.logits(behind(scene, showo.model, image), scene.branches)
    for _ in range(2):  # the second call finds what the first one found: nothing of it is kept
        ((plain, guided),) = call(ids, [image])
        for row, prompt in enumerate(batch):
            told = hand.said(given["text"][row].tolist()) if given else []
            shown = ids[row, image.columns].tolist()
            fronts = [[*hand.front(showo, prompt, with_text), *told] for with_text in (True, False)]
            mine, other = (hand.image_logits(showo, front, shown) for front in fronts)
            assert torch.allclose(plain[row].double(), mine, rtol=0, atol=2e-5)
            assert torch.allclose(guided[row].double(), (1 + scale) * mine - scale * other, rtol=0, atol=1e-4)
            assert bool(prompt.text) == (not torch.allclose(mine, other, atol=0.05))


# ---- ends


@pytest.mark.parametrize("kind", SPOKEN)
@pytest.mark.parametrize("token", [hand.EOS, hand.SOI])
def test_a_text_that_says_nothing_is_empty_and_counts_its_end(make_showo: MakeShowo, kind: Kind, token: int) -> None:
    own = leaning(make_showo, token)
    for rollout in own.generate(prompts(kind), range(5), Sampling(steps=STEPS)):
        segment = rollout.segment("text")
        assert segment is not None and (segment.tokens == token).all() and rollout.output.text == ""
        assert segment.commit_step.tolist() == [0] + [-1] * (len(segment.tokens) - 1)
        assert (rollout.output.image is not None) == (kind in GUIDED), "an image that was asked for comes whatever the text says"


@pytest.mark.parametrize("kind", SPOKEN)
def test_a_text_that_never_ends_fills_its_window(make_showo: MakeShowo, kind: Kind) -> None:
    own = leaning(make_showo, hand.WORDS[2])
    for rollout in own.generate(prompts(kind), range(5), Sampling(steps=STEPS)):
        segment = rollout.segment("text")
        assert segment is not None and (segment.tokens == hand.WORDS[2]).all() and segment.commit_step.min() == 0
        assert rollout.output.text == " ".join(["green"] * len(segment.tokens))


# ---- how much is computed


def reads(showo: Policy, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Rows and columns of what the backbone is given from here on."""
    given: list[tuple[int, int]] = []
    states = showo.model.states

    def watched(ids: Tensor, *others: Any) -> Tensor:
        given.append((ids.shape[0], ids.shape[1]))
        return states(ids, *others)

    monkeypatch.setattr(showo.model, "states", watched)
    return given


def test_what_stands_in_front_is_read_once_for_a_text_and_once_for_an_image(make_showo: MakeShowo, monkeypatch: pytest.MonkeyPatch) -> None:
    own = leaning(make_showo, hand.WORDS[0])
    batch = prompts("interleaved")
    front = own.layout.canvas(batch).prefix
    given = reads(own, monkeypatch)
    own.generate(batch, range(5), Sampling(steps=STEPS, guidance=1.0))
    text = [(5, front)] + [(5, 1)] * 7
    assert given == [*text, (10, front + 8), *[(10, 8)] * STEPS]


def test_a_batch_that_has_ended_is_not_computed_any_further(make_showo: MakeShowo, monkeypatch: pytest.MonkeyPatch) -> None:
    own = leaning(make_showo, hand.EOS)
    batch = prompts("i2t")
    given = reads(own, monkeypatch)
    own.generate(batch, range(5), Sampling(steps=STEPS, guidance=1.0))
    assert given == [(5, own.layout.canvas(batch).prefix)], "nor does a text pay for guidance"


# ---- what a rollout depends on


@pytest.mark.parametrize("kind", KINDS)
def test_guesses_of_a_text_are_the_text_and_the_last_guess_is_the_output(showo: Policy, kind: Kind) -> None:
    """Where the image is not finished, its guess stands beside the text that was written before it."""
    changed = 0
    for rollout in showo.generate(prompts(kind), range(5), Sampling(steps=STEPS, recorded=STEPS)):
        for segment in rollout.segments:
            assert np.array_equal(segment.guesses[-1], segment.tokens)
            if segment.modality == "text":
                assert (segment.guesses == segment.tokens).all()
            else:
                changed += int((segment.guesses != segment.tokens).sum())
        last = rollout.guesses[-1]
        assert last is not None and looks_same(last, rollout.output)
        assert all(guess is not None and guess.text == rollout.output.text for guess in rollout.guesses)
    assert changed > 0 or kind not in GUIDED


def test_guidance_of_a_text_is_an_error_that_names_its_setting(showo: Policy) -> None:
    with pytest.raises(ValueError, match=telling("rollout.text_guidance", 0)):
        showo.generate(prompts("interleaved", 1), [0], Sampling(steps=STEPS, text_guidance=1.0))


def test_the_settings_of_a_rollout_are_recorded(showo: Policy) -> None:
    (rollout,) = showo.generate(prompts("interleaved", 1), [9], Sampling(steps=STEPS, recorded=2))
    assert [s.modality for s in rollout.segments] == ["text", "image"] and rollout.steps == STEPS
    for segment in rollout.segments:
        assert (segment.tokens.dtype, segment.commit_step.dtype) == (np.int64, np.int16)
        assert (segment.logprob.dtype, segment.guesses.dtype) == (np.float32, np.int64)
        assert segment.guesses.shape == (2, len(segment.tokens))


def test_sample_takes_plain_texts_and_images(showo: Policy) -> None:
    outputs = showo.sample(["red circle", "green"], seed=3, task="i2t", images=[picture(0), picture(1)], sampling=Sampling(steps=STEPS))
    pair = [Prompt("text-0", "i2t", "red circle", image=picture(0)), Prompt("text-1", "i2t", "green", image=picture(1))]
    expected = showo.generate(pair, [3, 4], Sampling(steps=STEPS))
    assert [looks_same(o, r.output) for o, r in zip(outputs, expected, strict=True)] == [True, True]
