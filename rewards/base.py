"""The reward protocol: TRL's signature, full scores beside it, and the checks that keep a failed reward from passing as a low one.

A reward is called as TRL calls its reward functions, ``reward(prompts=..., completions=..., **columns) -> list[float | None]``. It returns
one value per completion, None where it does not apply. Completions are ``pararl.types.Output``; the columns are the other fields of the
prompts (``id``, ``task``, ``spec``, ``split``, ``image``), one entry per completion. A failure is an exception, never a 0.
"""

import asyncio
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, SupportsFloat

import numpy as np

from pararl.types import Judgement, Output, Prompt, Rollout, Score

Sample = tuple[Prompt, Output, Output]
"""A prompt with a known good and a known bad output."""
Values = Sequence[float | None]


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
        scores = check_scores(self.name, self.score(prompts, completions, **columns), len(completions))
        return [None if score is None else score.value for score in scores]


class FunctionReward(Reward):
    """A user's function with TRL's signature, sync or async, as a reward: its values become scores without strict or atoms.

    Values may have any finite size; None stays None. Raises ValueError, naming the function, for another number of values than completions
    and for a value that is not finite. A value that is not a number is a TypeError. What the function raises passes through.
    """

    def __init__(self, function: Callable[..., Values | Awaitable[Values]], name: str | None = None) -> None:
        """Wrap ``function``; ``name`` defaults to the function's own (its class's for a callable object)."""
        self.function = function
        self.name = name or (function.__name__ if inspect.isroutine(function) else type(function).__name__)

    def score(self, prompts: Sequence[str], completions: Sequence[Output], **columns: Sequence[Any]) -> list[Score | None]:
        """Call the function once with the whole batch, by keyword, and check what it returns."""
        result = self.function(prompts=prompts, completions=completions, **columns)
        values = _wait(result) if inspect.isawaitable(result) else result
        if isinstance(values, str) or not isinstance(values, Iterable):
            raise TypeError(f"reward {self.name} returned {type(values).__name__}: it must return a list with one value per completion")
        scores = [None if value is None else Score(self._number(value)) for value in values]
        return check_scores(self.name, scores, len(completions))

    def _number(self, value: object) -> float:
        if isinstance(value, SupportsFloat):  # Python and numpy numbers, 0-d arrays and tensors; not strings
            return float(value)
        raise TypeError(f"reward {self.name} returned a {type(value).__name__} ({value!r}) where a number or None was expected")


def _wait(result: Awaitable[Values]) -> Values:
    """The result of an awaitable, also from inside a running event loop (an async actor), where a thread of its own waits for it."""

    async def wait() -> Values:
        return await result

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(wait())
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, wait()).result()


def check_scores(name: str, scores: Sequence[Score | None], completions: int) -> list[Score | None]:
    """The scores, if there is exactly one per completion and all that they hold is finite; else ValueError that names the reward."""
    if len(scores) != completions:
        raise ValueError(f"reward {name} returned {len(scores)} values for {completions} completions: it must return one for each")
    for place, score in enumerate(scores):
        if score is not None and not math.isfinite(score.value):
            raise ValueError(f"reward {name} returned {score.value} for completion {place}: return None where it does not apply, or raise")
        for field, axes in (("credit", 2), ("words", 1)) if score is not None else ():
            given = getattr(score, field)
            if given is not None and not (isinstance(given, np.ndarray) and given.ndim == axes and np.isfinite(given).all()):
                raise ValueError(f"reward {name}, completion {place}: {field} must be a finite numpy array of {axes} axes, got {given!r}")
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
    scores = reward.score(prompts=[prompt.text for prompt in prompts], completions=list(outputs), **columns)
    return check_scores(reward.name, scores, len(outputs))


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
