"""Rollouts of the mmada policy equal an independent sampler and, teacher-forced, the recorded run of the reference."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from pararl.options import Sampling
from pararl.types import Modality, Prompt
from policies import Policy
from policies.backbones.llada import MMadaModelLM
from policies.canvas import Canvas, Specials, canvas
from policies.families.mmada import MMADA
from policies.heads.base import Branch
from policies.image.magvitv2 import MAGVITv2
from policies.settings import Part, Settings
from tests.policies.by_hand import KINDS, Kind, draw_one, prompts, sequence, text_length
from tests.policies.conftest import logits_of

STEPS = 4


def vocabulary(policy: Policy) -> list[str]:
    """The text tokens in the order of their ids."""
    table = policy.layout.text.tokenizer.get_vocab()
    return sorted(table, key=lambda word: table[word])


# ---- an independent sampler: one row, python loops, full logits, no padding


class OneRow:
    """LLaDA's block-wise text sampler and MaskGIT, together or alone, for one prompt."""

    def __init__(self, policy: Policy, prompt: Prompt, seed: int, sampling: Sampling) -> None:
        self.policy, self.sampling, self.prompt = policy, sampling, prompt
        grid = policy.settings.grid
        answers = prompt.task in ("t2t", "i2t")
        self.n_image = 0 if answers else grid[0] * grid[1]
        self.n_text = text_length(policy, prompt.task)
        self.block = policy.settings.answer_block if answers else policy.settings.text_block
        sizes: dict[Modality, int] = {"image": self.n_image, "text": self.n_text}
        self.tokens: dict[Modality, list[int | None]] = {m: [None] * n for m, n in sizes.items() if n}
        self.when = {m: [-1] * len(x) for m, x in self.tokens.items()}
        self.logprob = {m: [0.0] * len(x) for m, x in self.tokens.items()}
        self.guesses: dict[Modality, list[list[int]]] = {m: [] for m in self.tokens}
        count = self.n_image + self.n_text
        self.noise = torch.rand(2, sampling.steps, count, generator=torch.Generator().manual_seed(seed)).tolist()

    def log_probabilities(self, with_prompt: bool) -> dict[Modality, Tensor]:
        """Float64 logits of each modality, [n, rows], from one forward without padding."""
        policy, specials = self.policy, self.policy.settings.specials
        fill = {m: [specials.mask if t is None else t for t in x] for m, x in self.tokens.items()}
        ids, starts = sequence(policy, self.prompt, fill, with_prompt)
        full = policy.model(torch.tensor([ids]))[0].double()
        first = len(policy.layout.text.tokenizer)
        out: dict[Modality, Tensor] = {}
        if self.n_image:
            out["image"] = full[starts["image"] : starts["image"] + self.n_image, first : first + 8]
        if self.n_text:
            out["text"] = full[starts["text"] : starts["text"] + self.n_text, :first].clone()
            never = [i for i, word in enumerate(vocabulary(policy)) if word.startswith(("<", "[")) and i != specials.eos]
            out["text"][:, never] = -torch.inf
        return out

    def due(self, modality: Modality, step: int) -> tuple[list[int], int]:
        """Masked positions that may be committed at a step, and how many of them are."""
        masked = [i for i, w in enumerate(self.when[modality]) if w < 0]
        steps = self.sampling.steps
        if modality == "image":
            stay = math.floor(self.n_image * math.cos(math.pi / 2 * (step + 1) / steps))
            stay = 0 if step == steps - 1 else max(1, min(len(masked) - 1, stay))
            return masked, max(0, len(masked) - stay)
        size = self.block
        per_block = steps * size // self.n_text
        block, inner = divmod(step, per_block)
        count = size // per_block + (1 if inner < size % per_block else 0)
        return [i for i in masked if block * size <= i < (block + 1) * size], count

    def step(self, step: int) -> None:
        """One denoising step: every modality looks at the sequence as it was before it."""
        plain = self.log_probabilities(True)
        without = self.log_probabilities(False) if self.sampling.guidance else plain
        decided: list[tuple[Modality, int, int, float]] = []
        before = 0
        for modality, x in self.tokens.items():
            g = self.sampling.guidance if modality == "image" else 0.0
            guided = (plain[modality] * (1 + g) - without[modality] * g if g else plain[modality]).softmax(-1)
            honest = plain[modality].log_softmax(-1)
            offset = len(self.policy.layout.text.tokenizer) if modality == "image" else 0
            guess = [t for t in x]
            confidence: dict[int, float] = {}
            for i, known in enumerate(x):
                if known is None:
                    drawn = draw_one(guided[i].tolist(), self.sampling.temperature, self.noise[0][step][before + i])
                    guess[i] = drawn + offset
                    scale = self.sampling.choice_temperature * (1 - (step + 1) / self.sampling.steps) if modality == "image" else 0.0
                    gumbel = -math.log(-math.log(self.noise[1][step][before + i]))
                    confidence[i] = math.log(guided[i, drawn]) + scale * gumbel
            self.guesses[modality].append([t for t in guess if t is not None])
            eligible, count = self.due(modality, step)
            for i in sorted(eligible, key=lambda i: -confidence[i])[:count]:
                token = self.guesses[modality][-1][i]
                decided.append((modality, i, token, float(honest[i, token - offset])))
            before += len(x)
        for modality, i, token, logp in decided:
            self.tokens[modality][i], self.when[modality][i], self.logprob[modality][i] = token, step, logp

    def run(self) -> "OneRow":
        for step in range(self.sampling.steps):
            self.step(step)
        return self


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("guidance", [0.0, 2.0])
@pytest.mark.parametrize("temperature", [0.0, 1.0, 1.7])
def test_rollouts_equal_an_independent_one_row_sampler(policy: Policy, kind: Kind, guidance: float, temperature: float) -> None:
    """At temperature 0 without Gumbel noise this is greedy decoding; otherwise the same uniforms give the same draws."""
    sampling = Sampling(steps=STEPS, recorded=STEPS, temperature=temperature, choice_temperature=temperature, guidance=guidance)
    batch = prompts(kind)
    rollouts = policy.generate(batch, range(10, 10 + len(batch)), sampling)
    for prompt, rollout in zip(batch, rollouts, strict=True):
        expected = OneRow(policy, prompt, rollout.seed, sampling).run()
        assert [s.modality for s in rollout.segments] == list(expected.tokens)
        for segment in rollout.segments:
            assert segment.tokens.tolist() == expected.tokens[segment.modality]
            assert segment.commit_step.tolist() == expected.when[segment.modality]
            assert segment.guesses.tolist() == expected.guesses[segment.modality]
            assert np.allclose(segment.logprob, expected.logprob[segment.modality], rtol=0, atol=1e-4)


# ---- the recorded text-to-image run of the reference, teacher-forced at every step


@pytest.fixture(scope="module")
def released(mmada_model: MMadaModelLM, magvit_model: MAGVITv2) -> Policy:
    """The recorded backbone and tokenizer as one policy; the word "w7" is id 7."""
    core = Tokenizer(WordLevel({f"w{i}": i for i in range(157)}, unk_token="w0"))
    core.pre_tokenizer = WhitespaceSplit()
    specials = Specials(mask=140, bos=141, eos=142, soi=143, eoi=144, t2i=145, mmu=146, pad=147, interleave=148)
    settings = Settings(grid=(4, 4), prompt_tokens=10, specials=specials)
    return MMADA.policy(mmada_model, PreTrainedTokenizerFast(tokenizer_object=core), magvit_model, settings)


def recorded_prompts(rows: Tensor) -> list[Prompt]:
    """The prompts whose ids stand between <bos> and <eos> of the recorded rows."""
    found = []
    for i, row in enumerate(rows.tolist()):
        words: Sequence[int] = row[row.index(141) + 1 : row.index(142)]
        found.append(Prompt(str(i), "t2i", " ".join(f"w{w}" for w in words)))
    return found


def both_canvases(policy: Policy, prompts: Sequence[Prompt], width: int) -> tuple[Canvas, Canvas]:
    """With the prompts and without their texts, padded to ``width`` columns as the reference pads."""
    parts: tuple[Part | None, ...] = (None, "text")
    with_text, without = (
        canvas([policy.layout.prefix(p, without=part) for p in prompts], policy.layout.tail("t2i"), policy.settings.specials.pad, width)
        for part in parts
    )
    return with_text, without


@torch.no_grad()
def test_guided_probabilities_equal_the_recorded_ones_at_every_step(released: Policy, mmada_cases: dict[str, Tensor]) -> None:
    rows = mmada_cases["t2igen.input_ids"]
    blank, free = both_canvases(released, recorded_prompts(rows), 13)
    for name, ours in (("", blank), ("uncond_", free)):
        assert torch.equal(ours.ids, mmada_cases[f"t2igen.{name}input_ids"])
        assert torch.equal(ours.attention.long(), mmada_cases[f"t2igen.{name}attention_mask"])
    call = logits_of(released, blank, [Branch(free, {"image": 3.5})])
    for step, given in enumerate(mmada_cases["t2igen.trace_model_input"]):
        ((_, guided),) = call(given[:3], blank.spans)
        assert torch.allclose(guided.softmax(-1), mmada_cases["t2igen.trace_probs"][step], rtol=0, atol=2e-5), step


@torch.no_grad()
def test_a_blank_canvas_of_wider_padding_gives_the_same_guided_probabilities(released: Policy, mmada_cases: dict[str, Tensor]) -> None:
    """Ours pads to the longest prompt of a batch, the reference to a fixed width."""
    some = recorded_prompts(mmada_cases["t2igen.input_ids"])
    outcomes = []
    for width in (13, 13 + 9):
        blank, free = both_canvases(released, some, width)
        ((_, guided),) = logits_of(released, blank, [Branch(free, {"image": 3.5})])(blank.ids, blank.spans)
        outcomes.append(guided.softmax(-1))
    assert torch.allclose(outcomes[0], outcomes[1], rtol=0, atol=2e-5)
    assert torch.allclose(outcomes[0], mmada_cases["t2igen.trace_probs"][0], rtol=0, atol=2e-5)
