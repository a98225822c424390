"""A function of the user's as a reward: called as TRL calls it, and everything that it returns is checked."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, SupportsFloat

from pararl.types import Output, Score
from rewards.base import Reward, check_scores
from rewards.signature import columns_of, form_of, formed, wanted

Values = Sequence[float | None]


class FunctionReward(Reward):
    """A function with TRL's signature, sync or async, as a reward: its values become scores without strict or atoms.

    Values may have any size up to ``rewards.base.LARGEST``; None stays None. A function that asks for texts or messages
    (``rewards/signature.py``) is not asked about outputs without a text: None. Raises ValueError, naming the function, for another number
    of values than completions and for a value that is not finite. A value that is not a number is a TypeError. A call of ``exit`` is a
    RuntimeError. Whatever else the function raises passes through.
    """

    def __init__(self, function: Callable[..., Values | Awaitable[Values]], name: str | None = None) -> None:
        """Wrap ``function``; ``name`` defaults to the function's own (its class's for a callable object).

        Raises ValueError where it cannot be called so."""
        self.function = function
        self.name = name or (function.__name__ if inspect.isroutine(function) else type(function).__name__)
        self.form = form_of(function, self.name)
        self.wanted = wanted(function, self.name)

    def score(self, prompts: Sequence[str], completions: Sequence[Output], **columns: Sequence[Any]) -> list[Score | None]:
        """Call the function once with the whole batch, by keyword, and check what it returns."""
        asked = [i for i, output in enumerate(completions) if self.form == "outputs" or output.text is not None]
        found: list[Score | None] = [None] * len(completions)
        if not asked and completions:
            return found
        # A batch of a data set whose records differ may lack a column that others have.
        columns = {**columns_of([{}] * len(completions), [name for name in self.wanted if name not in columns]), **columns}
        own = {name: [values[i] for i in asked] for name, values in columns.items()}
        ids = own.get("id", [])
        given = formed(self.form, [prompts[i] for i in asked], [completions[i] for i in asked])
        values = self._call(*given, own)
        if isinstance(values, str | bytes | Mapping | set) or not isinstance(values, Iterable):
            raise TypeError(f"reward {self.name} returned {type(values).__name__}: it must return a list with one value per completion")
        scores = [None if value is None else Score(self._number(value)) for value in values]
        for i, score in zip(asked, check_scores(self.name, scores, len(asked), ids), strict=True):
            found[i] = score
        return found

    def _call(self, prompts: list[Any], completions: list[Any], columns: dict[str, list[Any]]) -> Any:
        try:
            result = self.function(prompts=prompts, completions=completions, **columns)
            return _wait(result) if inspect.isawaitable(result) else result
        except SystemExit as error:  # which would end the worker without a word
            raise RuntimeError(f"reward {self.name} called exit ({error.code}): raise an error instead") from error

    def _number(self, value: object) -> float:
        # Python and numpy numbers, 0-d arrays and tensors; not strings
        if isinstance(value, SupportsFloat) and not getattr(value, "ndim", 0):
            try:
                return float(value)
            except OverflowError:
                raise ValueError(f"reward {self.name} returned a number that no float can hold") from None
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
