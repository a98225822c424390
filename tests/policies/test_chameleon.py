"""Chameleon's policy against transformers' model: what is sampled and what it is worth, by hand from ``model.model`` and ``lm_head``."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import ChameleonForConditionalGeneration

from pararl import scenes
from pararl.options import Sampling
from pararl.types import KINDS as KINDS_OF_PROMPTS
from pararl.types import MODALITIES, Output, Prompt, Rollout
from policies import CHECKPOINTS, Policy
from policies.backbones.chameleon import Chameleon, ChameleonConfig
from policies.embedded.chameleon import CHAMELEON_RECIPE, new_chameleon
from policies.image.chameleon import code_ids, code_name
from policies.pretraining import supervised_loss
from tests.policies.by_hand import GUIDED, KINDS, SPOKEN, Kind, draw_one, prompts
from tests.policies.subjects import build_chameleon

BOS, EOS, EOI, SOI, EOT = 0, 2, 11, 12, 13
CODES = tuple(range(3, 11))
SAYS = (EOS, SOI, *range(16, 22))
WORDS = dict(zip(("red", "blue", "green", "circle", "square", "above"), range(16, 22), strict=True))
STEPS = 3


@pytest.fixture(scope="module")
def policy() -> Policy:
    return build_chameleon()


@pytest.fixture(scope="module")
def reference(policy: Policy) -> ChameleonForConditionalGeneration:
    """transformers' class with the same weights; its image tokenizer is a small random one that nothing looks at."""
    model = ChameleonForConditionalGeneration(policy.model.config.backbone())
    left = model.load_state_dict(policy.model.state_dict(), strict=False)
    assert left.unexpected_keys == [] and all(name.startswith("model.vqmodel.") for name in left.missing_keys)
    model.config._attn_implementation = model.model.config._attn_implementation = "eager"
    return model.eval()


@torch.no_grad()
def logits(reference: ChameleonForConditionalGeneration, ids: Sequence[int]) -> Tensor:
    """Of one unpadded sequence, float64 [length, vocabulary]."""
    return reference.lm_head(reference.model(input_ids=torch.tensor([list(ids)])).last_hidden_state)[0].double()


def codes(policy: Policy, image: np.ndarray) -> list[int]:
    """Vocabulary ids of an image, straight from its tokenizer and the names of the vocabulary."""
    pixels = torch.from_numpy(image.astype(np.float32) / 255 * 2 - 1).permute(2, 0, 1)[None]
    named = policy.layout.text.tokenizer.get_vocab()
    return [named[code_name(code)] for code in policy.layout.images.module.get_code(pixels)[0].tolist()]


def front(policy: Policy, prompt: Prompt, words: bool = True) -> list[int]:
    image = [] if prompt.image is None else [SOI, *codes(policy, prompt.image), EOI]
    return [BOS, *image, *([*(WORDS[word] for word in prompt.text.split()), EOT] if words else [])]


def said(tokens: Sequence[int], ends: Sequence[int] = (EOS, SOI)) -> list[int]:
    """Those in front of the first end."""
    stop = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
    return list(tokens[:stop])


def worth(reference: ChameleonForConditionalGeneration, ids: list[int], tokens: Sequence[int], rows: Sequence[int]) -> list[float]:
    """Log-probability of each token behind ids, shared among rows."""
    found = logits(reference, [*ids, *tokens])[len(ids) - 1 : -1][:, list(rows)].log_softmax(-1)
    return [found[i, list(rows).index(token)].item() for i, token in enumerate(tokens)]


def by_hand(policy: Policy, reference: ChameleonForConditionalGeneration, rollout: Rollout) -> dict[str, list[float]]:
    ids, found = front(policy, rollout.prompt), {}
    for segment in rollout.segments:
        tokens = segment.tokens.tolist()
        if segment.modality == "image":
            found["image"] = worth(reference, [*ids, SOI], tokens, CODES)
            continue
        words = said(tokens)
        counted = tokens[: len(words) + 1]
        found["text"] = worth(reference, ids, counted, SAYS) + [0.0] * (len(tokens) - len(counted))
        ids += words
    return found


def sampled(policy: Policy, kind: Kind, sampling: Sampling = Sampling(steps=STEPS, guidance=1.0)) -> list[Rollout]:  # noqa: B008
    return policy.generate(prompts(kind, 4), range(4), sampling)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_likelihoods_are_those_of_transformers_model_and_head(
    policy: Policy, reference: ChameleonForConditionalGeneration, kind: Kind
) -> None:
    batch = sampled(policy, kind)
    (draw,) = policy.draws(batch, 1, torch.Generator())
    found = policy.draw_tokens(batch, draw)
    for b, rollout in enumerate(batch):
        expected = by_hand(policy, reference, rollout)
        assert expected.keys() == found.keys() == {m for m, kinds in (("text", SPOKEN), ("image", GUIDED)) if kind in kinds}
        for segment in rollout.segments:
            assert found[segment.modality].logprob[b].tolist() == pytest.approx(expected[segment.modality], abs=1e-5)
            assert segment.logprob.tolist() == pytest.approx(expected[segment.modality], abs=1e-5), "as the sampler recorded it"


@torch.no_grad()
def test_the_likelihood_of_a_text_is_a_mean_over_what_it_says_and_its_end(
    policy: Policy, reference: ChameleonForConditionalGeneration
) -> None:
    batch = sampled(policy, "t2t")
    found = policy.log_likelihood(batch, policy.draws(batch, 2, torch.Generator()))[:, MODALITIES.index("text")]
    tokens = [rollout.segments[0].tokens.tolist() for rollout in batch]
    counts = [min(len(said(row)) + 1, len(row)) for row in tokens]
    assert min(counts) < len(tokens[0]), "a text that ends early"
    sums = [sum(by_hand(policy, reference, rollout)["text"]) for rollout in batch]
    assert found.tolist() == pytest.approx([total / count for total, count in zip(sums, counts, strict=True)], abs=1e-5)


@pytest.mark.parametrize("end", [EOS, SOI])
def test_a_text_stands_in_a_sequence_up_to_its_end_which_is_padding_as_all_behind_it(policy: Policy, end: int) -> None:
    view = policy.heads["text"].view(torch.tensor([[16, 17, end, 18], [end, 16, SOI, EOS], [16, 17, 18, 19]]))
    pad = policy.settings.specials.pad
    assert view.ids is not None and view.ids.tolist() == [[16, 17, pad, pad], [pad] * 4, [16, 17, 18, 19]]
    assert view.real is not None and view.real.tolist() == [[True, True, False, False], [False] * 4, [True] * 4]


@pytest.mark.parametrize("kind", GUIDED)
def test_an_image_has_a_finite_loss_and_its_rows_of_the_head_learn(
    policy: Policy, reference: ChameleonForConditionalGeneration, kind: Kind
) -> None:
    """transformers' own forward masks the logits of image tokens: there the loss is infinite, and these rows get no gradient."""
    own = build_chameleon()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 4, 6, 3), dtype=np.uint8)
    outputs = [Output("red circle" if kind in SPOKEN else None, image) for image in images]
    losses = supervised_loss(own, prompts(kind, 4), outputs, torch.Generator().manual_seed(0), drop=0.0)
    expected = []
    for prompt, image in zip(prompts(kind, 4), images, strict=True):
        words = [WORDS["red"], WORDS["circle"]] if kind in SPOKEN else []
        expected.append(-np.mean(worth(reference, [*front(policy, prompt), *words, SOI], codes(policy, image), CODES)))
    assert losses["image"].item() == pytest.approx(np.mean(expected), rel=1e-5)
    losses["image"].backward()
    assert own.model.lm_head.weight.grad[list(CODES)].abs().sum(1).min() > 0

    ids = torch.tensor([[*front(policy, prompts(kind, 1)[0]), SOI, *codes(policy, images[0])]])
    masked = reference(input_ids=ids, labels=ids).loss
    assert not masked.isfinite() or masked > 1e30
    assert own.model(ids)[0, :, list(CODES)].detach().numpy() == pytest.approx(
        logits(reference, ids[0].tolist())[:, list(CODES)].numpy(), abs=1e-4
    )


@pytest.mark.parametrize("kind", SPOKEN)
def test_greedy_text_is_that_of_forwards_without_a_cache(policy: Policy, reference: ChameleonForConditionalGeneration, kind: Kind) -> None:
    own = build_chameleon(answer_tokens=24, text_tokens=24)
    for rollout in sampled(own, kind, Sampling(steps=STEPS, temperature=0.0)):
        ids, tokens = front(policy, rollout.prompt), list[int]()
        while len(tokens) < 24 and not {EOS, SOI} & set(tokens):
            row = logits(reference, [*ids, *tokens])[-1]
            tokens.append(max(SAYS, key=lambda i: row[i].item()))
        assert rollout.segments[0].tokens.tolist() == tokens + tokens[-1:] * (24 - len(tokens))


@pytest.mark.parametrize("shown", [True, False])
def test_guidance_is_the_released_one_of_three_branches(policy: Policy, reference: ChameleonForConditionalGeneration, shown: bool) -> None:
    """``u + 1.2 (i - u) + 3 (f - i)``: of nothing, of the image alone and of the prompt. Drawn from numbers that are known."""
    sampling = Sampling(steps=STEPS, guidance=1.8, input_guidance=0.2) if shown else Sampling(steps=STEPS, guidance=2.0)
    asked = prompts("edit" if shown else "t2i", 4)
    for seed, (prompt, rollout) in enumerate(zip(asked, policy.generate(asked, range(4), sampling), strict=True)):
        uniforms = torch.rand(6, generator=torch.Generator().manual_seed(seed)).tolist()
        drawn: list[int] = []
        for uniform in uniforms:
            fronts = front(policy, prompt), front(policy, prompt, words=False), [BOS]
            f, i, u = (logits(reference, [*ids, SOI, *drawn])[-1, list(CODES)] for ids in fronts)
            mixed = u + 1.2 * (i - u) + 3.0 * (f - i)
            drawn.append(CODES[draw_one(mixed.softmax(-1).tolist(), 1.0, uniform)])
        assert rollout.segments[0].tokens.tolist() == drawn


def test_a_prompt_with_an_image_and_one_without_are_guided_as_each_alone(policy: Policy) -> None:
    sampling = Sampling(steps=STEPS, guidance=1.8, input_guidance=0.7)
    both = [prompts("interleaved", 1)[0], prompts("interleaved+image", 1)[0]]
    together = policy.generate(both, [5, 6], sampling)
    for prompt, seed, rollout in zip(both, (5, 6), together, strict=True):
        (alone,) = policy.generate([prompt], [seed], sampling)
        assert all(np.array_equal(a.tokens, b.tokens) for a, b in zip(alone.segments, rollout.segments, strict=True))


def test_a_prompt_is_read_once_for_its_group(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight rollouts of two prompts, guided: their two prompts and one that is empty."""
    read: list[int] = []
    states = type(policy.model).states

    def watched(self: object, ids: Tensor, *given: object) -> Tensor:
        read.append(len(ids))
        return states(self, ids, *given)

    first, second = prompts("t2i", 2)
    asked, sampling = [first] * 4 + [second] * 4, Sampling(steps=1, guidance=1.0)
    alone = [policy.generate([prompt], [seed], sampling)[0] for seed, prompt in enumerate(asked)]
    monkeypatch.setattr(type(policy.model), "states", watched)
    group = policy.generate(asked, range(8), sampling)
    assert read == [3, *[16] * 5]
    assert all(np.array_equal(a.segments[0].tokens, b.segments[0].tokens) for a, b in zip(group, alone, strict=True))


def test_texts_and_images_in_turn_are_those_of_one_sequence(policy: Policy, reference: ChameleonForConditionalGeneration) -> None:
    """A text that opens an image is followed by it, and what comes then sees both: greedy, by hand."""
    kinds, reference = set(), deepcopy(reference)
    for bias in (0.0, 3.0):
        own = build_chameleon()
        with torch.no_grad():
            own.model.lm_head.weight[SOI] += bias * own.model.lm_head.weight[SOI]
            reference.lm_head.weight.copy_(own.model.lm_head.weight)
        for prompt in prompts("interleaved", 4):
            parts = own.mixed(prompt, 0, Sampling(steps=STEPS, temperature=0.0), images=2)
            ids, expected, left = front(policy, prompt), [], 2
            while True:
                tokens: list[int] = []
                while len(tokens) < own.settings.text_tokens and not {EOS, SOI} & set(tokens):
                    row = logits(reference, [*ids, *tokens])[-1]
                    tokens.append(max(SAYS, key=lambda i: row[i].item()))
                expected += ["t"] if said(tokens) else []
                ids += said(tokens)
                if SOI not in tokens or not left:
                    break
                left -= 1
                ids.append(SOI)
                for _ in range(6):
                    row = logits(reference, ids)[-1]
                    ids.append(max(CODES, key=lambda i: row[i].item()))
                ids.append(EOI)
                expected.append("i")
            assert ["t" if part.image is None else "i" for part in parts] == expected
            words = [token for token in ids[len(front(policy, prompt)) :] if token in WORDS.values()]
            assert " ".join(part.text or "" for part in parts if part.image is None).split() == own.layout.text.decode(words).split()
            kinds |= set(expected)
    assert kinds == {"t", "i"}


@pytest.mark.parametrize("swin_norm", [False, True])
@torch.no_grad()
def test_hidden_states_are_those_of_transformers_model_whatever_its_norms_and_heads(swin_norm: bool) -> None:
    """Both orders of the norms that releases have, grouped keys, and padding on either side."""
    torch.manual_seed(1)
    sizes: dict[str, Any] = {"hidden_size": 48, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 6}
    named = {code_name(code): 4 + code for code in range(5)}
    config = ChameleonConfig(**sizes, num_key_value_heads=2, vocab_size=30, vocabulary_map=named, swin_norm=swin_norm)
    own = Chameleon(config).eval()
    for parameter in own.parameters():
        torch.nn.init.normal_(parameter, mean=0.5, std=0.3)
    theirs = ChameleonForConditionalGeneration(config.backbone()).eval()
    theirs.load_state_dict(own.state_dict(), strict=False)
    theirs.model.config._attn_implementation = "eager"
    rows = [[5, 9, 20, 21, 7, 3], [8, 29, 4], [17, 5, 5, 6]]
    ids = torch.tensor([row + [0] * (6 - len(row)) if i % 2 else [0] * (6 - len(row)) + row for i, row in enumerate(rows)])
    found = own(ids, ids != 0)
    for b, row in enumerate(rows):
        expected = theirs.lm_head(theirs.model(input_ids=torch.tensor([row])).last_hidden_state)[0]
        assert torch.allclose(found[b, ids[b] != 0], expected, atol=1e-4)


def test_names_of_codes_are_their_digits_as_letters() -> None:
    assert [code_name(code) for code in (0, 7, 12, 8191)] == ["IMGIMGAZ", "IMGIMGHZ", "IMGIMGBCZ", "IMGIMGIBJBZ"]
    assert code_ids({"IMGIMGAZ": 9, "<image>": 3, "IMGIMGBZ": 7, "IMGIMG": 5, "word": 1}).tolist() == [9, 7]
    for wrong in ({"IMGIMGAZ": 9, "IMGIMGCZ": 3}, {"word": 1}):
        with pytest.raises(ValueError, match="IMGIMG"):
            code_ids(wrong)


def test_a_vocabulary_that_is_not_the_settings_is_an_error(policy: Policy) -> None:
    from policies.families.chameleon import CHAMELEON

    wrong = replace(policy.settings, specials=replace(policy.settings.specials, soi=EOI, eoi=SOI))
    with pytest.raises(ValueError, match="<racm3:break>"):
        CHAMELEON.policy(policy.model, policy.layout.text.tokenizer, policy.layout.images.module, wrong)


def test_image_codes_that_do_not_stand_in_a_row_are_an_error(policy: Policy) -> None:
    from policies.families.chameleon import CHAMELEON

    model = deepcopy(policy.model)
    model.config.vocabulary_map = {**model.config.vocabulary_map, code_name(0): 1000}
    with pytest.raises(ValueError, match="in a row"):
        CHAMELEON.policy(model, policy.layout.text.tokenizer, policy.layout.images.module, policy.settings)


@pytest.fixture(scope="module")
def embedded() -> Policy:
    """The untrained embedded policy."""
    torch.manual_seed(0)
    return new_chameleon(CHECKPOINTS / "scenes-mmada" / "image_tokenizer", scenes.VOCABULARY)


def test_the_embedded_policy_learns_every_kind_of_prompt_that_its_recipe_names(embedded: Policy) -> None:
    """Some steps on the same few examples lower every loss; nothing of an example is too long for it."""
    assert 1e6 < sum(p.numel() for p in embedded.model.parameters()) < 2e6
    made = {kind: [scenes.example("pretrain", i, 0, *scenes.FORMS[kind]) for i in range(2)] for kind in CHAMELEON_RECIPE.kinds}
    optimizer = torch.optim.AdamW(embedded.model.parameters(), lr=2e-3)
    curve: list[dict[str, float]] = []
    for _ in range(12):
        losses = {
            f"{kind} {modality}": loss
            for kind, examples in made.items()
            for modality, loss in supervised_loss(
                embedded, [e.prompt for e in examples], [e.output for e in examples], torch.Generator().manual_seed(0), drop=0.0
            ).items()
        }
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        curve.append({name: loss.item() for name, loss in losses.items()})
    assert len(curve[0]) == 2 + 2 + 2 * 2 and set(made) == set(KINDS_OF_PROMPTS)
    assert all(curve[-1][name] < 0.6 * loss for name, loss in curve[0].items())
    for kind, examples in made.items():
        image, text = examples[0].output.image, examples[0].output.text
        (rollout,) = embedded.generate([examples[0].prompt], [0], replace(embedded.sampling, guidance=1.0))
        assert [s.modality for s in rollout.segments] == [m for m, x in (("text", text), ("image", image)) if x is not None], kind
