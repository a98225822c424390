"""The pieces of the denoising loop: draws follow the softmax, commits follow the plan, recorded reference runs are reproduced."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from policies.backbones.llada import MMadaModelLM
from policies.canvas import Span
from policies.sampling.denoise import Logits, SegmentPlan, chosen_at, commit, denoise, draw, image_plan, most_confident, text_plan
from tests.wording import telling

LAST_UNIFORM = 1 - 2**-24
"""The largest float32 that torch.rand gives."""


# ---- draws


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax(temperature: float) -> None:
    """Chi-square with 7 degrees of freedom: above 29.9 once in ten thousand."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(8, generator=generator) * 0.8
    count = 20_000
    drawn = draw(logits.expand(count, 8), temperature, torch.rand(count, generator=generator))
    expected = torch.softmax(logits.double() / temperature, 0) * count
    assert expected.min() > 5
    assert float(((torch.bincount(drawn, minlength=8) - expected) ** 2 / expected).sum()) < 29.9
    uniform = torch.full_like(expected, count / 8)
    assert float(((torch.bincount(drawn, minlength=8) - uniform) ** 2 / uniform).sum()) > 29.9, "the test can tell distributions apart"


def test_evenly_spaced_uniforms_give_every_row_its_exact_share() -> None:
    logits = torch.randn(40, generator=torch.Generator().manual_seed(1)) * 2
    count = 10_000
    drawn = draw(logits.expand(count, 40), 1.0, (torch.arange(count) + 0.5) / count)
    shares = torch.bincount(drawn, minlength=40) / count
    assert float((shares - logits.softmax(0)).abs().max()) < 1.01 / count
    assert (drawn.diff() >= 0).all(), "inverse transform is monotone"


def test_rows_at_minus_infinity_are_never_drawn() -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(300, generator=generator) * 3
    banned = torch.rand(300, generator=generator) < 0.4
    banned[[0, 1, 298, 299]] = True
    logits[banned] = -torch.inf
    uniform = torch.cat((torch.rand(50_000, generator=generator), torch.tensor([0.0, 1e-30, LAST_UNIFORM])))
    for temperature in (0.0, 0.1, 1.0, 50.0):
        drawn = draw(logits.expand(len(uniform), 300), temperature, uniform)
        assert not banned[drawn].any()
    assert len(drawn.unique()) == int((~banned).sum()), "at a high temperature all others are drawn"


def test_rows_at_minus_infinity_are_not_drawn_where_a_running_sum_rounds_upwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """A parallel scan, as GPUs run it, need not be monotone: here the sum jumps by a thousandth on every banned row."""
    logits = torch.zeros(20)
    logits[::2] = -torch.inf
    exact = Tensor.cumsum
    monkeypatch.setattr(Tensor, "cumsum", lambda self, dim: exact(self, dim) + 1e-3 * (self == 0))
    count = 20_000
    drawn = draw(logits.expand(count, 20), 1.0, torch.arange(count) / count)
    assert drawn.unique().tolist() == list(range(1, 20, 2))


def test_extreme_uniforms_draw_the_first_and_the_last_possible_row() -> None:
    logits = torch.tensor([[-torch.inf, 0.3, -torch.inf, 1.0, -0.5, -torch.inf]]).expand(3, 6)
    assert draw(logits, 1.0, torch.tensor([0.0, 1e-30, LAST_UNIFORM])).tolist() == [1, 1, 4]


@pytest.mark.parametrize("only", [0, 3, 6])
def test_a_single_possible_row_is_always_drawn(only: int) -> None:
    logits = torch.full((4, 7), -torch.inf)
    logits[:, only] = -3.0
    assert draw(logits, 1.0, torch.tensor([0.0, 0.4, 0.999, LAST_UNIFORM])).tolist() == [only] * 4


def test_temperature_zero_is_the_arg_max_and_ignores_the_noise() -> None:
    logits = torch.randn(5, 6, 9, generator=torch.Generator().manual_seed(3))
    for uniform in (torch.zeros(5, 6), torch.full((5, 6), LAST_UNIFORM)):
        assert torch.equal(draw(logits, 0.0, uniform), logits.max(-1).indices)


@pytest.mark.parametrize("shift", [-4096.0, 4096.0])
def test_a_constant_added_to_all_logits_changes_no_draw(shift: float) -> None:
    """Exponentials of such numbers are 0 or infinite; the logits are eighths, so that nothing is rounded."""
    generator = torch.Generator().manual_seed(4)
    logits = torch.randint(-24, 24, (500, 30), generator=generator) / 8
    uniform = torch.rand(500, generator=generator)
    for temperature in (0.0, 0.5, 1.0):
        assert torch.equal(draw(logits + shift, temperature, uniform), draw(logits, temperature, uniform))


# ---- commits


def test_the_most_confident_eligible_positions_are_chosen() -> None:
    confidence = torch.tensor([[0.1, 0.9, 0.5, 0.7], [0.4, 0.3, 0.2, 0.1]])
    eligible = torch.tensor([[True, False, True, True], [True, True, True, True]])
    assert most_confident(confidence, eligible, 2).tolist() == [[False, False, True, True], [True, True, False, False]]
    assert most_confident(confidence, eligible, 0).sum() == 0
    assert torch.equal(most_confident(confidence, eligible, 4), eligible), "no more than the eligible ones"


def test_gumbel_noise_is_annealed_linearly_to_nothing() -> None:
    plan = image_plan(Span("image", 0, 2), 4, 4, 1.0, choice_temperature=2.0)
    plan = replace(plan, commits=(1, 1, 1, 1))
    logprob, gumbel = torch.tensor([[0.0, -1.0]]), torch.tensor([[0.0, 1.0]])
    masked = torch.ones(1, 2, dtype=torch.bool)
    # Weights 1.5, 1, 0.5, 0 of one unit of noise against one nat: the second position wins above weight 1.
    second = [bool(commit(plan, step, logprob, masked, gumbel * 1.01)[0, 1]) for step in range(4)]
    assert second == [True, True, False, False]


def test_the_ends_of_the_noise_are_numbers() -> None:
    """The Gumbel noise of a uniform number of 0 is minus infinity, which times a temperature of 0 is no number and would come first."""
    uniform = torch.tensor([[0.0, 0.5, LAST_UNIFORM, 0.0]])
    logprob, masked = torch.tensor([[-9.0, -1.0, -8.0, -2.0]]), torch.ones(1, 4, dtype=torch.bool)
    plan = text_plan(Span("text", 0, 4), 2, 4, 1.0)
    assert chosen_at(plan, 0, logprob, masked, uniform).tolist() == [[False, True, False, True]]
    # Noise of -3.8, 0.4, 16.6 and -3.8: the third is first, and whatever the noise all are committed where all are due.
    for count, expected in ((1, [False, False, True, False]), (4, [True] * 4)):
        noisy = replace(plan, commits=(count, 0), choice=(1.0, 0.0))
        assert chosen_at(noisy, 0, logprob, masked, uniform).tolist() == [expected]


def test_only_masked_positions_before_the_window_are_committed() -> None:
    plan = SegmentPlan(Span("text", 0, 6), (2,), (4,), 1.0, (0.0,))
    masked = torch.tensor([[False, True, True, True, True, True]])
    assert commit(plan, 0, torch.tensor([[9.0, 1.0, 2.0, 3.0, 8.0, 7.0]]), masked, torch.zeros(1, 6)).tolist() == [
        [False, False, True, True, False, False]
    ]


@pytest.mark.parametrize(("tokens", "steps", "total"), [(16, 6, 6), (16, 3, 8), (5, 8, 8), (1, 4, 4)])
def test_an_image_plan_commits_every_token(tokens: int, steps: int, total: int) -> None:
    plan = image_plan(Span("image", 3, 3 + tokens), steps, total, 1.0, 1.0)
    assert len(plan.commits) == total and sum(plan.commits) == tokens and sum(c > 0 for c in plan.commits) <= steps


def test_an_image_plan_of_more_updates_than_steps_is_an_error() -> None:
    with pytest.raises(ValueError, match=telling(8, 4)):
        image_plan(Span("image", 0, 16), 8, 4, 1.0, 1.0)


# ---- recorded runs of the reference's text sampler, over the full vocabulary as it has it


def text_run(model: MMadaModelLM, prompt: Tensor, attention: Tensor, tokens: int, steps: int, block: int) -> tuple[Tensor, Tensor]:
    """Output ids [batch, length] of a greedy run and what the model was given at each step, [steps, batch, length]."""
    given: list[Tensor] = []

    def logits(ids: Tensor, spans: Sequence[Span]) -> list[tuple[Tensor, Tensor]]:
        given.append(ids.clone())
        full = model(ids, attention)
        return [(full[:, s.columns], full[:, s.columns]) for s in spans]

    call: Logits = logits
    batch, start = prompt.shape
    ids = torch.cat((prompt, torch.full((batch, tokens), 140)), 1)
    span = Span("text", start, start + tokens)
    noise = torch.rand(2, steps, batch, tokens, generator=torch.Generator().manual_seed(0))
    (trace,) = denoise(call, ids, [text_plan(span, steps, block, 0.0)], noise, 140, [0])
    return torch.cat((prompt, trace.tokens), 1), torch.stack(given)


@torch.no_grad()
@pytest.mark.parametrize("case", ["gen", "gen_pad"])
def test_greedy_text_equals_the_recorded_run_step_by_step(mmada_model: MMadaModelLM, mmada_cases: dict[str, Tensor], case: str) -> None:
    prompt = mmada_cases[f"{case}.prompt_ids"]
    whole = torch.ones(2, 26, dtype=torch.bool)
    attention = mmada_cases["gen_pad.attention_mask"].bool() if case == "gen_pad" else whole
    assert (case == "gen_pad") == bool((attention != whole).any())
    output, given = text_run(mmada_model, prompt, attention, tokens=16, steps=8, block=8)
    assert torch.equal(given, mmada_cases[f"{case}.trace"])
    assert torch.equal(output, mmada_cases[f"{case}.output_ids"])


@torch.no_grad()
def test_greedy_answers_about_an_image_equal_the_recorded_run(mmada_model: MMadaModelLM, mmada_cases: dict[str, Tensor]) -> None:
    prompt = mmada_cases["mmu.input_ids"]
    output, given = text_run(mmada_model, prompt, torch.ones(1, 38, dtype=torch.bool), tokens=12, steps=6, block=12)
    assert torch.equal(given, mmada_cases["mmu.trace"])
    assert torch.equal(output, mmada_cases["mmu.output_ids"])


# ---- the recorded run of the reference's image sampler, teacher-forced


def test_image_commits_equal_the_recorded_ones_on_the_recorded_draws(mmada_cases: dict[str, Tensor], golden: Path) -> None:
    """The reference's random stream is replayed: per step one multinomial draw, then one uniform a position for the Gumbel noise."""
    probabilities, drawn = mmada_cases["t2igen.trace_probs"], mmada_cases["t2igen.trace_drawn"]
    stays = mmada_cases["t2igen.trace_masking"].bool()
    steps, batch, tokens, codes = probabilities.shape
    tables = json.loads((golden / "schedules" / "schedules.json").read_text())["maskgit_cosine"]
    temperatures = next(t for t in tables if (t["N"], t["T"]) == (tokens, steps))["temperature_used"]
    lengths = mmada_cases["t2igen.trace_mask_len"]
    commits = image_plan(Span("image", 0, tokens), steps, steps, 1.0, 1.0).commits
    generator = torch.Generator().manual_seed(77)
    masked = torch.ones(batch, tokens, dtype=torch.bool)
    for step in range(steps - 1):  # at the last step the reference keeps one token masked, ours none
        again = torch.multinomial(probabilities[step].view(-1, codes), 1, generator=generator).view(batch, tokens)
        assert torch.equal(again, drawn[step]), "the replayed stream is the recorded one"
        gumbel = -(-torch.zeros(batch, tokens).uniform_(0, 1, generator=generator).log()).log()
        assert (tokens - sum(commits[: step + 1])) == lengths[step].unique().item()
        # The reference's temperature compounds over the steps, ours is linear: give ours the reference's.
        plan = SegmentPlan(Span("image", 0, tokens), commits, (tokens,) * steps, 1.0, (temperatures[step],) * steps)
        logprob = probabilities[step].gather(-1, drawn[step][..., None]).squeeze(-1).log()
        masked &= ~commit(plan, step, logprob, masked, gumbel)
        assert torch.equal(masked, stays[step]), step
