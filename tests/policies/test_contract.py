"""What every family of policies holds to, whatever it is made of; what is a family's own is tested in files of its own.

The toy family is in no table: its row is added while its tests run, and nothing else of ``policies`` is told about it.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import Tensor

import policies
from pararl import adapter
from pararl.options import Sampling
from pararl.types import MODALITIES, TASKS, Latents, Modality, Output, Rollout, Segment
from policies import FAMILIES, Policy
from policies.settings import IMAGE_INPUT
from policies.traits import TRAITS
from tests.policies.by_hand import GUIDED, SHOWN, SPOKEN, Kind, task_of
from tests.policies.subjects import SUBJECTS, Subject, picture
from tests.policies.toy_family import family as toy

STEPS = 4
SAMPLING = Sampling(steps=STEPS, recorded=STEPS, guidance=1.0, flow_noise=0.7)
CASES = [(name, kind) for name, subject in SUBJECTS.items() for kind in subject.kinds]
every_family = pytest.mark.parametrize("subject", SUBJECTS, indirect=True)
every_kind = pytest.mark.parametrize(("subject", "kind"), CASES, indirect=["subject"])
every_shown_kind = pytest.mark.parametrize(("subject", "kind"), [case for case in CASES if case[1] in SHOWN], indirect=["subject"])


@pytest.fixture(scope="module")
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    """A family, known to ``policies`` by its row."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == toy.TOY.name:
            patch.setitem(FAMILIES, toy.TOY.name, toy.TOY)
        yield SUBJECTS[request.param]


@pytest.fixture(scope="module")
def policy(subject: Subject) -> Policy:
    """Its policy. Tests must leave it as it is."""
    return subject.build()


def rollouts(subject: Subject, policy: Policy, kind: Kind, group: int = 1, sampling: Sampling = SAMPLING) -> list[Rollout]:
    """Rollouts of four prompts, ``group`` of each."""
    asked = [prompt for prompt in subject.prompts(policy, kind) for _ in range(group)]
    return policy.generate(asked, range(7, 7 + len(asked)), sampling)


def sampled(subject: Subject, policy: Policy) -> list[Rollout]:
    """Rollouts of every kind."""
    asked = [prompt for kind in subject.kinds for prompt in subject.prompts(policy, kind, 3)]
    return policy.generate(asked, range(len(asked)), SAMPLING)


def recorded(batch: Sequence[Rollout]) -> list[tuple[int, ...]]:
    return [rollout.recorded for rollout in batch]


def adapted(subject: Subject) -> tuple[Policy, PeftModel]:
    """A policy with an adapter that looks trained."""
    own = subject.build()
    model = adapter.attach(own, rank=2, alpha=4)
    generator = torch.Generator().manual_seed(0)
    adapter.load_tensors(model, {n: 0.5 * torch.randn(t.shape, generator=generator) for n, t in adapter.tensors(model).items()})
    return own, model


def looks_same(a: Output, b: Output) -> bool:
    images = [x.image for x in (a, b) if x.image is not None]
    return a.text == b.text and len(images) != 1 and all(np.array_equal(images[0], image) for image in images)


def identical(a: Sequence[Rollout], b: Sequence[Rollout]) -> bool:
    """Whether rollouts are equal bit for bit, what a person sees of them included."""
    names = ("tokens", "commit_step", "logprob", "guesses", "moves")
    segments = [(x, y) for r, s in zip(a, b, strict=True) for x, y in zip(r.segments, s.segments, strict=True)]
    arrays = [(getattr(x, name), getattr(y, name)) for x, y in segments for name in names if hasattr(x, name)]
    alike = all(np.array_equal(x, y, equal_nan=x.dtype.kind == "f") for x, y in arrays)
    return alike and all(r.recorded == s.recorded and looks_same(r.output, s.output) for r, s in zip(a, b, strict=True))


def same(a: Rollout, b: Rollout) -> bool:
    """Whether two rollouts hold the same tokens at the same steps through the same guesses: ids exactly, numbers within rounding."""
    for x, y in zip(a.segments, b.segments, strict=True):
        exact = ("commit_step",) if isinstance(x, Latents) else ("tokens", "commit_step", "guesses")
        if not all(np.array_equal(getattr(x, name), getattr(y, name)) for name in exact):
            return False
        numbers = ("tokens", "guesses", "moves") if isinstance(x, Latents) else ()
        if not all(np.allclose(getattr(x, name), getattr(y, name), rtol=0, atol=1e-3) for name in numbers):
            return False
    return True


def encoded(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The images that the image tokenizer is given from here on, each [3, height, width]."""
    given: list[Tensor] = []
    module, name = policy.layout.images.module, "get_code" if policy.layout.images.codes else "encode"
    own = getattr(module, name)

    def counted(pixels: Tensor) -> Tensor:
        given.extend(pixels)
        found: Tensor = own(pixels)
        return found

    monkeypatch.setattr(module, name, counted)
    return given


# ---- saved


@every_family
def test_a_saved_policy_is_the_policy_bit_for_bit(subject: Subject, policy: Policy, tmp_path: Path) -> None:
    policy.save(tmp_path)
    loaded = policies.load(tmp_path)
    assert loaded.family == json.loads((tmp_path / "policy.json").read_text())["family"] == policy.family
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert {p.suffix for p in files} == {".safetensors", ".json"}
    assert {"policy.json", "model.safetensors", "tokenizer.json"} <= {p.name for p in files}
    assert type(loaded.settings) is type(policy.settings) and loaded.settings == policy.settings
    assert loaded.sampling == policy.sampling and loaded.layout.text.vocabulary == policy.layout.text.vocabulary
    assert [loaded.layout.text.encode(text) for text in subject.texts] == [policy.layout.text.encode(text) for text in subject.texts]
    images = policy.layout.images.module, loaded.layout.images.module
    for ours, theirs in ((policy.model, loaded.model), images):
        before, after = ours.state_dict(), theirs.state_dict()
        assert type(ours) is type(theirs) and before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    assert not loaded.model.training and not images[1].training and not any(p.requires_grad for p in images[1].parameters())
    assert identical(sampled(subject, policy), sampled(subject, loaded))
    assert torch.allclose(policy.canary(), loaded.canary(), rtol=0, atol=1e-5)
    # Weights that lie in their file are not aligned as those of a new model, which some products of the CPU round otherwise.
    for parameter in loaded.model.parameters():
        parameter.data = parameter.data.clone()
    assert torch.equal(policy.canary(), loaded.canary())


@every_family
def test_a_policy_that_carries_an_adapter_is_not_saved(subject: Subject, tmp_path: Path) -> None:
    own, model = adapted(subject)
    wrapped = sum(len(list(layer.get_base_layer().parameters())) for layer in adapter.tuner_layers(model))
    assert wrapped >= subject.targets
    with pytest.raises(ValueError, match=f"carries an adapter .* and {wrapped - 1} more"):
        own.save(tmp_path)
    assert not list(tmp_path.iterdir())


# ---- what a rollout depends on


@every_family
@pytest.mark.parametrize("extra", [{"guidance": 0.0}, {"guidance": 2.0}, {"image_sampler": "emerge"}], ids=str)
def test_a_rollout_depends_on_its_prompt_and_seed_and_not_on_its_batch_mates(
    subject: Subject, policy: Policy, extra: dict[str, Any]
) -> None:
    sampling = replace(SAMPLING, recorded=2, **extra)
    batch = [prompt for kind in subject.kinds for prompt in subject.prompts(policy, kind, 3)]
    seeds = list(range(100, 100 + len(batch)))
    together = policy.generate(batch, seeds, sampling, version=3)
    assert all(r.prompt is p and (r.seed, r.version) == (s, 3) for r, p, s in zip(together, batch, seeds, strict=True))
    order = np.random.default_rng(0).permutation(len(batch)).tolist()
    for i, permuted in zip(order, policy.generate([batch[j] for j in order], [seeds[j] for j in order], sampling), strict=True):
        assert same(permuted, together[i])
    repeated = 0
    for i in range(len(batch)):  # every batch mate removed
        (alone,) = policy.generate([batch[i]], [seeds[i]], sampling)
        assert same(alone, together[i])
        for x, y in zip(alone.segments, together[i].segments, strict=True):
            assert np.allclose(x.logprob, y.logprob, rtol=0, atol=subject.rounding, equal_nan=True)
        if subject.codes or alone.segment("image") is None:
            assert looks_same(alone.output, together[i].output)
        (other,) = policy.generate([batch[i]], [seeds[i] + 1000], sampling)
        repeated += same(other, together[i])
    assert repeated <= subject.repeats, "another seed gives another rollout, short texts aside"


@every_shown_kind
def test_rollouts_and_likelihoods_depend_on_the_input_image(subject: Subject, policy: Policy, kind: Kind) -> None:
    batch = rollouts(subject, policy, kind)
    asked = [replace(r.prompt, image=picture(policy, 9)) for r in batch]
    again = policy.generate(asked, [r.seed for r in batch], SAMPLING)
    assert not any(np.allclose(a.segments[0].logprob, b.segments[0].logprob, atol=1e-3) for a, b in zip(batch, again, strict=True))
    others = [replace(r, prompt=prompt, prompt_ids=None) for r, prompt in zip(batch, asked, strict=True)]
    draws = policy.draws(batch, 2, torch.Generator().manual_seed(0))
    with torch.no_grad():
        change = (policy.log_likelihood(others, draws) - policy.log_likelihood(batch, draws)).abs().sum(1)
    assert change.min() > 1e-3


@every_kind
def test_the_ids_of_a_rollouts_prompt_are_the_prefix_of_its_layout(subject: Subject, policy: Policy, kind: Kind) -> None:
    for rollout in rollouts(subject, policy, kind):
        assert rollout.prompt_ids is not None
        (shown,) = policy.layout.shown([rollout.prompt])
        assert rollout.prompt_ids.tolist() == policy.layout.prefix(rollout.prompt, shown.ids)
        assert bool(shown.ids) == (kind in SHOWN) and policy.settings.specials.pad not in rollout.prompt_ids


# ---- what may be sampled


@every_kind
def test_no_text_position_yields_an_image_code_no_image_position_a_text_token_and_none_yields_mask(
    subject: Subject, policy: Policy, kind: Kind
) -> None:
    """At a temperature that flattens everything, over hundreds of samples, guesses included."""
    seen: dict[Modality, set[int]] = {}
    made: set[Modality] = set()
    sampling = replace(SAMPLING, guesses=0, temperature=100.0)
    for rollout in policy.generate(subject.prompts(policy, kind, 200), range(200), sampling):
        made |= {segment.modality for segment in rollout.segments}
        for segment in rollout.segments:
            if isinstance(segment, Segment):
                seen.setdefault(segment.modality, set()).update(segment.tokens.tolist() + segment.guesses.flatten().tolist())
            else:
                assert not subject.codes and segment.modality == "image" and np.isfinite(segment.tokens).all()
    assert made == {m for m, kinds in (("image", GUIDED), ("text", SPOKEN)) if kind in kinds}
    assert seen.get("image", subject.codes) == subject.codes, "every code, nothing else"
    assert seen.get("text", subject.says) == subject.says, "every word and the ends, nothing else"
    assert policy.settings.specials.mask not in subject.says | subject.codes


# ---- likelihoods


def counted(subject: Subject, segment: Segment | Latents) -> np.ndarray:
    """Which tokens the policy is answerable for: of a text that ends, those up to and with its end, else all."""
    ends = np.isin(segment.tokens, list(subject.ends)) if segment.modality == "text" else np.zeros(len(segment.tokens), bool)
    return np.cumsum(ends) - ends == 0


@every_kind
@pytest.mark.parametrize("guidance", [0.0, 2.0])
@pytest.mark.parametrize("count", [0, 2, STEPS])
def test_the_ratio_of_every_token_is_one_under_the_same_weights(
    subject: Subject, policy: Policy, kind: Kind, count: int, guidance: float
) -> None:
    """Of ids at all steps, recorded or not; of an image of continuous tokens at those whose moves are known."""
    count = count if subject.codes else max(1, count)
    batch = rollouts(subject, policy, kind, 2, replace(SAMPLING, recorded=count, guidance=guidance))
    steps = [tuple(range(STEPS)) if subject.codes else r.recorded for r in batch]
    found = policy.step_tokens(batch, steps)
    assert found.keys() == {s.modality for s in batch[0].segments}
    for modality, tokens in found.items():
        assert torch.allclose(tokens.logprob, tokens.behaviour, rtol=0, atol=subject.rounding)
        segments = [s for r in batch if (s := r.segment(modality))]
        pairs = [s.at(when) for s, when in zip(segments, steps, strict=True)]
        assert np.array_equal(tokens.committed.numpy(), np.stack([committed for committed, _ in pairs]))
        assert np.array_equal(tokens.behaviour.numpy(), np.stack([logprob for _, logprob in pairs]))
        assert tokens.logprob[~tokens.committed].eq(0).all() and tokens.behaviour[~tokens.committed].eq(0).all()
        if isinstance(segments[0], Segment):
            assert (tokens.behaviour[tokens.committed] < 0).all()
            meant = np.stack([counted(subject, s) for s in segments])
            assert np.array_equal(tokens.committed.sum(1).numpy(), meant), "what counts belongs to one step, all else to none"
        else:
            assert tokens.committed.any()


@every_kind
@torch.no_grad()
def test_padding_never_changes_a_likelihood(subject: Subject, policy: Policy, kind: Kind) -> None:
    """A rollout among longer prompts has the likelihoods that it has alone, where nothing is padded."""
    batch = rollouts(subject, policy, kind)
    assert len({len(r.prompt_ids) for r in batch if r.prompt_ids is not None}) > 1
    draws = policy.draws(batch, 2, torch.Generator().manual_seed(0))
    together, steps = policy.log_likelihood(batch, draws), policy.step_tokens(batch, recorded(batch))
    for b, rollout in enumerate(batch):
        alone = policy.log_likelihood([rollout], draws.rows(torch.tensor([b])))
        assert torch.allclose(alone[0], together[b], rtol=0, atol=subject.rounding)
        for modality, tokens in policy.step_tokens([rollout], [rollout.recorded]).items():
            assert torch.allclose(tokens.logprob[0], steps[modality].logprob[b], rtol=0, atol=subject.rounding)


@every_kind
@torch.no_grad()
def test_a_likelihood_is_the_mean_of_the_tokens_of_its_draws(subject: Subject, policy: Policy, kind: Kind) -> None:
    """Over the tokens that a draw counts, then over the draws; exactly 0 for what was not produced, and below it for what was."""
    batch = rollouts(subject, policy, kind)
    draws = policy.draws(batch, 3, torch.Generator().manual_seed(0))
    found, made = policy.log_likelihood(batch, draws), {s.modality for s in batch[0].segments}
    assert found.shape == (len(batch), len(MODALITIES)) and found.dtype == torch.float32 and len(draws) == 3
    tokens = [policy.draw_tokens(batch, draw) for draw in draws]
    assert all(one.keys() == made for one in tokens)
    for place, modality in enumerate(MODALITIES):
        if modality not in made:
            assert found[:, place].eq(0).all()
            continue
        means = []
        for one, draw in zip(tokens, draws, strict=True):
            counts, logprob = draw.counted[modality][0], one[modality].logprob
            assert logprob[~counts].eq(0).all() and counts.any(1).all()
            means.append(logprob.sum(1) / counts.sum(1))
        assert torch.allclose(found[:, place], torch.stack(means).mean(0), rtol=1e-5, atol=1e-6) and found[:, place].lt(0).all()


@every_kind
def test_rollouts_of_one_prompt_share_their_draws(subject: Subject, policy: Policy, kind: Kind) -> None:
    batch = rollouts(subject, policy, kind, group=3)
    shuffled = [batch[i] for i in (4, 0, 8, 1, 5, 2, 11, 3)]
    draws = policy.draws(shuffled, 5, torch.Generator().manual_seed(0))
    made = {s.modality for s in batch[0].segments}
    assert len(draws) == 5 and set(draws.masks) == set(draws.counted) == set(draws.weights) == made
    chance = [draws.masks[m] for m in made & subject.hidden if subject.codes or m == "text"]
    chance += [x for x in (draws.times, draws.noise) if x is not None]
    assert bool(chance) == bool(made & subject.hidden) and not any(draws.masks[m].any() for m in made - subject.hidden)
    for a, b in itertools.combinations(range(len(shuffled)), 2):
        one_prompt = shuffled[a].prompt.id == shuffled[b].prompt.id
        assert all(torch.equal(x[:, a], x[:, b]) == one_prompt for x in chance)
        # Different prompts may well get the same counts, hence the same weights.
        assert not one_prompt or all(torch.equal(draws.weights[m][:, a], draws.weights[m][:, b]) for m in made & subject.hidden)


@every_family
def test_a_batch_of_two_tasks_is_an_error(subject: Subject, policy: Policy) -> None:
    mixed = [rollouts(subject, policy, "t2i")[0], rollouts(subject, policy, "interleaved")[0]]
    with pytest.raises(ValueError, match="one task"):
        policy.step_tokens(mixed, recorded(mixed))
    with pytest.raises(ValueError, match="one task"):
        policy.draws(mixed, 1, torch.Generator())


# ---- prepared


@every_shown_kind
def test_each_distinct_image_is_encoded_once_and_never_again(
    subject: Subject, policy: Policy, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = subject.prompts(policy, kind, 8)
    given = encoded(policy, monkeypatch)
    pixels = torch.from_numpy(np.stack([picture(policy, i) for i in range(3)])).permute(0, 3, 1, 2) / 127.5 - 1
    for guidance in (0.0, 2.0):
        batch = policy.generate(asked, range(8), replace(SAMPLING, guidance=guidance))
        assert len(given) == 3, "eight prompts show three images"
        assert torch.allclose(torch.stack(given), pixels, rtol=0, atol=1e-5)
        given.clear()
    kept = policy.prepare(batch)
    assert len(given) == (0 if subject.codes else 3), "codes are among the ids that a rollout carries"
    given.clear()
    prepared = policy.prepare([replace(r, prompt_ids=None) for r in batch])
    assert len(given) == 3 and [list(p) for p in prepared.prefixes] == [list(p) for p in kept.prefixes]
    given.clear()
    index = [5, 2, 2]
    draws = policy.draws(prepared, 2, torch.Generator().manual_seed(0))
    with torch.no_grad():
        part = prepared.take(index)
        assert policy.prepare(part) is part and [r.prompt.id for r in part] == [asked[i].id for i in index]
        some = policy.log_likelihood(part, draws.rows(torch.tensor(index)))
        steps = policy.step_tokens(part, recorded(part))
        assert torch.allclose(some, policy.log_likelihood(prepared, draws)[index], rtol=0, atol=subject.rounding)
        every = policy.step_tokens(prepared, recorded(prepared))
    assert all(torch.allclose(steps[m].logprob, every[m].logprob[index], rtol=0, atol=subject.rounding) for m in every)
    assert not given


# ---- adapters


@every_family
def test_adapter_off_is_the_base_bit_for_bit_and_on_is_not(subject: Subject, policy: Policy) -> None:
    expected, canary = sampled(subject, policy), policy.canary()
    assert canary.dtype == torch.float32 and not canary.requires_grad and torch.equal(canary, policy.canary())
    new = subject.build()
    adapter.attach(new, rank=2, alpha=4)
    assert identical(sampled(subject, new), expected) and torch.equal(new.canary(), canary), "a new adapter changes nothing"
    own, model = adapted(subject)
    on = sampled(subject, own)
    assert not identical(on, expected) and float((own.canary() - canary).abs().max()) > 1e-3
    with adapter.base(model):
        assert identical(sampled(subject, own), expected) and torch.equal(own.canary(), canary)
    draws = own.draws(on[:3], 2, torch.Generator().manual_seed(0))
    with torch.no_grad():
        base = policy.log_likelihood(on[:3], draws)
        assert not torch.allclose(own.log_likelihood(on[:3], draws), base, atol=1e-3)
        with adapter.base(model):
            assert torch.equal(own.log_likelihood(on[:3], draws), base)


@every_kind
@pytest.mark.parametrize("by", ["steps", "draws"])
def test_a_gradient_reaches_every_target_and_nothing_else_and_checkpointing_changes_it_not(
    subject: Subject, policy: Policy, kind: Kind, by: str
) -> None:
    batch = rollouts(subject, policy, kind)
    draws = policy.draws(batch, 2, torch.Generator().manual_seed(0))
    gradients: list[dict[str, Tensor]] = []
    for on in (False, True):
        own, model = adapted(subject)
        own.checkpoint_gradients(on)
        if by == "steps":
            value = torch.stack([t.logprob.sum() for t in own.step_tokens(batch, recorded(batch)).values()]).sum()
        else:
            value = own.log_likelihood(batch, draws).sum()
        value.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    plain, again = gradients
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {n for n, _ in model.named_parameters() if "lora_" in n}
    assert len(adapter.tensors(model)) == 2 * subject.targets
    reached = {n for n, grad in plain.items() if float(grad.abs().max()) > 0}
    assert reached == plain.keys() and all("lora_" in n for n in reached)
    assert len(reached) == 2 * (subject.targets - (subject.image_targets if kind not in GUIDED else 0))
    assert plain.keys() == again.keys()
    for name, grad in plain.items():
        assert torch.allclose(grad, again[name], rtol=1e-5, atol=1e-6), name


@every_family
def test_a_saved_adapter_samples_the_same_bit_for_bit(subject: Subject, tmp_path: Path) -> None:
    own, model = adapted(subject)
    expected = sampled(subject, own)
    adapter.save(model, tmp_path / "adapter", "tiny")
    other, third = subject.build(), subject.build()
    PeftModel.from_pretrained(other.model, str(tmp_path / "adapter"))
    assert identical(sampled(subject, other), expected)
    adapter.load_tensors(adapter.attach(third, rank=2, alpha=4), adapter.tensors(model))
    assert identical(sampled(subject, third), expected)


# ---- wrong inputs


@every_kind
def test_an_input_that_does_not_fit_is_an_error_that_names_the_prompt(subject: Subject, policy: Policy, kind: Kind) -> None:
    fine, other = subject.prompts(policy, kind, 2)
    task, right = task_of(kind), picture(policy, 0)
    shape = list(right.shape)
    wrong: list[tuple[np.ndarray | None, str]] = []
    if IMAGE_INPUT[task]:
        wrong.append((None, f"{task} needs an input image"))
    if IMAGE_INPUT[task] is False:
        wrong.append((right, f"{task} takes no input image"))
    else:
        for misfit in (np.zeros((shape[0] + 1, shape[1], 3), np.uint8), right[..., 0], right.astype(np.float32)):
            wrong.append((misfit, f"its image is {misfit.dtype} {list(misfit.shape)}, this policy reads uint8 {shape}; convert or resize"))
    for image, message in wrong:
        bad = replace(other, image=image)
        for batch in ([bad], [fine, bad]):
            with pytest.raises(ValueError) as told:
                policy.generate(batch, range(len(batch)), SAMPLING)
            assert str(told.value).startswith(f"prompt {bad.id}: {message}")
    long = replace(fine, text=" ".join(["red"] * (policy.settings.prompt_tokens + 1)))
    with pytest.raises(ValueError, match=f"prompt {fine.id.replace('+', '.')} has .* more than the .* this policy reads"):
        policy.generate([other, long], [0, 1], SAMPLING)


@every_kind
def test_a_task_that_the_checkpoint_was_not_trained_for_is_an_error(subject: Subject, kind: Kind) -> None:
    task = task_of(kind)
    others = tuple(t for t in TASKS if t != task)
    without, alone = subject.build(tasks=others), subject.build(tasks=(task,))
    (prompt,) = subject.prompts(without, kind, 1)
    with pytest.raises(ValueError) as told:
        without.generate([prompt], [0], SAMPLING)
    assert str(told.value) == f"prompt {prompt.id}: this policy does {', '.join(others)}, not {task}"
    assert alone.generate([prompt], [0], SAMPLING)[0].prompt is prompt and torch.isfinite(alone.canary()).all()


# ---- a new family


def test_every_family_has_its_subject() -> None:
    assert list(SUBJECTS) == [*FAMILIES, toy.TOY.name]


def test_a_new_family_is_its_own_files_and_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its row it is not known; with it, it is loaded, and the contract above holds of it as of the others."""
    own = SUBJECTS["toy"].build()
    own.save(tmp_path)
    with pytest.raises(ValueError, match="unknown family 'toy'"):
        policies.load(tmp_path)
    monkeypatch.setitem(FAMILIES, toy.TOY.name, toy.TOY)
    loaded = policies.load(tmp_path)
    assert type(loaded.layout) is toy.ToyLayout and identical(sampled(SUBJECTS["toy"], own), sampled(SUBJECTS["toy"], loaded))
    # what the programs around a policy read of it
    monkeypatch.setitem(TRAITS, toy.TOY.name, toy.TRAITS)
    assert not TRAITS["toy"].joint and TRAITS["toy"].masks
