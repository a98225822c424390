"""Whether a reward can be loaded, asked before anything starts. A process of its own imports what is the user's, so that this one loads no
torch and outlives whatever an import does.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rewards import names

PATIENCE = 120.0
"""Seconds for an import. What takes longer is left to the reward workers."""
ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class Looked:
    """What a look at a reward found."""

    problem: str | None = None
    """None = it can be loaded."""
    form: str = "outputs"
    """What its completions are: see ``rewards/signature.py``."""
    wanted: tuple[str, ...] = ()
    """Columns of the user's prompts that it cannot do without."""


def look(name: str) -> Looked:
    """What can be said of a reward without loading it, its models or torch in this process."""
    if names.is_own(name):
        return _apart(name)
    return Looked(names.problem(name) or (_unreachable(name) if names.is_clip(name) else None))


def _apart(name: str) -> Looked:
    """The user's own, imported in another process from the same folder, as its workers do it."""
    code = "import sys; from rewards.check import answer; answer(*sys.argv[1:])"
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "said.json"
        try:
            done = subprocess.run(
                [sys.executable, "-P", "-c", code, name, str(said)],
                env={**os.environ, "PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=PATIENCE,
            )
        except subprocess.TimeoutExpired:
            return Looked()
        if said.exists():
            found: dict[str, Any] = json.loads(said.read_text(encoding="utf-8"))
            return Looked(found["problem"], found["form"], tuple(found["wanted"]))
    last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "it said nothing")
    return Looked(f"reward {name!r} ends the process that imports it (exit code {done.returncode}): {last}; mend it")


def answer(name: str, said: str) -> None:
    """The other process: import the reward, look at its signature, and write what was found to the file ``said``."""
    sys.path.append(os.getcwd())  # Ray lets its workers import from there as well
    Path(said).write_text(json.dumps(asdict(imported(name))), encoding="utf-8")
    os._exit(0)  # whatever threads the user's module has started


def imported(name: str) -> Looked:
    """What importing a reward of the user's own in this process shows: whatever goes wrong is its ``problem``."""
    from rewards.base import Reward
    from rewards.users import own, place_of

    try:
        found = own(name)
        if isinstance(found, Reward) or (isinstance(found, type) and issubclass(found, Reward)):
            return Looked()
        from rewards.signature import form_of, wanted

        return Looked(None, form_of(found, name), tuple(wanted(found, name)))
    except ValueError as error:
        if str(error).startswith(("reward ", "unknown reward ")):
            return Looked(str(error))
        return Looked(f"reward {name!r} cannot be loaded: {type(error).__name__}: {error} ({place_of(error)}; mend it)")
    except BaseException as error:  # whatever the user's module does when it is imported, an exit included
        return Looked(f"reward {name!r} cannot be loaded: {type(error).__name__}: {error} ({place_of(error)}; mend it)")


def _unreachable(name: str) -> str | None:
    """What is wrong with a model of the hub that is not cached: one question to the hub says whether it is there; None = nothing."""
    source, revision = names.clip_model(name)
    if Path(source).is_dir():
        return None
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    try:
        if isinstance(try_to_load_from_cache(source, "config.json", revision=revision), str):
            return None
        get_hf_file_metadata(hf_hub_url(source, "config.json", revision=revision), timeout=5)
    except Exception as error:  # of the hub, and of whatever library carries its requests
        return (
            f"reward {name!r}: the hub does not give {source} ({type(error).__name__}): check name and revision, or fetch it where there"
            f" is a network (hf download {source}) and name its folder, {names.CLIP}DIRECTORY"
        )
    return None
