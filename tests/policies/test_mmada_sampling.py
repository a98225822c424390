"""Rollouts of the mmada policy: what is sampled, when, and from what it may depend on."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from pararl.options import Sampling
from pararl.types import MODALITIES, Output, Prompt, Rollout, Segment, Task
from policies import Policy
from policies.heads.base import Branch
from policies.sampling.sampler import recorded_steps
from policies.sequences import Sequences
from tests.policies.by_hand import (
    GUIDED,
    KINDS,
    SPOKEN,
    WORDS,
    Kind,
    code_ids,
    picture,
    prompts,
    sequence,
    task_of,
    text_length,
)
from tests.policies.conftest import MakePolicy, logits_of
from tests.wording import telling

STEPS = 4


def vocabulary(policy: Policy) -> list[str]:
    """The text tokens in the order of their ids."""
    table = policy.layout.text.tokenizer.get_vocab()
    return sorted(table, key=lambda word: table[word])


def same(a: Rollout, b: Rollout) -> bool:
    """Whether two rollouts hold the same tokens, committed at the same steps, through the same guesses."""
    pairs = list(zip(a.segments, b.segments, strict=True))
    names = ("tokens", "commit_step", "guesses")
    return all(np.array_equal(getattr(x, name), getattr(y, name)) for x, y in pairs for name in names)


def looks_same(a: Output, b: Output) -> bool:
    """Whether a person sees the same text and the same image."""
    images = [x.image for x in (a, b) if x.image is not None]
    return a.text == b.text and len(images) != 1 and all(np.array_equal(images[0], image) for image in images)


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_rollouts_do_not_depend_on_the_seed(policy: Policy, kind: Kind) -> None:
    greedy = Sampling(steps=STEPS, recorded=0, temperature=0.0, choice_temperature=0.0)
    a, b = policy.generate([prompts(kind)[0]] * 2, [1, 2], greedy)
    assert same(a, b)
    a, b = policy.generate([prompts(kind)[0]] * 2, [1, 2], Sampling(steps=STEPS))
    assert not same(a, b)


# ---- what may be sampled


@pytest.mark.parametrize("kind", KINDS)
def test_a_task_yields_its_modalities_in_their_lengths(policy: Policy, kind: Kind) -> None:
    lengths = {"image": 6 if kind in GUIDED else 0, "text": {"t2t": 6, "i2t": 6, "interleaved": 8}.get(task_of(kind), 0)}
    for rollout in policy.generate(prompts(kind), range(5), Sampling(steps=STEPS, recorded=2)):
        assert {s.modality: len(s.tokens) for s in rollout.segments} == {m: n for m, n in lengths.items() if n}
        for output in (rollout.output, *rollout.guesses):
            assert output is not None and (output.image is not None, output.text is not None) == (kind in GUIDED, kind in SPOKEN)


# ---- when it is committed


@pytest.mark.parametrize(
    ("kind", "steps", "counts"),
    [
        ("t2i", 1, [6]),
        ("t2i", 5, [1, 1, 1, 2, 1]),
        ("edit", 5, [1, 1, 1, 2, 1]),
        *[(kind, steps, counts) for kind in GUIDED for steps, counts in ((2, [2, 4]), (8, [1, 1, 1, 1, 1, 0, 0, 1]))],
    ],
)
def test_images_are_committed_once_by_the_cosine_plan(policy: Policy, kind: Kind, steps: int, counts: list[int]) -> None:
    for rollout in policy.generate(prompts(kind), range(5), Sampling(steps=steps)):
        segment = rollout.segment("image")
        assert segment is not None and np.bincount(segment.commit_step, minlength=steps).tolist() == counts
        assert segment.commit_step.min() >= 0 and segment.commit_step.max() == steps - 1 and rollout.steps == steps


@pytest.mark.parametrize("kind", SPOKEN)
@pytest.mark.parametrize(
    ("steps", "of_eight", "of_six"),
    [
        (2, [4, 4], [3, 3]),
        (4, [2, 2, 2, 2], [2, 1, 2, 1]),
        (6, [2, 1, 1, 2, 1, 1], [1] * 6),
        (8, [1] * 8, [1, 1, 1, 0, 1, 1, 1, 0]),
    ],
)
def test_text_is_committed_once_block_behind_block(policy: Policy, kind: Kind, steps: int, of_eight: list[int], of_six: list[int]) -> None:
    """Eight tokens in blocks of four beside an image, six in blocks of three where text is all."""
    expected = of_eight if kind in GUIDED else of_six
    for rollout in policy.generate(prompts(kind), range(5), Sampling(steps=steps)):
        segment = rollout.segment("text")
        assert segment is not None and np.bincount(segment.commit_step, minlength=steps).tolist() == expected
        half = len(segment.tokens) // 2
        assert segment.commit_step[:half].max() < segment.commit_step[half:].min(), "the second block starts when the first is full"


@pytest.mark.parametrize("kind", SPOKEN)
def test_steps_that_do_not_fit_the_text_blocks_are_an_error(policy: Policy, kind: Kind) -> None:
    with pytest.raises(ValueError, match=telling(2, 3)):
        policy.generate(prompts(kind), range(5), Sampling(steps=3))


@pytest.mark.parametrize("kind", KINDS)
def test_guesses_keep_what_was_committed_and_end_as_the_output(policy: Policy, kind: Kind) -> None:
    changed = 0
    for rollout in policy.generate(prompts(kind), range(5), Sampling(steps=STEPS, recorded=STEPS)):
        assert rollout.recorded == tuple(range(STEPS))
        for segment in rollout.segments:
            assert segment.guesses.shape == (STEPS, len(segment.tokens))
            assert np.array_equal(segment.guesses[-1], segment.tokens)
            for step in range(STEPS):
                done = segment.commit_step <= step
                assert np.array_equal(segment.guesses[step][done], segment.tokens[done])
                changed += int((segment.guesses[step] != segment.tokens).sum())
        last = rollout.guesses[-1]
        assert last is not None and looks_same(last, rollout.output)
    assert changed > 0, "early guesses differ from the output"


@pytest.mark.parametrize("kind", KINDS)
def test_guesses_need_not_be_decoded(policy: Policy, kind: Kind) -> None:
    decoded = policy.generate(prompts(kind), range(5), Sampling(steps=STEPS, recorded=2))
    without = policy.generate(prompts(kind), range(5), Sampling(steps=STEPS, recorded=2, guesses=0))
    for a, b in zip(decoded, without, strict=True):
        assert same(a, b) and a.recorded == b.recorded and len(a.guesses) == 2 and b.guesses == ()


@pytest.mark.parametrize("kind", KINDS)
def test_recorded_steps_are_a_subset_that_a_group_shares(policy: Policy, kind: Kind) -> None:
    sampling = Sampling(steps=8, recorded=3)
    subsets = [recorded_steps(p, sampling)[0] for p in prompts(kind, 40)]
    assert all(len(set(s)) == 3 and list(s) == sorted(s) and 0 <= s[0] and s[-1] < 8 for s in subsets)
    assert len(set(subsets)) > 10 and {step for s in subsets for step in s} == set(range(8))
    groups = [p for p in prompts(kind) for _ in range(3)]
    kept, complete = (policy.generate(groups, range(15), s) for s in (sampling, Sampling(steps=8, recorded=8)))
    for i, (some, every) in enumerate(zip(kept, complete, strict=True)):
        assert some.recorded == subsets[i // 3]
        assert np.array_equal(some.segments[0].guesses, every.segments[0].guesses[list(some.recorded)])
        for guess, step in zip(some.guesses, some.recorded, strict=True):
            whole = every.guesses[step]
            assert guess is not None and whole is not None and looks_same(guess, whole)
    assert not all(np.array_equal(r.segments[0].guesses, c.segments[0].guesses[:3]) for r, c in zip(kept, complete, strict=True))


def test_a_prompt_has_other_recorded_steps_in_another_round() -> None:
    (asked, *_) = prompts("t2i")
    subsets = [recorded_steps(asked, Sampling(steps=8, recorded=3, round=number)) for number in range(40)]
    assert len(set(subsets)) > 10 and subsets[7] == recorded_steps(asked, Sampling(steps=8, recorded=3, round=7))


# ---- outputs as a person sees them


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_decode_the_tokens(policy: Policy, kind: Kind) -> None:
    texts = []
    for rollout in policy.generate(prompts(kind, 20), range(20), Sampling(steps=STEPS, recorded=1)):
        text, image = rollout.segment("text"), rollout.segment("image")
        if text is None:
            assert kind not in SPOKEN and rollout.output.text is None
        else:
            words = [vocabulary(policy)[t] for t in text.tokens.tolist()]
            texts.append(" ".join(words[: words.index("<|endoftext|>")] if "<|endoftext|>" in words else words))
            assert rollout.output.text == texts[-1]
        if image is None:
            assert kind not in GUIDED and rollout.output.image is None
        else:
            codes = torch.from_numpy(image.tokens)[None] - len(policy.layout.text.tokenizer)
            pixels = (policy.layout.images.module.decode_code(codes, (2, 3))[0].clamp(-1, 1) + 1) / 2 * 255
            assert rollout.output.image is not None and rollout.output.image.shape == (4, 6, 3) and rollout.output.image.dtype == np.uint8
            assert np.abs(rollout.output.image - pixels.movedim(0, -1).numpy()).max() <= 0.51
    if kind in SPOKEN:
        assert any(len(x.split()) < text_length(policy, task_of(kind)) for x in texts) and any(texts)


def test_images_are_encoded_from_their_pixels(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 6, 3), dtype=np.uint8)
    scaled = torch.tensor(pixels.astype(np.float32) / 255 * 2 - 1).permute(0, 3, 1, 2)
    assert torch.equal(
        policy.layout.images.encode(pixels), policy.layout.images.module.get_code(scaled) + len(policy.layout.text.tokenizer)
    )
    monkeypatch.setattr(policy.layout.images.module, "get_code", lambda x: x)
    given = policy.layout.images.encode(pixels) - len(policy.layout.text.tokenizer)
    assert torch.allclose(given, scaled, rtol=0, atol=1e-5), "black is -1 and white is 1"


def test_sample_takes_plain_texts(policy: Policy) -> None:
    outputs = policy.sample(["red circle", "green"], seed=3, task="interleaved", sampling=Sampling(steps=STEPS))
    pair = [Prompt("text-0", "interleaved", "red circle"), Prompt("text-1", "interleaved", "green")]
    expected = policy.generate(pair, [3, 4], Sampling(steps=STEPS))
    assert [looks_same(o, r.output) for o, r in zip(outputs, expected, strict=True)] == [True, True]
    assert looks_same(policy.sample("red circle")[0], policy.sample(["red circle"])[0])


@pytest.mark.parametrize("task", ["i2t", "edit", "interleaved"])
def test_sample_takes_an_image_for_every_text(policy: Policy, task: Task) -> None:
    sampling = Sampling(steps=STEPS)
    outputs = policy.sample(["red circle", "green"], seed=3, task=task, sampling=sampling, images=[picture(0), picture(1)])
    pair = [Prompt("text-0", task, "red circle", image=picture(0)), Prompt("text-1", task, "green", image=picture(1))]
    expected = policy.generate(pair, [3, 4], sampling)
    assert [looks_same(o, r.output) for o, r in zip(outputs, expected, strict=True)] == [True, True]
    (alone,) = policy.sample("red circle", seed=3, task=task, sampling=sampling, images=[picture(0)])
    assert looks_same(alone, outputs[0])
    with pytest.raises(ValueError, match=telling(1, 2)):
        policy.sample(["red", "green"], task=task, images=[picture(0)])


# ---- what a rollout may depend on


def test_a_batch_of_mixed_tasks_gives_the_rollouts_of_one_batch_per_task(policy: Policy) -> None:
    sampling = Sampling(steps=STEPS, recorded=2, guidance=1.0)
    asked = {kind: prompts(kind) for kind in KINDS}
    apart = {kind: policy.generate(batch, range(len(batch)), sampling) for kind, batch in asked.items()}
    mixed = policy.generate([asked[kind][i] for i in range(5) for kind in KINDS], [i for i in range(5) for _ in KINDS], sampling)
    for place, rollout in enumerate(mixed):
        i, kind = place // len(KINDS), KINDS[place % len(KINDS)]
        assert rollout.prompt is asked[kind][i] and same(rollout, apart[kind][i]) and looks_same(rollout.output, apart[kind][i].output)


@torch.no_grad()
def test_codes_of_an_input_image_do_not_depend_on_its_batch_mates(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder that rounds differently in every batch size, as real ones do near 0, tells a policy that batches its input images."""
    get_code = policy.layout.images.module.get_code
    monkeypatch.setattr(policy.layout.images.module, "get_code", lambda pixels: get_code(pixels) ^ (len(pixels) - 1))
    batch = prompts("i2t", 3)
    assert [list(image.ids) for image in policy.layout.shown(batch)] == [code_ids(policy, p.image) for p in batch if p.image is not None]


@torch.no_grad()
@pytest.mark.parametrize("kind", GUIDED)
def test_guidance_in_one_batch_equals_two_separate_forwards(policy: Policy, kind: Kind) -> None:
    """Only the image is guided, away from the same prompt without its text; an input image stays in both."""
    batch, scale, generator = prompts(kind), 1.5, torch.Generator().manual_seed(0)
    blank, free = policy.layout.canvases(batch, [None, "text"], policy.layout.shown(batch))
    ids = blank.ids.clone()
    ids[:, blank.spans[0].start + 2] = torch.randint(16, 24, (len(batch),), generator=generator)
    if kind in SPOKEN:
        ids[:, blank.spans[1].start + 1] = torch.randint(10, 16, (len(batch),), generator=generator)
    image, *text = logits_of(policy, blank, [Branch(free, {"image": scale, "text": 0.0})])(ids, blank.spans)
    for row, prompt in enumerate(batch):
        filled = {span.modality: ids[row, span.columns].tolist() for span in blank.spans}
        (given, starts), (dropped, places) = (sequence(policy, prompt, filled, with_text) for with_text in (True, False))
        conditional, without = policy.model(torch.tensor([given]))[0], policy.model(torch.tensor([dropped]))[0]
        plain = conditional[starts["image"] : starts["image"] + 6, 16:24]
        other = without[places["image"] : places["image"] + 6, 16:24]
        assert torch.allclose(image[0][row], plain, rtol=0, atol=1e-5)
        assert torch.allclose(image[1][row], (1 + scale) * plain - scale * other, rtol=0, atol=1e-4)
        assert bool(prompt.text) == (not torch.allclose(image[1][row], plain, atol=0.1))
        for unguided, guided in text:
            assert torch.equal(unguided, guided), "text is sampled without guidance"
            allowed = [policy.settings.specials.eos, *WORDS]
            expected = conditional[starts["text"] : starts["text"] + 8, allowed]
            assert torch.allclose(unguided[row][:, allowed], expected, rtol=0, atol=1e-5)
            assert torch.isneginf(unguided).sum(-1).eq(16 - len(allowed)).all()
    assert len(text) == (kind in SPOKEN)


def test_guidance_by_the_input_image_is_of_the_image_alone(policy: Policy) -> None:
    """At the first step everything is guessed from the blank canvas, so that nothing but guidance can differ."""
    sampling = Sampling(steps=STEPS, recorded=STEPS)
    first: list[dict[str, list[list[int]]]] = []
    for scale in (0.0, 4.0):
        batch = policy.generate(prompts("interleaved+image"), range(5), replace(sampling, input_guidance=scale))
        segments = [(m, [s for r in batch if isinstance(s := r.segment(m), Segment)]) for m in MODALITIES]
        first.append({modality: [s.guesses[0].tolist() for s in some] for modality, some in segments})
    free, guided = first
    assert len(free["text"]) == 5 and free["text"] == guided["text"] and free["image"] != guided["image"]


@pytest.mark.parametrize("kind", ["t2t", "i2t"])
def test_tasks_of_text_alone_ignore_guidance(policy: Policy, monkeypatch: pytest.MonkeyPatch, kind: Kind) -> None:
    plain = policy.generate(prompts(kind), range(5), Sampling(steps=STEPS, recorded=2))
    rows: list[int] = []
    hidden = policy.model.hidden

    def counted(sequences: Sequences, columns: Tensor) -> Tensor:
        rows.append(len(sequences.ids))
        return hidden(sequences, columns)

    monkeypatch.setattr(policy.model, "hidden", counted)
    guided = policy.generate(prompts(kind), range(5), Sampling(steps=STEPS, recorded=2, guidance=3.0))
    assert all(same(a, b) for a, b in zip(plain, guided, strict=True))
    assert rows == [5] * STEPS, "nor do they pay for it"


@torch.no_grad()
@pytest.mark.parametrize("kind", ["interleaved", "interleaved+image"])
def test_each_modality_sees_what_the_other_committed(policy: Policy, kind: Kind) -> None:
    blank = policy.layout.canvas(prompts(kind, 1))
    call = logits_of(policy, blank)
    (image, _), (text, _) = call(blank.ids, blank.spans)
    for span, token in ((blank.spans[0], 17), (blank.spans[1], 11)):
        ids = blank.ids.clone()
        ids[0, span.start + 1] = token
        (image_now, _), (text_now, _) = call(ids, blank.spans)
        other, other_now = (text, text_now) if span.modality == "image" else (image, image_now)
        finite = torch.isfinite(other)
        assert (other - other_now)[finite].abs().max() > 1e-2, f"{span.modality} is seen by the other modality"


def test_the_settings_of_a_rollout_are_recorded(policy: Policy, make_policy: MakePolicy) -> None:
    (rollout,) = policy.generate(prompts("interleaved", 1), [9], Sampling(steps=STEPS, recorded=2))
    image = rollout.segment("image")
    assert isinstance(image, Segment) and (image.tokens.dtype, image.commit_step.dtype) == (np.int64, np.int16)
    assert (image.logprob.dtype, image.guesses.dtype) == (np.float32, np.int64)
    assert len(rollout.guesses) == 2 and rollout.index == 0
    assert same(make_policy(seed=0).generate(prompts("interleaved", 1), [9], Sampling(steps=STEPS, recorded=2))[0], rollout)
    assert not same(make_policy(seed=1).generate(prompts("interleaved", 1), [9], Sampling(steps=STEPS, recorded=2))[0], rollout)


@pytest.mark.parametrize("kind", KINDS)
def test_only_as_many_guesses_as_asked_for_are_decoded(policy: Policy, kind: Kind) -> None:
    every = policy.generate(prompts(kind), range(5), Sampling(steps=STEPS, recorded=3))
    some = policy.generate(prompts(kind), range(5), Sampling(steps=STEPS, recorded=3, guesses=1))
    for a, b in zip(every, some, strict=True):
        assert same(a, b) and a.recorded == b.recorded
        decoded = [k for k, guess in enumerate(b.guesses) if guess is not None]
        assert len(b.guesses) == 3 and len(decoded) == 1
        guess, whole = b.guesses[decoded[0]], a.guesses[decoded[0]]
        assert guess is not None and whole is not None and looks_same(guess, whole)


def test_every_text_token_belongs_to_a_word_of_the_output(policy: Policy) -> None:
    (rollout,) = policy.generate(prompts("t2t", 1), [0], Sampling(steps=STEPS))
    end = policy.settings.specials.eos
    told = replace(rollout.segments[0], tokens=np.array([*WORDS[:3], end, WORDS[0], end]))
    assert len(policy.layout.text.decode(told.tokens.tolist()).split()) == 3
    assert policy.words(told).tolist() == [0, 1, 2, -1, -1, -1]
    assert policy.words(replace(told, tokens=np.array([end, WORDS[0]]))).tolist() == [-1, -1]
