"""The reward protocol: TRL's signature, full scores beside it, and the checks that keep a failed reward from passing as a low one.

A reward is called as TRL calls its reward functions, ``reward(prompts=..., completions=..., **columns) -> list[float | None]``. It returns
one value per completion, None where it does not apply. Completions are ``pararl.types.Output``, or what ``rewards/signature.py`` says. The
columns are the other fields of the prompts (``id``, ``task``, ``spec``, ``split``, ``image``) and the keys of their specs, one entry per
completion. A failure is an exception, never a 0.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from pararl.types import Judgement, Output, Prompt, Rollout, Score
from rewards.signature import columns_of

Sample = tuple[Prompt, Output, Output]
"""A prompt with a known good and a known bad output."""
LARGEST = 1e18
"""Values beyond it are refused: float32 does not hold their squares."""


class Reward(ABC):
    """A reward with full scores; subclasses give ``name``, ``score`` and, for the start-up self-test, ``examples``."""

    name: str

    @abstractmethod
    def score(self, prompts: Sequence[str], completions: Sequence[Output], **columns: Sequence[Any]) -> list[Score | None]:
        """One score per completion, None where the reward does not apply. Raises when it cannot tell; never a 0 for a failure."""

    def examples(self) -> Sequence[Sample]:
        """Prompts with a known good and a known bad output, which ``self_test`` expects to be ranked right."""
        return ()

    def __call__(self, prompts: Sequence[str], completions: Sequence[Output], **columns: Sequence[Any]) -> list[float | None]:
        """The soft scores, as TRL asks for them."""
        scores = check_scores(self.name, self.score(prompts, completions, **columns), len(completions), columns.get("id", ()))
        return [None if score is None else score.value for score in scores]


def check_scores(name: str, scores: Sequence[Score | None], completions: int, ids: Sequence[Any] = ()) -> list[Score | None]:
    """The scores, if there is exactly one per completion and all that they hold is finite; else ValueError that names the reward.

    ``ids`` of the prompts: what a completion is called by, beside its place.
    """
    if len(scores) != completions:
        raise ValueError(f"reward {name} returned {len(scores)} values for {completions} completions: it must return one for each")
    for place, score in enumerate(scores):
        where = f"completion {place}{f' (prompt {ids[place]})' if len(ids) == completions else ''}"
        if score is not None and not math.isfinite(score.value):
            raise ValueError(f"reward {name} returned {score.value} for {where}: return None where it does not apply, or raise")
        if score is not None and abs(score.value) > LARGEST:
            raise ValueError(f"reward {name} returned {score.value} for {where}: bring its values within {LARGEST:g}")
        for field, axes in (("credit", 2), ("words", 1)) if score is not None else ():
            given = getattr(score, field)
            if given is not None and not (isinstance(given, np.ndarray) and given.ndim == axes and np.isfinite(given).all()):
                raise ValueError(f"reward {name}, {where}: {field} must be a finite numpy array of {axes} axes, got {given!r}")
    return list(scores)


def score_outputs(reward: Reward, prompts: Sequence[Prompt], outputs: Sequence[Output]) -> list[Score | None]:
    """The checked score of each output under the prompt of the same place, in one batch."""
    columns: dict[str, Sequence[Any]] = {
        "id": [prompt.id for prompt in prompts],
        "task": [prompt.task for prompt in prompts],
        "spec": [prompt.spec for prompt in prompts],
        "split": [prompt.split for prompt in prompts],
        "image": [prompt.image for prompt in prompts],
    }
    columns |= columns_of([prompt.spec for prompt in prompts])
    scores = reward.score(prompts=[prompt.text for prompt in prompts], completions=list(outputs), **columns)
    return check_scores(reward.name, scores, len(outputs), columns["id"])


def score_rollouts(reward: Reward, rollouts: Sequence[Rollout]) -> list[Judgement]:
    """The judgement of each rollout, on its final output and on its guesses at the recorded steps; all scored in one batch."""
    shown = [(rollout.prompt, output) for rollout in rollouts for output in (rollout.output, *rollout.guesses) if output is not None]
    prompts, outputs = [prompt for prompt, _ in shown], [output for _, output in shown]
    # One batch for final outputs and guesses: a model that scores is called once.
    scores = iter(score_outputs(reward, prompts, outputs) if outputs else [])
    return [Judgement(next(scores), tuple(None if g is None else next(scores) for g in rollout.guesses)) for rollout in rollouts]


def self_test(reward: Reward) -> int:
    """Score the reward's own examples; returns how many there are (0 for a plain function, which brings none).

    Raises RuntimeError when a good output does not score above the bad one, does not hold strictly, or the bad one does.
    """
    samples = reward.examples()
    if not samples:
        return 0
    prompts = [prompt for prompt, _, _ in samples for _ in range(2)]
    scores = score_outputs(reward, prompts, [output for _, good, bad in samples for output in (good, bad)])
    for place, (prompt, _, _) in enumerate(samples):
        good, bad = scores[2 * place], scores[2 * place + 1]
        if good is None or bad is None:
            raise RuntimeError(f"self-test of reward {reward.name}: it does not apply to its own example {prompt.id} ({prompt.text!r})")
        # A tie fails as well: a reward that cannot tell the two apart teaches nothing.
        if good.value <= bad.value or good.strict is False or bad.strict is True:
            raise RuntimeError(
                f"self-test of reward {reward.name} failed on {prompt.id} ({prompt.text!r}): the good output got {good.value:.3f} (strict "
                f"{good.strict}), the bad one {bad.value:.3f} (strict {bad.strict}). Do not train on this reward before it ranks them right"
            )
    return len(samples)
