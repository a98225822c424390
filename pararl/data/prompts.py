"""The user's prompts: records in GenEval's format with our additions, or in TRL's, from any source that ``rows`` reads."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from pararl.config import ConfigError
from pararl.data.quotas import PAIRED
from pararl.data.rows import Row, check_depth, parse_json, rows_of
from pararl.images import read_image
from pararl.scenes.records import from_record
from pararl.types import Kind, Prompt, Task

COLUMNS = ("id", "task", "split", "prompt", "image", "images", "spec")
"""Keys of a record that are read as such; every other one belongs to the spec."""
TOLD = 10
"""Problems of a source that are shown; of the others the number."""
SHOWN = 300
"""Most characters of one of them."""


def read_prompts(source: str, reward: str = "scenes", fit: Callable[[Prompt], Prompt] | None = None, shared: bool = False) -> list[Prompt]:
    """The prompts of a file, a folder or a data set on the hub.

    - ``FILE.jsonl`` or ``.ndjson``: one record a line, such as GenEval's ``evaluation_metadata.jsonl``: ``prompt``, and where wanted
      ``id``, ``task`` (default ``i2t`` with a picture, else ``t2i``), ``split`` and ``image`` (a path being relative to FILE). All other
      keys are the spec. TRL's form is read too: ``prompt`` may be a list of one user message, and ``images`` a list of one picture.
    - a ``.json``, ``.csv`` or ``.parquet`` file, a folder that ``datasets.Dataset.save_to_disk`` wrote, or ``owner/name`` or
      ``owner/name:split`` on the hub: the same with columns for keys. Arrow has no lists of mixed types, which GenEval's ``position`` is,
      so a column ``spec`` may hold the whole spec as JSON text.

    For the reward ``scenes`` every spec must be one of the scene world, for other rewards it may be anything; ``shared``: whether others
    read the specs beside ``scenes``, so that keys which it does not know may be theirs. ``fit`` makes of each prompt one that the policy
    reads, or raises ValueError. Raises one ConfigError with the problems of all records by their places. A second prompt of the same task
    and id is one, and so is no prompt at all.
    """
    found: dict[tuple[str, str], Prompt] = {}
    places: dict[tuple[str, str], str] = {}
    problems, count = list[str](), 0
    try:
        for row in rows_of(source):
            try:
                prompt = _prompt(row, Path(source).parent, reward == "scenes", shared)
                prompt = fit(prompt) if fit else prompt
                if where := places.get((prompt.kind, prompt.id)):
                    raise ValueError(f"there is a prompt of task {prompt.task} and id {prompt.id!r} already ({where})")
            except ValueError as error:
                count += 1
                problems += [f"{row.where}: {_shown(str(error))}"] if count <= TOLD else []
            else:
                found[prompt.kind, prompt.id], places[prompt.kind, prompt.id] = prompt, row.where
    except OSError as error:
        raise ConfigError(f"{source} cannot be read: {error.strerror or error}") from error
    if count:
        more = f"; and {count - TOLD} more" if count > TOLD else ""
        raise ConfigError(f"{source}{f' has {count} problems:' if count > 1 else ','} {'; '.join(problems)}{more}")
    if not found:
        raise ConfigError(f"{source} holds no prompt")
    return list(found.values())


def _shown(problem: str) -> str:
    """What is told of a problem: one short line that every terminal can print."""
    line = " ".join(problem.encode("utf-8", "backslashreplace").decode().split())
    return line if len(line) <= SHOWN else f"{line[: SHOWN - 80]} ... {line[-75:]}"


def _prompt(row: Row, folder: Path, checked: bool, shared: bool) -> Prompt:
    """One prompt; raises ValueError. Specs that are not ``checked`` are another reward's."""
    if row.problem:
        raise ValueError(row.problem)
    if not isinstance(row.value, Mapping):
        raise ValueError(f"a record must be a JSON object, got {type(row.value).__name__}")
    check_depth(row.value)
    given = {key: value for key, value in row.value.items() if value is not None}
    text, pictures = _asked(given.get("prompt"))
    fields, spec = _fields(given, f"prompt-{row.number}") | {"prompt": text}, _spec(given)
    if stray := [key for key in spec if key in COLUMNS and checked]:
        raise ValueError(f"{stray[0]!r} belongs into the record, not into its 'spec'")
    _check_values([fields, spec])
    picture = _picture(given, pictures)
    image = None if picture is None else read_image(picture, folder)
    task = fields.setdefault("task", "t2i" if image is None else "i2t")
    if checked:
        prompt = from_record(spec | fields, fields["id"], shared)
        if image is not None and (prompt.image is None or not np.array_equal(image, prompt.image)):
            raise ValueError("its image is not the scene of its spec's 'source', which alone the reward scenes can check")
        return prompt
    if task not in get_args(Task):
        raise ValueError(f"unknown task {task!r}: use one of {', '.join(get_args(Task))}")
    if (task in ("i2t", "edit")) != (image is not None) and task != "interleaved":
        raise ValueError(f"a prompt of task {task} {'takes no' if image is not None else 'needs an'} 'image'")
    return Prompt(fields["id"], task, text, spec, fields["split"], image)


def _fields(given: Mapping[str, Any], default_id: str) -> dict[str, Any]:
    """Id, split and, where it is given, task of a record."""
    name, split = given.get("id", default_id), given.get("split", "user")
    if isinstance(name, bool) or not isinstance(name, str | int | float) or not str(name).strip():
        raise ValueError(f"'id' must be text or a number, got {name!r}")
    if not isinstance(split, str):
        raise ValueError(f"'split' must be text, got {split!r}")
    return {"id": str(name), "split": split} | ({"task": given["task"]} if "task" in given else {})


def _check_values(value: Any) -> None:
    """Raise ValueError unless all values are those of JSON, and their texts can be written."""
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"a text holds {error.object[error.start]!r}, which is half a character") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"a record may hold JSON values only: {error}") from error


def _spec(given: Mapping[str, Any]) -> dict[str, Any]:
    """All keys but ``COLUMNS``, and a spec that is given whole, as JSON text or as a record."""
    value, own = given.get("spec", {}), {key: value for key, value in given.items() if key not in COLUMNS}
    found = parse_json(value) if isinstance(value, str) else value
    if not isinstance(found, Mapping):
        raise ValueError(f"'spec' must be a record or the JSON text of one, got {value!r}")
    check_depth(found)
    if twice := [key for key in found if key in own and own[key] != found[key]]:
        raise ValueError(f"{twice[0]!r} stands in the record and in its 'spec', with different values")
    return own | dict(found)


def _asked(prompt: Any) -> tuple[str, list[Any]]:
    """The text of a prompt, and the pictures in TRL's form of it, None for one that stands in a column."""
    text, pictures = prompt, []
    if isinstance(prompt, list | tuple) and prompt:
        if len(prompt) > 1 or not isinstance(prompt[0], Mapping) or prompt[0].get("role") != "user":
            raise ValueError(f"a conversation must be one message of the role user, got {prompt!r}")
        text = prompt[0].get("content")
        if isinstance(text, list | tuple):
            parts = [_part(part) for part in text]
            pictures = [part["image"] for part in parts if "image" in part]
            text = " ".join(part["text"] for part in parts if "text" in part)
    if not isinstance(text, str) or not text.strip():
        raise ValueError("a record needs a 'prompt' with text")
    return text, pictures


def _part(part: Any) -> dict[str, Any]:
    """A part of a message: its text or its picture."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"text": part["text"]}
    if kind == "image":
        return {"image": part.get("image")}
    raise ValueError(f"a part of a message is of type text with its 'text', or of type image, got {part!r}")


def _picture(given: Mapping[str, Any], shown: Sequence[Any]) -> Any:
    """The picture of a record: of a column or of its message; None where it has none."""
    held = [given[key] for key in ("image", "images") if key in given and given[key] != []]
    found = held + [picture for picture in shown if picture is not None]
    if len(shown) > 1 or len(found) > 1:
        raise ValueError(f"a prompt takes one picture, got {max(len(shown), len(found))}")
    if shown and not found:
        raise ValueError("its message has a place for a picture, but there is none in 'images' or 'image'")
    return found[0] if found else None


def paired(prompts: Sequence[Prompt]) -> dict[Kind, list[Prompt]]:
    """The prompts of ``PAIRED`` that share their id with one of the other kind, in the same order."""
    both = [{p.id: p for p in prompts if p.kind == kind} for kind in PAIRED]
    shared = [name for name in both[0] if name in both[1]]
    return {kind: [found[name] for name in shared] for kind, found in zip(PAIRED, both, strict=True)}
