"""How a function of the user's is called: as TRL calls its reward functions, with completions in the form that it asks for."""

import inspect
import re
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

from pararl.types import Output

Form = Literal["outputs", "text", "messages"]
"""What a completion is: ``pararl.types.Output``; its text; or TRL's list of one message, ``[{"role": "assistant", "content": text}]``."""
OWN = ("id", "task", "spec", "split", "image")
"""Columns that every call has. The others are those of the user's prompts: the keys of their specs."""
RESERVED = ("self", "prompt", "prompts", "completion", "completions", *OWN)
"""Names that no column of a spec takes."""
GIVEN_BY_TRL = ("completion_ids", "trainer_state", "log_extra", "log_metric", "environments")
"""Arguments that TRL's trainer adds and that nothing stands for here."""


def form_of(function: Callable[..., Any], name: str) -> Form:
    """The form of completions that a function asks for by the annotation of ``completions``.

    ``list[str]`` takes texts, ``list[list[dict]]`` messages; none, and ``list[Output]``, take outputs. Raises ValueError for others.
    """
    called = function if inspect.isroutine(function) else type(function).__call__
    raw = getattr(called, "__annotations__", {}).get("completions")
    if raw is None:
        return "outputs"
    try:
        hint = typing.get_type_hints(called).get("completions")
    except (NameError, TypeError, AttributeError):  # a name that only a type checker knows
        hint = None
    found = _form(str(raw) if hint is None else hint)
    if found is None:
        raise ValueError(
            f"reward {name}: completions are annotated {raw!r}: write list[str] for texts, list[list[dict]] for messages, or list[Output]"
        )
    return found


def _form(hint: Any) -> Form | None:
    """None for what is none of the three."""
    if isinstance(hint, str):
        inner = re.fullmatch(r"[\w.]+\[(.+)\]", hint.replace(" ", ""))
        item: Any = {"str": str, "Any": Any}.get(inner[1], inner[1]) if inner else Any
        if isinstance(item, str):
            return "messages" if re.match(r"[\w.]+\[(dict|Dict|Mapping)", item) else "outputs" if item.endswith("Output") else None
    else:
        item = next(iter(typing.get_args(hint)), Any)
    if item is str:
        return "text"
    if item is Any or item is Output or isinstance(item, typing.TypeVar):
        return "outputs"
    return "messages" if typing.get_origin(item) in (list, Sequence) else None


def wanted(function: Callable[..., Any], name: str) -> list[str]:
    """The columns that a function asks for by name and without a default, beside those that every call has.

    Raises ValueError where it cannot be called as TRL calls it: by keyword, with every column of the prompts.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # a builtin without a signature
        return []
    usual = "def reward(prompts, completions, **columns)"
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        raise ValueError(f"reward {name} takes no **columns, but every column of the prompts is passed to it by keyword: write {usual}")
    if positional := [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY and p.default is p.empty]:
        raise ValueError(f"reward {name} takes {', '.join(positional)} by position only, but is called by keyword: write {usual}")
    asked = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.default is p.empty]
    if trl := [given for given in asked if given in GIVEN_BY_TRL]:
        raise ValueError(f"reward {name} needs {', '.join(trl)}, which only TRL's trainer has: give it a default, such as {trl[0]}=None")
    return [column for column in asked if column not in ("prompts", "completions", *OWN)]


def columns_of(specs: Sequence[Mapping[str, Any]], asked: Collection[str] = ()) -> dict[str, list[Any]]:
    """A column for every key of the specs and for each that is asked for: the value of each prompt, None where it has none."""
    keys = dict.fromkeys(key for spec in specs for key in spec if key not in RESERVED)
    return {key: [spec.get(key) for spec in specs] for key in (*keys, *(key for key in asked if key not in keys))}


def formed(form: Form, prompts: Sequence[str], completions: Sequence[Output]) -> tuple[list[Any], list[Any]]:
    """Prompts and completions as a function asks for them; completions have texts where it asks for those."""
    if form == "outputs":
        return list(prompts), list(completions)
    texts = [output.text or "" for output in completions]
    if form == "text":
        return list(prompts), texts
    return [[{"role": "user", "content": text}] for text in prompts], [[{"role": "assistant", "content": text}] for text in texts]
