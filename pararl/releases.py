"""Released checkpoints by name. Read as files, without torch, so that a mistake in a name is told before anything loads.

What a release does not say about itself (layout, special tokens, image tokenizer) is in ``policies/releases``, one JSON file each.
"""

from pathlib import Path

from pararl.readers import FileError, read_json

POLICIES = Path(__file__).resolve().parent.parent / "policies"
EMBEDDED = POLICIES / "checkpoints"
"""Where the embedded policies lie, by their names."""
RELEASES = {path.stem.replace("--", "/"): path for path in sorted((POLICIES / "releases").glob("*.json"))}
"""Files by the names of the releases on the hub."""


def release_of(name: str) -> str | None:
    """The release of a hub name, with or without a revision behind an ``@``, or of a folder; None where nothing says.

    A folder says it by its ``policy.json``, by its own name or one above it, or as a snapshot in the hub's cache.
    """
    repository = name.partition("@")[0]
    if repository in RELEASES:
        return repository
    folders = Path(name).resolve().parts if Path(name).is_dir() else ()
    known = {release.rpartition("/")[2]: release for release in RELEASES}
    known |= {"models--" + release.replace("/", "--"): release for release in RELEASES}
    # From the inside out: a copy may lie in a folder that is called like another release.
    said = _said(Path(name) / "policy.json") if folders else None
    return said or next((known[folder] for folder in reversed(folders) if folder in known), None)


def _said(file: Path) -> str | None:
    """The release in whose layout a folder is, as its ``policy.json`` says; whoever reads that file whole tells what is wrong with it."""
    try:
        found = read_json(file, keys=("release",))["release"]
    except FileError:
        return None
    return found if found in RELEASES else None


def public_name(name: str) -> tuple[str, str | None] | None:
    """The name and the revision by which others have the policy ``name``: that of a release or of an embedded policy.

    None for a folder with weights of its own, which nobody else has.
    """
    repository, _, revision = name.partition("@")
    if Path(name).is_dir():
        release = None if (Path(name) / "policy.json").exists() else release_of(name)
        return (release, None) if release else None
    return (repository, revision or None) if repository in RELEASES or (EMBEDDED / repository / "policy.json").exists() else None
