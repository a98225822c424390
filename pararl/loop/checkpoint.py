"""What a run needs to go on after a kill: safetensors and JSON, each written as a whole or not at all."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from pararl.files import atomic_folder, latest, write_json
from pararl.readers import FileError, read_arrays, read_json, record_of
from pararl.types import Judgement, Latents, Output, Prompt, Rollout, Score, Segment

STATE, TENSORS = "state.json", "tensors.safetensors"
REMEDY = "remove its folder, and --resume makes it anew"
"""What helps against a checkpoint that cannot be read."""
KINDS_OF_SEGMENTS: dict[str, type[Segment] | type[Latents]] = {"tokens": Segment, "latents": Latents}


def save(directory: Path, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
    """Write arrays and JSON facts as ``directory``, which takes the place of what it held before."""
    with atomic_folder(directory) as part:
        save_file({name: np.ascontiguousarray(x) for name, x in arrays.items()}, part / TENSORS)
        write_json(part / STATE, facts)


def load(directory: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """Arrays and facts that ``save`` wrote, or None where nothing was saved yet. Raises FileError for files that are not whole."""
    place = latest(directory)
    if not (place / STATE).exists():
        return None
    return read_arrays(place / TENSORS, REMEDY), read_json(place / STATE, REMEDY)


def load_arm(directory: Path, counters: Collection[str]) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """The checkpoint of an arm, or None where there is none yet.

    It has the learner's facts, the ``counters``, the place in the curriculum, and an adapter and a reference of the same shapes. Raises
    FileError where something of it is missing or not a number.
    """
    found = load(directory)
    if found is None:
        return None
    (arrays, facts), place = found, latest(directory)
    for name, keys in (("learner", ("version", "reference_version")), ("counters", counters), ("curriculum", ())):
        part = facts.get(name)
        if not isinstance(part, dict) or not all(type(part.get(key)) in (int, float) for key in keys):
            raise FileError(place / STATE, f"is no checkpoint of an arm: {name} is missing or of another form", REMEDY)
    file, parts = place / TENSORS, dict[str, dict[str, tuple[int, ...]]]()
    for name, array in arrays.items():
        kind, _, rest = name.partition(".")
        parts.setdefault(kind, {})[rest] = array.shape
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise FileError(file, f"has numbers that are not finite in {name}", REMEDY)
    adapter, reference = parts.get("adapter", {}), parts.get("reference", {})
    if not adapter or (reference and reference != adapter) or parts.keys() - {"adapter", "reference", "moments"}:
        raise FileError(file, "does not hold the adapter of an arm, its reference and its moments", REMEDY)
    return arrays, facts


def save_rollouts(directory: Path, rollouts: Sequence[Rollout], judgements: Sequence[Judgement], wanted: int) -> None:
    """Write rollouts of one sampling (equal recorded steps) and their final scores, without pixels or texts of outputs. ``wanted``: the
    updates that the run is to have."""
    arrays: dict[str, np.ndarray] = {}
    rows: list[dict[str, Any]] = []
    prompts: dict[tuple[str, str], int] = {}
    listed: list[dict[str, Any]] = []
    segments: dict[str, list[Segment | Latents]] = {}
    for rollout, judgement in zip(rollouts, judgements, strict=True):
        prompt, final = rollout.prompt, judgement.final
        # By kind as well: caption and image of one scene have the same id.
        place = prompts.setdefault((prompt.kind, prompt.id), len(prompts))
        if place == len(listed):
            # Pixels go among the arrays: JSON has none, and asdict would copy them.
            listed.append({**asdict(replace(prompt, image=None)), "shown": prompt.image is not None})
            if prompt.image is not None:
                arrays[f"shown.{place}"] = prompt.image
            if rollout.prompt_ids is not None:
                arrays[f"prompt_ids.{place}"] = rollout.prompt_ids
        row = {name: getattr(rollout, name) for name in ("index", "seed", "version", "steps", "recorded")}
        row |= {"prompt": place, "segments": [_key(s) for s in rollout.segments]}
        row |= {"value": None if final is None else final.value, "strict": None if final is None else final.strict}
        rows.append(row)
        for segment in rollout.segments:  # those of equal length make one array
            segments.setdefault(_key(segment), []).append(segment)
    for key, chosen in segments.items():
        for name in _parts(type(chosen[0])):
            arrays[f"{key}.{name}"] = np.stack([getattr(s, name) for s in chosen])
    save(directory, arrays, {"prompts": listed, "rollouts": rows, "wanted": wanted})


def _key(segment: Segment | Latents) -> str:
    """What segments have in common that make one array: modality, kind and length."""
    return f"{segment.modality}.{'latents' if isinstance(segment, Latents) else 'tokens'}.{len(segment.tokens)}"


def _parts(kind: type[Segment] | type[Latents]) -> list[str]:
    """The arrays of a kind of segment."""
    return [field.name for field in fields(kind) if field.name != "modality"]


def load_rollouts(directory: Path) -> tuple[list[Rollout], list[Judgement], int] | None:
    """Rollouts, judgements and ``wanted`` that ``save_rollouts`` wrote, or None where there are none. Raises
    FileError for what is no such thing."""
    found = load(directory)
    return None if found is None else record_of(_rollouts, found, latest(directory), REMEDY)


def _rollouts(found: tuple[dict[str, np.ndarray], dict[str, Any]]) -> tuple[list[Rollout], list[Judgement], int]:
    arrays, facts = found
    prompts = [
        Prompt(
            **{key: value for key, value in p.items() if key not in ("shown", "image")}, image=arrays[f"shown.{i}"] if p["shown"] else None
        )
        for i, p in enumerate(facts["prompts"])
    ]
    cursor: Counter[str] = Counter()
    rollouts, judgements = [], []
    for row in facts["rollouts"]:
        segments = []
        for key in row["segments"]:
            modality, kind, _ = key.split(".")
            made = KINDS_OF_SEGMENTS[kind]
            # Arrays were stacked in the order of the rows, so a count for each key finds the own one again.
            segments.append(made(modality=modality, **{name: arrays[f"{key}.{name}"][cursor[key]] for name in _parts(made)}))
            cursor[key] += 1
        rollout = Rollout(
            prompts[row["prompt"]],
            **{name: row[name] for name in ("index", "seed", "version", "steps")},
            recorded=tuple(row["recorded"]),
            segments=tuple(segments),
            output=Output(),
            guesses=(),
            prompt_ids=arrays.get(f"prompt_ids.{row['prompt']}"),
        )
        rollouts.append(rollout)
        judgements.append(Judgement(None if row["value"] is None else Score(row["value"], row["strict"])))
    return rollouts, judgements, facts["wanted"]


def without_outputs(rollout: Rollout) -> Rollout:
    """The rollout without decoded outputs: what the learner needs, and a tenth of the memory."""
    return replace(rollout, output=Output(), guesses=())
