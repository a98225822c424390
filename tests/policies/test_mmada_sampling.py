"""Rollouts of the mmada policy: what is sampled, when, and from what it may depend on."""

import numpy as np
import pytest
import torch

from pararl.types import Prompt, Rollout, Segment, Task
from policies.base import Sampling
from policies.mmada import MMadaPolicy, recorded_steps
from tests.policies.conftest import MakePolicy

STEPS = 4
TEXTS = ("red circle", "blue square above green circle", "", "green", "red red red blue")


def prompts(task: Task, count: int = len(TEXTS)) -> list[Prompt]:
    return [Prompt(f"{task}-{i}", task, TEXTS[i % len(TEXTS)]) for i in range(count)]


def vocabulary(policy: MMadaPolicy) -> list[str]:
    """The text tokens in the order of their ids."""
    table = policy.tokenizer.get_vocab()
    return sorted(table, key=lambda word: table[word])


def same(a: Rollout, b: Rollout) -> bool:
    """Whether two rollouts hold the same tokens, committed at the same steps, through the same guesses."""
    pairs = list(zip(a.segments, b.segments, strict=True))
    names = ("tokens", "commit_step", "guesses")
    return all(np.array_equal(getattr(x, name), getattr(y, name)) for x, y in pairs for name in names)


def test_greedy_rollouts_do_not_depend_on_the_seed(policy: MMadaPolicy) -> None:
    greedy = Sampling(steps=STEPS, recorded=0, temperature=0.0, choice_temperature=0.0)
    a, b = policy.generate([prompts("interleaved")[0]] * 2, [1, 2], greedy)
    assert same(a, b)
    a, b = policy.generate([prompts("interleaved")[0]] * 2, [1, 2], Sampling(steps=STEPS))
    assert not same(a, b)


# ---- what may be sampled


def test_each_modality_yields_only_its_own_rows_and_never_a_mask(policy: MMadaPolicy) -> None:
    """At a temperature that flattens everything, over hundreds of samples, guesses included."""
    rollouts = policy.generate(prompts("interleaved", 300), range(300), Sampling(steps=STEPS, recorded=STEPS, temperature=100.0))
    seen: dict[str, set[int]] = {"text": set(), "image": set()}
    for rollout in rollouts:
        for segment in rollout.segments:
            seen[segment.modality] |= set(segment.tokens.tolist()) | set(segment.guesses.flatten().tolist())
    first = len(policy.tokenizer)
    assert seen["image"] == set(range(first, first + policy.images.codebook_size)), "every code, nothing else"
    words = {vocabulary(policy).index(w) for w in ("red", "blue", "green", "circle", "square", "above")}
    assert seen["text"] == words | {policy.settings.specials.eos}, "every word and the end, nothing else"
    assert policy.settings.specials.mask not in seen["text"] | seen["image"]


# ---- when it is committed


@pytest.mark.parametrize(("steps", "counts"), [(1, [6]), (5, [1, 1, 1, 2, 1]), (8, [1, 1, 1, 1, 1, 0, 0, 1])])
def test_images_are_committed_once_by_the_cosine_plan(policy: MMadaPolicy, steps: int, counts: list[int]) -> None:
    for rollout in policy.generate(prompts("t2i"), range(5), Sampling(steps=steps)):
        (segment,) = rollout.segments
        assert np.bincount(segment.commit_step, minlength=steps).tolist() == counts
        assert segment.commit_step.min() >= 0 and segment.commit_step.max() == steps - 1 and rollout.steps == steps


@pytest.mark.parametrize(("steps", "per_step"), [(2, [4, 4]), (4, [2, 2, 2, 2]), (6, [2, 1, 1, 2, 1, 1]), (8, [1] * 8)])
def test_text_is_committed_once_block_behind_block(policy: MMadaPolicy, steps: int, per_step: list[int]) -> None:
    for rollout in policy.generate(prompts("interleaved"), range(5), Sampling(steps=steps)):
        segment = rollout.segment("text")
        assert segment is not None and np.bincount(segment.commit_step, minlength=steps).tolist() == per_step
        assert segment.commit_step[:4].max() < segment.commit_step[4:].min(), "the second block starts when the first is full"


def test_steps_that_do_not_fit_the_text_blocks_are_an_error(policy: MMadaPolicy) -> None:
    with pytest.raises(ValueError, match="divisible by 2, got 3"):
        policy.generate(prompts("interleaved"), range(5), Sampling(steps=3))


@pytest.mark.parametrize("task", ["t2i", "interleaved"])
def test_guesses_keep_what_was_committed_and_end_as_the_output(policy: MMadaPolicy, task: Task) -> None:
    changed = 0
    for rollout in policy.generate(prompts(task), range(5), Sampling(steps=STEPS, recorded=STEPS)):
        assert rollout.recorded == tuple(range(STEPS))
        for segment in rollout.segments:
            assert segment.guesses.shape == (STEPS, len(segment.tokens))
            assert np.array_equal(segment.guesses[-1], segment.tokens)
            for step in range(STEPS):
                done = segment.commit_step <= step
                assert np.array_equal(segment.guesses[step][done], segment.tokens[done])
                changed += int((segment.guesses[step] != segment.tokens).sum())
        last = rollout.guesses[-1]
        assert last is not None and last.text == rollout.output.text
        assert np.array_equal(shown(last.image), shown(rollout.output.image))
    assert changed > 0, "early guesses differ from the output"


def test_guesses_need_not_be_decoded(policy: MMadaPolicy) -> None:
    with_images = policy.generate(prompts("t2i"), range(5), Sampling(steps=STEPS, recorded=2))
    without = policy.generate(prompts("t2i"), range(5), Sampling(steps=STEPS, recorded=2, guesses=0))
    for a, b in zip(with_images, without, strict=True):
        assert same(a, b) and a.recorded == b.recorded and len(a.guesses) == 2 and b.guesses == ()


def shown(image: np.ndarray | None) -> np.ndarray:
    assert image is not None
    return image


def test_recorded_steps_are_a_subset_that_a_group_shares(policy: MMadaPolicy) -> None:
    sampling = Sampling(steps=8, recorded=3)
    subsets = [recorded_steps(p, sampling)[0] for p in prompts("t2i", 40)]
    assert all(len(set(s)) == 3 and list(s) == sorted(s) and 0 <= s[0] and s[-1] < 8 for s in subsets)
    assert len(set(subsets)) > 10 and {step for s in subsets for step in s} == set(range(8))
    groups = [p for p in prompts("t2i") for _ in range(3)]
    kept, complete = (policy.generate(groups, range(15), s) for s in (sampling, Sampling(steps=8, recorded=8)))
    for i, (some, every) in enumerate(zip(kept, complete, strict=True)):
        assert some.recorded == subsets[i // 3]
        assert np.array_equal(some.segments[0].guesses, every.segments[0].guesses[list(some.recorded)])
        for guess, step in zip(some.guesses, some.recorded, strict=True):
            whole = every.guesses[step]
            assert guess is not None and whole is not None and np.array_equal(shown(guess.image), shown(whole.image))
    assert not all(np.array_equal(r.segments[0].guesses, c.segments[0].guesses[:3]) for r, c in zip(kept, complete, strict=True))


# ---- outputs as a person sees them


def test_outputs_decode_the_tokens(policy: MMadaPolicy) -> None:
    texts = []
    for rollout in policy.generate(prompts("interleaved", 20), range(20), Sampling(steps=STEPS, recorded=1)):
        text, image = rollout.segment("text"), rollout.segment("image")
        assert text is not None and image is not None
        words = [vocabulary(policy)[t] for t in text.tokens.tolist()]
        texts.append(" ".join(words[: words.index("<|endoftext|>")] if "<|endoftext|>" in words else words))
        assert rollout.output.text == texts[-1]
        codes = torch.from_numpy(image.tokens)[None] - len(policy.tokenizer)
        pixels = (policy.images.decode_code(codes, (2, 3))[0].clamp(-1, 1) + 1) / 2 * 255
        assert rollout.output.image is not None and rollout.output.image.shape == (4, 6, 3) and rollout.output.image.dtype == np.uint8
        assert np.abs(rollout.output.image - pixels.movedim(0, -1).numpy()).max() <= 0.51
    assert any(len(t.split()) < 8 for t in texts) and any(t for t in texts)
    assert policy.generate(prompts("t2i", 1), [0], Sampling(steps=STEPS))[0].output.text is None


def test_images_are_encoded_from_their_pixels(policy: MMadaPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 6, 3), dtype=np.uint8)
    scaled = torch.tensor(pixels.astype(np.float32) / 255 * 2 - 1).permute(0, 3, 1, 2)
    assert torch.equal(policy.encode_images(pixels), policy.images.get_code(scaled) + len(policy.tokenizer))
    monkeypatch.setattr(policy.images, "get_code", lambda x: x)
    given = policy.encode_images(pixels) - len(policy.tokenizer)
    assert torch.allclose(given, scaled, rtol=0, atol=1e-5), "black is -1 and white is 1"


def test_sample_takes_plain_texts(policy: MMadaPolicy) -> None:
    outputs = policy.sample(["red circle", "green"], seed=3, task="interleaved", sampling=Sampling(steps=STEPS))
    pair = [Prompt("text-0", "interleaved", "red circle"), Prompt("text-1", "interleaved", "green")]
    expected = policy.generate(pair, [3, 4], Sampling(steps=STEPS))
    assert [o.text for o in outputs] == [r.output.text for r in expected]
    assert np.array_equal(shown(policy.sample("red circle")[0].image), shown(policy.sample(["red circle"])[0].image))


# ---- what a rollout may depend on


@pytest.mark.parametrize("guidance", [0.0, 2.0])
def test_a_rollout_depends_on_its_own_prompt_and_seed_only(policy: MMadaPolicy, guidance: float) -> None:
    sampling = Sampling(steps=STEPS, recorded=2, guidance=guidance)
    batch = [*prompts("t2i"), *prompts("interleaved")]
    seeds = list(range(100, 100 + len(batch)))
    together = policy.generate(batch, seeds, sampling, version=3)
    assert [(r.prompt, r.seed, r.version) for r in together] == [(p, s, 3) for p, s in zip(batch, seeds, strict=True)]
    order = np.random.default_rng(0).permutation(len(batch)).tolist()
    for i, permuted in zip(order, policy.generate([batch[j] for j in order], [seeds[j] for j in order], sampling), strict=True):
        assert same(permuted, together[i])
    for i in range(len(batch)):  # every batch mate removed
        assert same(policy.generate([batch[i]], [seeds[i]], sampling)[0], together[i])
    for i in range(len(batch)):
        (other,) = policy.generate([batch[i]], [seeds[i] + 1], sampling)
        assert not same(other, together[i]), "another seed gives another rollout"


@torch.no_grad()
def test_guidance_in_one_batch_equals_two_separate_forwards(policy: MMadaPolicy) -> None:
    batch, scale = prompts("interleaved"), 1.5
    blank = policy.canvas(batch)
    free = policy.canvas(batch, conditional=False, width=blank.spans[0].start - 1)
    ids = blank.ids.clone()
    generator = torch.Generator().manual_seed(0)
    ids[:, blank.spans[0].start + 2] = torch.randint(16, 24, (len(batch),), generator=generator)
    ids[:, blank.spans[1].start + 1] = torch.randint(10, 16, (len(batch),), generator=generator)
    unconditional = torch.cat((free.ids[:, : blank.spans[0].start], ids[:, blank.spans[0].start :]), 1)
    conditional, without = policy.model(ids, blank.attention), policy.model(unconditional, free.attention)
    (image, guided), (text, text_guided) = policy.logits(blank, free, scale)(ids, blank.spans)
    where = blank.spans[0].columns
    assert torch.allclose(image, conditional[:, where, 16:24], rtol=0, atol=1e-5)
    assert torch.allclose(guided, (1 + scale) * conditional[:, where, 16:24] - scale * without[:, where, 16:24], rtol=0, atol=1e-4)
    assert not torch.allclose(guided, image, atol=0.1)
    assert torch.equal(text, text_guided), "text is sampled without guidance"
    allowed = [policy.settings.specials.eos, *range(10, 16)]
    assert torch.allclose(text[..., allowed], conditional[:, blank.spans[1].columns][..., allowed], rtol=0, atol=1e-5)
    assert torch.isneginf(text).sum(-1).eq(16 - len(allowed)).all()


@torch.no_grad()
def test_each_modality_sees_what_the_other_committed(policy: MMadaPolicy) -> None:
    blank = policy.canvas(prompts("interleaved", 1))
    call = policy.logits(blank, None, 0.0)
    (image, _), (text, _) = call(blank.ids, blank.spans)
    for span, token in ((blank.spans[0], 17), (blank.spans[1], 11)):
        ids = blank.ids.clone()
        ids[0, span.start + 1] = token
        (image_now, _), (text_now, _) = call(ids, blank.spans)
        other, other_now = (text, text_now) if span.modality == "image" else (image, image_now)
        finite = torch.isfinite(other)
        assert (other - other_now)[finite].abs().max() > 1e-2, f"{span.modality} is seen by the other modality"


def test_the_settings_of_a_rollout_are_recorded(policy: MMadaPolicy, make_policy: MakePolicy) -> None:
    (rollout,) = policy.generate(prompts("interleaved", 1), [9], Sampling(steps=STEPS, recorded=2))
    image = rollout.segment("image")
    assert isinstance(image, Segment) and (image.tokens.dtype, image.commit_step.dtype) == (np.int64, np.int16)
    assert (image.logprob.dtype, image.guesses.dtype) == (np.float32, np.int64)
    assert len(rollout.guesses) == 2 and rollout.index == 0
    assert same(make_policy(seed=0).generate(prompts("interleaved", 1), [9], Sampling(steps=STEPS, recorded=2))[0], rollout)
    assert not same(make_policy(seed=1).generate(prompts("interleaved", 1), [9], Sampling(steps=STEPS, recorded=2))[0], rollout)


def test_only_as_many_guesses_as_asked_for_are_decoded(policy: MMadaPolicy) -> None:
    every = policy.generate(prompts("t2i"), range(5), Sampling(steps=STEPS, recorded=3))
    some = policy.generate(prompts("t2i"), range(5), Sampling(steps=STEPS, recorded=3, guesses=1))
    for a, b in zip(every, some, strict=True):
        assert same(a, b) and a.recorded == b.recorded
        decoded = [k for k, guess in enumerate(b.guesses) if guess is not None]
        assert len(b.guesses) == 3 and len(decoded) == 1
        guess, whole = b.guesses[decoded[0]], a.guesses[decoded[0]]
        assert guess is not None and whole is not None and np.array_equal(shown(guess.image), shown(whole.image))
