"""Released checkpoints by name. Read as files, without torch, so that a mistake in a name is told before anything loads.

What a release does not say about itself (layout, special tokens, image tokenizer) is in ``policies/releases``, one JSON file each.
"""

from pathlib import Path

RELEASES = {
    path.stem.replace("--", "/"): path for path in sorted((Path(__file__).resolve().parent.parent / "policies" / "releases").glob("*.json"))
}
"""Files by the names of the releases on the hub."""


def release_of(name: str) -> str | None:
    """The release that a name stands for; None where nothing says.

    The name is one of the hub, with or without a revision behind an ``@``. Or it is a folder called like one, or a snapshot in the hub's
    cache.
    """
    repository = name.partition("@")[0]
    if repository in RELEASES:
        return repository
    folders = Path(name).resolve().parts if Path(name).is_dir() else ()
    known = {release.rpartition("/")[2]: release for release in RELEASES}
    known |= {"models--" + release.replace("/", "--"): release for release in RELEASES}
    # From the inside out: a copy may lie in a folder that is called like another release.
    return next((known[folder] for folder in reversed(folders) if folder in known), None)
