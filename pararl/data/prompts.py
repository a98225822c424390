"""The user's prompts: JSON lines in GenEval's format with our additions, or a data set that ``datasets`` reads, as the same records."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np

from pararl.data.quotas import PAIRED
from pararl.policy_files import image_shape
from pararl.scenes.records import from_record
from pararl.types import Kind, Prompt, Task
from policies.traits import TRAITS

COLUMNS = ("id", "task", "split", "prompt", "image", "spec")
"""Columns of a data set that are read as such; every other one belongs to the spec."""


def read_prompts(source: str, reward: str = "scenes") -> list[Prompt]:
    """The prompts of a file, a folder or a data set on the hub.

    - ``FILE.jsonl``: one record a line, such as GenEval's ``evaluation_metadata.jsonl``: ``prompt``, and where wanted ``id``, ``task``
      (default ``t2i``), ``split`` and ``image`` (a picture file, relative to FILE). All other keys are the spec.
    - a folder that ``datasets.Dataset.save_to_disk`` wrote, a ``.parquet``, ``.csv`` or ``.json`` file, or ``owner/name`` or
      ``owner/name:split`` on the hub: the same with columns for keys. Arrow has no lists of mixed types, which GenEval's ``position`` is,
      so a column ``spec`` may hold the whole spec as JSON text.

    For the reward ``scenes`` every spec must be one of the scene world, for other rewards it may be anything. Raises ValueError or
    FileNotFoundError that names the place and what was wrong. A second prompt of the same task and id is an error, and so is no prompt at
    all.
    """
    place = Path(source)
    rows = _lines(place) if place.suffix == ".jsonl" else _data_set(source)
    found: dict[tuple[str, str], Prompt] = {}
    for where, row in rows:
        try:
            prompt = _prompt(row, where.rpartition(" ")[2], place.parent, checked=reward == "scenes")
        except (ValueError, OSError) as error:
            raise ValueError(f"{source}, {where}: {error}") from error
        if (prompt.kind, prompt.id) in found:
            raise ValueError(f"{source}, {where}: there is a prompt of task {prompt.task} and id {prompt.id!r} already")
        found[prompt.kind, prompt.id] = prompt
    if not found:
        raise ValueError(f"{source} holds no prompt")
    return list(found.values())


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    row = json.loads(line.decode("utf-8-sig"))  # Windows puts a mark in front of the first line
                except UnicodeDecodeError as error:
                    raise ValueError(f"{path}, line {number} is not UTF-8, which JSON is written in: {error}; save it as UTF-8") from error
                except json.JSONDecodeError as error:
                    raise ValueError(f"{path}, line {number} is not JSON: {error}") from error
                yield f"line {number}", row


def _data_set(source: str) -> Iterable[tuple[str, Any]]:
    import datasets

    path = Path(source)
    if path.is_dir():
        found = datasets.load_from_disk(source)
        if isinstance(found, datasets.DatasetDict):
            raise ValueError(f"{source} holds the splits {', '.join(found)}: name the folder of one of them")
    elif path.suffix in (".parquet", ".csv", ".json"):
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {source}")
        found = datasets.load_dataset(path.suffix[1:], data_files=source, split="train")
    elif source.count("/") == 1 and not path.suffix:
        name, _, split = source.partition(":")
        found = datasets.load_dataset(name, split=split or "train")
    else:
        raise FileNotFoundError(
            f"{source} is no .jsonl, .json, .csv or .parquet file, no folder of a data set, and no owner/name of the hub"
        )
    return ((f"row {number}", row) for number, row in enumerate(found))


def _prompt(row: Any, number: str, folder: Path, checked: bool) -> Prompt:
    """One prompt. Unknown to ``checked`` specs: they are another reward's."""
    if not isinstance(row, Mapping):
        raise ValueError(f"a record must be a JSON object, got {type(row).__name__}")
    given = {key: value for key, value in row.items() if value is not None}
    spec = {key: value for key, value in given.items() if key not in COLUMNS} | _spec(given.get("spec", {}))
    named = {key: given[key] for key in ("id", "task", "split", "prompt") if key in given}
    try:
        json.dumps([spec, named], allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"a record may hold JSON values only: {error}") from error
    image = _pixels(given["image"], folder) if "image" in given else None
    if checked:
        prompt = from_record(named | spec, default_id=f"prompt-{number}")
        if image is not None and (prompt.image is None or not np.array_equal(image, prompt.image)):
            raise ValueError("its image is not the scene of its spec's 'source', which alone the reward scenes can check")
        return prompt
    text, task = named.get("prompt"), named.get("task", "t2i")
    if not isinstance(text, str) or not text.strip():
        raise ValueError("a record needs a 'prompt' with text")
    if task not in get_args(Task):
        raise ValueError(f"unknown task {task!r}: use one of {', '.join(get_args(Task))}")
    if (task in ("i2t", "edit")) != (image is not None) and task != "interleaved":
        raise ValueError(f"a prompt of task {task} {'takes no' if image is not None else 'needs an'} 'image'")
    return Prompt(str(named.get("id", f"prompt-{number}")), task, text, spec, str(named.get("split", "user")), image)


def _spec(value: Any) -> dict[str, Any]:
    """A spec given whole, as JSON text or as a record."""
    found = json.loads(value) if isinstance(value, str) else value
    if not isinstance(found, Mapping):
        raise ValueError(f"'spec' must be a record or the JSON text of one, got {value!r}")
    return dict(found)


def _pixels(value: Any, folder: Path) -> np.ndarray:
    """uint8 [height, width, 3] of a file's path or of a picture that ``datasets`` has opened."""
    from PIL import Image, ImageOps

    if not isinstance(value, str | Image.Image):
        raise ValueError(f"'image' must be a picture file or an image column of datasets, got {type(value).__name__}")
    picture = Image.open(folder / value) if isinstance(value, str) else value
    upright = ImageOps.exif_transpose(picture)  # phones store the sensor's rows, and say how to turn them
    return np.asarray(upright.convert("RGB"), np.uint8)


def paired(prompts: Sequence[Prompt]) -> dict[Kind, list[Prompt]]:
    """The prompts of ``PAIRED`` that share their id with one of the other kind, in the same order."""
    both = [{p.id: p for p in prompts if p.kind == kind} for kind in PAIRED]
    shared = [name for name in both[0] if name in both[1]]
    return {kind: [found[name] for name in shared] for kind, found in zip(PAIRED, both, strict=True)}


def unfit(prompts: Iterable[Prompt], directory: Path) -> list[str]:
    """What a policy directory cannot read of prompts, one line each: words beyond a closed vocabulary, texts that are too long, images
    of another size. Reads the tokenizer and the settings, loads no model."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    unknown = _json(directory / "tokenizer_config.json").get("unk_token")
    policy = _json(directory / "policy.json")
    settings, traits = policy["settings"], TRAITS[policy["family"]]
    patch = _json(directory / "config.json").get("patch_size", 2) if traits.patched else 1
    factor = patch * image_shape(directory / "image_tokenizer").factor
    size = [side * factor for side in settings["grid"]]
    told = []
    for prompt in prompts:
        where = f"prompt {prompt.id}"
        text = settings["dialogue"].replace("{image}", "") if prompt.task in traits.spoken else "{text}"
        text = text.replace("{system}", settings.get("system_new" if prompt.image is None else "system_edit", ""))
        before, _, after = text.partition("{text}")
        parts = (before, prompt.text, after) if traits.apart else (text.replace("{text}", prompt.text),)  # as each tokenizes it
        tokens = [token for part in parts for token in tokenizer.encode(part, add_special_tokens=False).tokens]
        if unknown is not None and unknown in tokens:
            words = [w for w in dict.fromkeys(prompt.text.split()) if unknown in tokenizer.encode(w, add_special_tokens=False).tokens]
            told.append(f"{where}: the vocabulary of {directory.name} has no {', '.join(map(repr, words))}")
        elif len(tokens) > settings["prompt_tokens"]:
            told.append(f"{where} has {len(tokens)} tokens, more than the {settings['prompt_tokens']} that {directory.name} reads")
        if prompt.image is not None and list(prompt.image.shape[:2]) != size:
            told.append(f"{where}: its image has {list(prompt.image.shape[:2])} pixels, {directory.name} reads {size}")
    return told


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))
