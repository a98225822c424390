"""Where the parts of a policy come from: an embedded checkpoint, a directory, or a released checkpoint by its name on the hub.

A release has no ``policy.json``: what it does not say about itself (layout, special tokens, which image tokenizer) is in
``policies/releases``, one JSON file each. No code of a repository is ever run.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

POLICY_FILE = "policy.json"
CHECKPOINTS = Path(__file__).parent / "checkpoints"
RELEASES = {path.stem.replace("--", "/"): path for path in sorted((Path(__file__).parent / "releases").glob("*.json"))}
"""Released checkpoints by their names on the hub."""
WANTED = ("*.json", "*.safetensors", "*.bin")
"""What is fetched of a repository; a ``.bin`` is read as weights alone, and only where there is no safetensors file."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Where the parts of a policy lie, and how it is to be held."""

    family: str
    settings: dict[str, Any]
    backbone: Path
    """Directory of config, safetensors and text tokenizer."""
    images: Path
    """Directory of the image tokenizer."""
    text_size: int | None = None
    """Ids that the text tokenizer must have, where that is known: the image codes begin behind them."""
    dtype: torch.dtype | None = None
    """Of the backbone; None = that of its file."""
    device_map: str | dict[str, Any] | None = None
    """Of the backbone, as transformers takes it."""


def find(name: str | Path, release: str | None = None, image_tokenizer: str | Path | None = None) -> Parts:
    """The parts of the policy ``name``; see ``policies.load``. Fetches from the hub what is not there."""
    directory = Path(name) if Path(name).is_dir() else CHECKPOINTS / name
    if (directory / POLICY_FILE).exists():
        raw = json.loads((directory / POLICY_FILE).read_text())
        images = directory / "image_tokenizer" if image_tokenizer is None else fetch(str(image_tokenizer))
        return Parts(raw["family"], raw["settings"], directory, images)
    release = release or release_of(str(name))
    if release not in RELEASES:
        known = sorted(p.parent.name for p in CHECKPOINTS.glob(f"*/{POLICY_FILE}"))
        if Path(name).is_dir():
            raise FileNotFoundError(f"{name} has no {POLICY_FILE}: say which release it is a copy of, one of {', '.join(RELEASES)}")
        raise FileNotFoundError(
            f"no policy {str(name)!r}: neither a directory with a {POLICY_FILE} nor one of {known}, nor a release: {', '.join(RELEASES)}"
        )
    raw = json.loads(RELEASES[release].read_text())
    backbone = fetch(str(name))
    # An aMUSEd tokenizer lies in a folder of the repository that holds the backbone.
    images = fetch(str(image_tokenizer or raw["images"])) if image_tokenizer or "/" in raw["images"] else backbone / raw["images"]
    return Parts(raw["family"], raw["settings"], backbone, images, raw["text_size"])


def release_of(name: str) -> str | None:
    """Which release a hub name, a folder called like one, or a snapshot in the hub's cache is; None where nothing says."""
    repository = name.partition("@")[0]
    if repository in RELEASES:
        return repository
    parts = Path(name).resolve().parts if Path(name).is_dir() else ()
    by_folder = {release.rpartition("/")[2]: release for release in RELEASES}
    by_folder |= {"models--" + release.replace("/", "--"): release for release in RELEASES}
    return next((by_folder[part] for part in reversed(parts) if part in by_folder), None)


def fetch(source: str) -> Path:
    """The directory ``source``, or the snapshot of the hub's repository ``owner/name[@revision]``, fetched where it is not cached yet.

    Raises FileNotFoundError that says what to do where it cannot be had.
    """
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repository, _, revision = source.partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(WANTED)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(
            f"{source} is no directory, and the hub does not give it ({type(error).__name__}): check name and revision, or fetch it where "
            f"there is a network (hf download {repository}) and name its folder"
        ) from error
