"""Where the parts of a policy come from: an embedded checkpoint, a directory, or a released checkpoint by its name on the hub.

A release has no ``policy.json``: what it does not say about itself (layout, special tokens, which image tokenizer) is in
``policies/releases``, one JSON file each. A ``policy.json`` that names a release stands in a folder of that release's layout, such as
``policies.export`` writes. No code of a repository is ever run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pararl.policy_files import REMEDY
from pararl.readers import read_json
from pararl.releases import RELEASES, release_of

if TYPE_CHECKING:
    import torch

POLICY_FILE = "policy.json"
CHECKPOINTS = Path(__file__).parent / "checkpoints"
WANTED = ("*.json", "*.safetensors", "*.bin")
"""What is fetched of a repository; a ``.bin`` is read as weights alone, and only where there is no safetensors file."""
TOKENIZER = ("*.json",)
"""What is fetched of one that has the text tokenizer alone."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Where the parts of a policy lie, and how it is to be held."""

    family: str
    settings: dict[str, Any]
    backbone: Path
    """Directory of config, weights and, unless ``text`` says otherwise, text tokenizer."""
    images: Path
    """Directory of the image tokenizer."""
    text_size: int | None = None
    """Ids that the text tokenizer must have, where that is known: the image codes begin behind them."""
    dtype: "torch.dtype | None" = None
    """Of the backbone; None = that of its file."""
    device_map: str | dict[str, Any] | None = None
    """Of the backbone, as transformers takes it."""
    text: Path | None = None
    """Directory of the text tokenizer; None = the backbone's."""
    added: tuple[str, ...] = ()
    """Tokens that are added to it, the first of them as padding."""
    release: str | None = None
    """In whose layout the directories are; None = that of ``Policy.save``."""


def find(
    name: str | Path, release: str | None = None, image_tokenizer: str | Path | None = None, text_tokenizer: str | Path | None = None
) -> Parts:
    """The parts of the policy ``name``; see ``policies.load``. Fetches from the hub what is not there."""
    directory = Path(name) if Path(name).is_dir() else CHECKPOINTS / name
    file = directory / POLICY_FILE
    saved = read_json(file, REMEDY, keys=("family", "settings")) if file.exists() else {}
    if saved and "release" not in saved:
        if text_tokenizer is not None:
            raise ValueError(f"{directory} is a saved policy, which holds its own text tokenizer (leave out text_tokenizer=)")
        images = directory / "image_tokenizer" if image_tokenizer is None else fetch(str(image_tokenizer))
        return Parts(saved["family"], saved["settings"], directory, images)
    release = release or release_of(str(name))
    if release not in RELEASES:
        known = sorted(p.parent.name for p in CHECKPOINTS.glob(f"*/{POLICY_FILE}"))
        if saved:
            raise ValueError(f"{directory / POLICY_FILE} names the release {saved['release']!r}; known are {', '.join(RELEASES)}")
        if Path(name).is_dir():
            raise FileNotFoundError(
                f"{name} has no {POLICY_FILE}: say which release it is a copy of (release=, or call the folder like it), one of "
                f"{', '.join(RELEASES)}"
            )
        raise FileNotFoundError(
            f"no policy {str(name)!r}: neither a directory with a {POLICY_FILE} nor one of {known}, nor a release: {', '.join(RELEASES)}"
        )
    raw = read_json(RELEASES[release])
    backbone = fetch(str(name))
    return Parts(
        raw["family"],
        saved.get("settings", raw["settings"]),
        backbone,
        _images(raw["images"], backbone, image_tokenizer),
        raw["text_size"],
        text=_text(raw.get("text"), backbone, text_tokenizer),
        added=tuple(raw.get("added", ())),
        release=release,
    )


def _images(released: str, backbone: Path, image_tokenizer: str | Path | None) -> Path:
    """Where the image tokenizer of a release is: where the caller says, beside the backbone, or in a repository of its own."""
    if image_tokenizer is not None:
        return fetch(str(image_tokenizer))
    # An aMUSEd tokenizer is released in a folder beside the backbone, and a MAGVIT-v2 may have been put there.
    beside = next((backbone / name for name in ("image_tokenizer", released) if (backbone / name).is_dir()), None)
    if beside is None and "/" not in released:
        raise FileNotFoundError(
            f"{backbone} has no folder {released} with its image tokenizer: fetch it whole, or name one (image_tokenizer=)"
        )
    return beside or fetch(released)


def _text(released: str | None, backbone: Path, text_tokenizer: str | Path | None) -> Path | None:
    """Where the text tokenizer of a release is: where the caller says, beside the backbone, with it, or in a repository of its own."""
    if text_tokenizer is not None:
        return fetch(str(text_tokenizer), TOKENIZER)
    if (backbone / "text_tokenizer").is_dir():
        return backbone / "text_tokenizer"
    return None if released is None or (backbone / "tokenizer.json").exists() else fetch(released, TOKENIZER)


def fetch(source: str, wanted: Sequence[str] = WANTED) -> Path:
    """The directory ``source``, or the snapshot of the hub's repository ``owner/name[@revision]``, fetched where it is not cached yet:
    those of its files that are ``wanted``. ``owner/name/folder[@revision]`` is a folder in it.

    Raises FileNotFoundError that says what to do where it cannot be had.
    """
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    path, _, revision = source.partition("@")
    owner, name, folder = [*path.split("/", 2), "", ""][:3]
    repository, patterns = f"{owner}/{name}" if name else owner, [f"{folder}/{form}" if folder else form for form in wanted]
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=patterns)) / folder
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(
            f"{source} is no directory, and the hub does not give it ({type(error).__name__}): check name and revision, or fetch it where "
            f"there is a network (hf download {repository}) and name its folder"
        ) from error
