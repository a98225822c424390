"""What every family of policies does, whatever it is made of. A new family is one more builder here."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import policies
from pararl import adapter
from pararl.cli.parse import parse
from pararl.options import Drawing, Sampling
from pararl.pretraining.recipes import new_showo2
from pararl.types import Latents, Prompt, Rollout, Segment, Task
from policies import FAMILIES, Policy, traits
from policies.backbones.llada import LLaDAConfig, LLaDAForMultiModalGeneration
from policies.canvas import Specials
from policies.families.parallel_a import MMADA_PARALLEL_A, ParallelASettings, ParallelASpecials
from policies.image.amused import AmusedVQ
from policies.image.continuous import ContinuousVAE, ContinuousVAEConfig
from policies.settings import IMAGE_INPUT, Settings
from policies.text import word_tokenizer
from tests.policies.conftest import DEFAULTS, WORDS, build_images, build_policy, build_showo
from tests.policies.toy_family import family as toy_family
from tests.policies.toy_family.backbone import Toy, ToyConfig

HOW = Sampling(steps=4, recorded=3, temperature=1.0, choice_temperature=1.0, flow_noise=0.7)
TEXTS = ("red circle", "blue square above green circle", "green")


def parallel_a(folder: Path) -> Policy:
    """Its own special tokens are words of the tokenizer here, as its dialogue's are."""
    torch.manual_seed(0)
    marks = ("row", "begin", "end")
    tokenizer, specials = word_tokenizer((*WORDS, *marks))
    images = AmusedVQ.from_pretrained(Path(__file__).parents[1] / "golden" / "amused_vq")
    newline, start, stop = (tokenizer.get_vocab()[mark] for mark in marks)
    own = ParallelASpecials(**asdict(specials), newline=newline, answer_start=start, answer_end=stop)
    told = {"dialogue": "{system} {text} square", "nobody": "blue", "system_new": "red", "system_edit": "green"}
    config = LLaDAConfig(
        d_model=32, n_layers=2, n_heads=4, mlp_hidden_size=48, embedding_size=len(tokenizer) + 64, codebook_size=64, init_std=0.3
    )
    sizes: dict[str, Any] = {**DEFAULTS, **told}
    settings = ParallelASettings(**sizes, specials=own)
    return MMADA_PARALLEL_A.policy(LLaDAForMultiModalGeneration(config), tokenizer, images, settings)


def showo2(folder: Path) -> Policy:
    """Velocities of a new one are 0: here they are not."""
    torch.manual_seed(0)
    ContinuousVAE(ContinuousVAEConfig()).save_pretrained(folder)
    made = new_showo2(folder)
    with torch.no_grad():
        for parameter in made.model.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
    return made


def toy(folder: Path) -> Policy:
    torch.manual_seed(0)
    tokenizer, specials = word_tokenizer(WORDS)
    config = ToyConfig(embedding_size=len(tokenizer) + 8)
    settings = Settings(**{**DEFAULTS, "tasks": ("t2i", "interleaved")}, specials=Specials(**asdict(specials)))  # type: ignore[arg-type]
    return toy_family.policy(Toy(config), tokenizer, build_images(), settings)


BUILDERS: dict[str, Callable[[Path], Policy]] = {
    "mmada": lambda _: build_policy(),
    "mmada_parallel_a": parallel_a,
    "showo": lambda _: build_showo(),
    "showo2": showo2,
    "toy": toy,
}


def test_every_family_has_a_builder_here_and_a_row_of_traits() -> None:
    assert set(BUILDERS) - {"toy"} == set(FAMILIES) == set(traits.TRAITS)


@pytest.fixture(scope="module", params=BUILDERS)
def policy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Policy:
    """A random policy of each family. Tests must leave it as it is."""
    return BUILDERS[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that the program is told of the toy family: its two rows."""
    monkeypatch.setitem(FAMILIES, "toy", toy_family.ROW)
    monkeypatch.setitem(traits.TRAITS, "toy", toy_family.TRAITS)


@pytest.fixture
def fresh(policy: Policy, rows: None, tmp_path: Path) -> Policy:
    """A copy to change: saved and loaded."""
    policy.save(tmp_path / "copy")
    return policies.load(tmp_path / "copy")


def prompts(policy: Policy, task: Task, count: int = 3) -> list[Prompt]:
    """Prompts of different lengths, with an image wherever a task may have one."""
    rng = np.random.default_rng(0)
    shape = (*policy.layout.images.size, 3)
    shows = IMAGE_INPUT[task] is not False and "i2t" in policy.tasks or IMAGE_INPUT[task] is True
    images = [rng.integers(0, 256, shape, np.uint8) if shows else None for _ in range(count)]
    return [Prompt(f"p{i}", task, TEXTS[i % len(TEXTS)], image=images[i]) for i in range(count)]


def batch(policy: Policy, task: Task, count: int = 3) -> list[Rollout]:
    return policy.generate(prompts(policy, task, count), range(count), HOW)


def steps(rollouts: list[Rollout]) -> list[tuple[int, ...]]:
    return [rollout.recorded for rollout in rollouts]


def with_adapter(policy: Policy) -> Any:
    """The PEFT model of a random adapter that is not 0."""
    peft, generator = adapter.attach(policy, 4, 8), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in peft.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return peft


# ---- saving


def test_what_was_saved_and_loaded_is_the_same_policy(policy: Policy, fresh: Policy) -> None:
    assert (fresh.family, fresh.tasks, fresh.grid, fresh.settings) == (policy.family, policy.tasks, policy.grid, policy.settings)
    # A tied head is read as a weight of its own, whose products may round otherwise.
    assert torch.allclose(fresh.canary(), policy.canary(), rtol=0, atol=1e-3) and fresh.canary().numel() > 1
    for task in policy.tasks:
        for a, b in zip(batch(policy, task, 1), batch(fresh, task, 1), strict=True):
            assert all(np.allclose(x.tokens, y.tokens, rtol=0, atol=1e-2) for x, y in zip(a.segments, b.segments, strict=True))


def test_a_command_line_takes_it_by_its_folder(policy: Policy, rows: None, tmp_path: Path) -> None:
    policy.save(tmp_path / "copy")
    kinds = "t2i" if policy.family != "showo2" else "t2i,i2t"
    asked = ["--policy.name", str(tmp_path / "copy"), "--curriculum.tasks", kinds, "--rollout.steps", "8"]
    assert parse(asked).config.policy.name == str(tmp_path / "copy")


# ---- sampling


def test_a_rollout_depends_on_its_own_prompt_and_seed_and_not_on_its_batch_mates(policy: Policy) -> None:
    for task in policy.tasks:
        together = batch(policy, task)
        for i, prompt in enumerate(prompts(policy, task)):
            (alone,) = policy.generate([prompt], [i], HOW)
            for a, b in zip(alone.segments, together[i].segments, strict=True):
                assert type(a) is type(b) and a.modality == b.modality
                if isinstance(a, Segment):
                    assert np.array_equal(a.tokens, b.tokens) and np.array_equal(a.commit_step, b.commit_step)
                else:
                    assert np.allclose(a.tokens, b.tokens, rtol=0, atol=1e-3)
                assert np.allclose(a.logprob, b.logprob, rtol=0, atol=1e-3, equal_nan=True)


def test_no_position_yields_a_token_of_the_other_modality_nor_a_special_one(policy: Policy) -> None:
    vocabulary = policy.layout.text.vocabulary
    text, codes = vocabulary.rows("text"), vocabulary.rows("image")
    for task in policy.tasks:
        for rollout in batch(policy, task, 6):
            for segment in rollout.segments:
                if isinstance(segment, Latents):
                    assert np.isfinite(segment.tokens).all()
                elif segment.modality == "image":
                    assert ((segment.tokens >= codes.start) & (segment.tokens < codes.stop)).all()
                else:
                    assert ((segment.tokens >= text.start) & (segment.tokens < text.stop)).all()
                    assert set(segment.tokens.tolist()).isdisjoint(vocabulary.forbidden)


def test_a_rollout_carries_the_ids_of_its_prompt(policy: Policy) -> None:
    for task in policy.tasks:
        asked = prompts(policy, task)
        for prompt, shown, rollout in zip(asked, policy.layout.shown(asked), batch(policy, task), strict=True):
            assert rollout.prompt_ids is not None
            assert rollout.prompt_ids.tolist() == policy.layout.prefix(prompt, shown.ids)


def test_what_cannot_be_asked_is_an_error_that_names_the_prompt(policy: Policy) -> None:
    task = policy.tasks[0]
    (prompt,) = prompts(policy, task, 1)
    other = next(iter({"t2t", "i2t", "t2i", "edit", "interleaved"} - set(policy.tasks)), None)
    small = np.zeros((3, 5, 3), np.uint8)
    wrong = [replace(prompt, text="red " * 40), replace(prompt, text="nonsense"), replace(prompt, image=small)]
    wrong += [replace(prompt, task=other)] if other else []  # type: ignore[arg-type]
    wrong += [replace(p, image=None) for t in policy.tasks if IMAGE_INPUT[t] is True for p in prompts(policy, t, 1)]
    for bad in wrong:
        with pytest.raises(ValueError, match=f"{bad.id}|nonsense"):
            policy.generate([bad], [0], HOW)


# ---- likelihoods


@torch.no_grad()
def test_the_ratio_of_every_committed_token_is_one_under_the_same_weights(policy: Policy) -> None:
    for task in policy.tasks:
        rollouts = batch(policy, task)
        found = policy.step_tokens(rollouts, steps(rollouts))
        assert found.keys() == {segment.modality for segment in rollouts[0].segments}
        for tokens in found.values():
            assert tokens.committed.any()
            assert (tokens.logprob - tokens.behaviour)[tokens.committed].abs().max() < 3e-4


@torch.no_grad()
def test_padding_and_batch_mates_never_change_a_likelihood(policy: Policy) -> None:
    for task in policy.tasks:
        rollouts = batch(policy, task)
        draws = policy.draws(rollouts, 2, torch.Generator().manual_seed(0))
        together = policy.log_likelihood(rollouts, draws)
        for i, rollout in enumerate(rollouts):
            alone = policy.log_likelihood([rollout], draws.rows(torch.tensor([i])))
            assert torch.allclose(alone[0], together[i], rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("drawing", [Drawing(), Drawing(text_masks="block", image_ratio=0.3)])
def test_a_likelihood_is_the_mean_of_what_its_draws_count(policy: Policy, drawing: Drawing) -> None:
    for task in policy.tasks:
        rollouts = batch(policy, task)
        draws = policy.draws(rollouts, 3, torch.Generator().manual_seed(0), drawing)
        found = policy.log_likelihood(rollouts, draws)
        by_hand = torch.zeros_like(found)
        for draw in draws:
            for m, modality in enumerate(("text", "image")):
                if tokens := policy.draw_tokens(rollouts, draw).get(modality):  # type: ignore[call-overload]
                    counted = draw.counted[modality][0]  # type: ignore[index]
                    assert counted.any(1).all() and not tokens.logprob[~counted].any()
                    by_hand[:, m] += tokens.logprob.sum(1) / counted.sum(1) / len(draws)
        assert torch.allclose(found, by_hand, rtol=0, atol=1e-4)


def test_rollouts_of_a_prompt_share_their_draws_and_others_do_not(policy: Policy) -> None:
    first, second, _ = prompts(policy, "t2i")
    rollouts = policy.generate([first, first, second], [1, 2, 3], HOW)
    draws = policy.draws(rollouts, 4, torch.Generator().manual_seed(0))
    shared = draws.masks["image"] if draws.noise is None else draws.noise
    assert torch.equal(shared[:, 0], shared[:, 1]) and not torch.equal(shared[:, 0], shared[:, 2])


def test_rollouts_are_laid_out_once_and_an_image_is_encoded_once(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    task = next(iter({"i2t", "edit"} & set(policy.tasks)), "t2i")
    asked = prompts(policy, task, 2)  # type: ignore[arg-type]
    rollouts = policy.generate([asked[i % 2] for i in range(8)], range(8), HOW)
    seen: list[int] = []
    encode = policy.layout.images.encode

    def watched(pixels: np.ndarray) -> torch.Tensor:
        seen.append(len(pixels))
        return encode(pixels)

    monkeypatch.setattr(policy.layout.images, "encode", watched)
    whole = policy.prepare(rollouts)
    distinct = 2 if asked[0].image is not None else 0
    assert sum(seen) == (0 if policy.layout.images.codes else distinct), "codes of an image are in the ids of its prompt"
    sent = policy.prepare([replace(rollout, prompt_ids=None) for rollout in rollouts])
    assert sum(seen) == distinct * (1 if policy.layout.images.codes else 2)
    assert [list(p) for p in sent.prefixes] == [list(p) for p in whole.prefixes]
    before = len(seen)
    some = policy.prepare(whole.take([3, 0]))
    assert list(some) == [rollouts[3], rollouts[0]]
    draws = policy.draws(some, 2, torch.Generator().manual_seed(0))
    with torch.no_grad():
        taken = policy.log_likelihood(some, draws)
        assert len(seen) == before
        monkeypatch.undo()
        assert torch.equal(taken, policy.log_likelihood([rollouts[3], rollouts[0]], draws))


def test_a_likelihood_of_two_tasks_is_an_error(policy: Policy) -> None:
    first, second, *_ = policy.tasks
    rollouts = batch(policy, first, 1) + batch(policy, second, 1)
    with pytest.raises(ValueError, match="split it by task"):
        policy.step_tokens(rollouts, steps(rollouts))


# ---- adapters


def gradients(policy: Policy, peft: Any) -> dict[str, torch.Tensor]:
    """Of the sum of all likelihoods of outputs that have every modality."""
    rollouts = batch(policy, "interleaved" if "interleaved" in policy.tasks else "t2i")
    peft.zero_grad()
    policy.log_likelihood(rollouts, policy.draws(rollouts, 2, torch.Generator().manual_seed(0))).sum().backward()
    return {name: p.grad.clone() for name, p in peft.named_parameters() if p.grad is not None}


def test_an_adapter_that_is_off_is_the_base_and_one_that_is_on_is_not(fresh: Policy) -> None:
    base = fresh.canary()
    peft = with_adapter(fresh)
    assert not torch.equal(fresh.canary(), base)
    with adapter.base(peft):
        assert torch.equal(fresh.canary(), base)


def test_every_target_of_an_adapter_gets_a_gradient_and_nothing_else_does(fresh: Policy) -> None:
    peft = with_adapter(fresh)
    found = gradients(fresh, peft)
    trained = {name for name, p in peft.named_parameters() if p.requires_grad}
    assert found.keys() == trained and len(trained) == 2 * len(adapter.tuner_layers(fresh.model))
    assert all(gradient.any() for gradient in found.values())


def test_checkpointed_gradients_are_the_plain_ones(fresh: Policy) -> None:
    peft = with_adapter(fresh)
    plain = gradients(fresh, peft)
    fresh.checkpoint_gradients(True)
    again = gradients(fresh, peft)
    assert all(torch.allclose(plain[name], again[name], rtol=1e-4, atol=1e-6) for name in plain)


def test_a_policy_that_carries_an_adapter_is_not_saved(fresh: Policy, tmp_path: Path) -> None:
    with_adapter(fresh)
    with pytest.raises(ValueError, match="carries an adapter"):
        fresh.save(tmp_path / "no")
    assert not (tmp_path / "no" / "policy.json").exists()
