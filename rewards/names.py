"""How rewards are named, read without loading any: a mistake in a name is told before anything starts."""

import re
from pathlib import Path

from pararl.readers import FileError, read_json, weight_files

CHECKPOINTS = Path(__file__).resolve().parent / "checkpoints"
"""One folder per embedded model that scores."""
CLIP = "clip:"
"""``clip:DIRECTORY`` or ``clip:OWNER/NAME[@REVISION]``, a model of the Hugging Face hub."""
EMBEDDED = ("scenes-clip",)
"""Names of embedded CLIP models."""
KNOWN = ("scenes", *EMBEDDED, "clip:DIRECTORY", "clip:OWNER/NAME[@REVISION]", "package.module:function", "FILE.py:function")
CLIP_TYPES = ("clip", "siglip")
"""``model_type`` of the models that the CLIP reward runs: ``CLIPModel`` and ``SiglipModel``."""

_HUB = re.compile(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?")


def is_clip(name: str) -> bool:
    """Whether the name is that of a CLIP reward."""
    return name in EMBEDDED or name.startswith(CLIP)


def is_own(name: str) -> bool:
    """Whether the name is ``module:attribute`` or ``FILE.py:attribute``, a reward of the user's own."""
    return ":" in name and not is_clip(name)


def file_of(name: str) -> Path | None:
    """The file of a reward named ``FILE.py:attribute``, relative to the working folder; None for any other name."""
    file = name.rpartition(":")[0]
    return Path(file).expanduser() if is_own(name) and file.endswith(".py") else None


def clip_model(name: str) -> tuple[str, str | None]:
    """Directory or hub name of the model of a CLIP reward, and its revision where one is pinned."""
    if name in EMBEDDED:
        return str(CHECKPOINTS / name), None
    source = name.removeprefix(CLIP)
    if source and Path(source).is_dir():
        return source, None
    source, _, revision = source.partition("@")
    return source, revision or None


def problem(name: str) -> str | None:
    """What is wrong with a reward's name, as far as files and spelling tell; None = nothing. Imports and downloads nothing."""
    if name == "scenes":
        return None
    if not is_clip(name):
        return None if is_own(name) else f"unknown reward {name!r} (known: {', '.join(KNOWN)})"
    source, _ = clip_model(name)
    directory = Path(source)
    if name not in EMBEDDED and (not source or not directory.is_dir()):
        if source.startswith((".", "~")) or not _HUB.fullmatch(name.removeprefix(CLIP)):
            return (
                f"reward {name!r}: {source or 'nothing'} is neither a directory nor a name of the hub such as openai/clip-vit-base-patch32"
            )
        return None
    remedy = f"copy the model again, or name another one, {CLIP}DIRECTORY"
    try:
        kind = read_json(directory / "config.json", remedy).get("model_type")
        weight_files(directory, remedy=remedy)
    except FileError as error:
        return f"reward {name!r}: {error}"
    if kind not in CLIP_TYPES:
        return f"reward {name!r} is a model of type {kind!r}, the CLIP reward runs {' and '.join(CLIP_TYPES)}"
    return None


def unscored(name: str, kinds: tuple[str, ...]) -> list[str]:
    """Those of the kinds of prompts that the reward never scores."""
    return [kind for kind in kinds if kind in ("t2t", "edit")] if is_clip(name) else []


def absolute(name: str) -> str:
    """The same name for a process in another folder: a directory or a file in full."""
    if file := file_of(name):
        return f"{file.resolve()}:{name.rpartition(':')[2]}"
    source, _ = clip_model(name) if is_clip(name) else ("", None)
    # A name of the hub is no path, even where it looks like one.
    return f"{CLIP}{Path(source).resolve()}" if name.startswith(CLIP) and Path(source).is_dir() else name
