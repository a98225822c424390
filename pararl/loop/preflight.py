"""What this machine must have for a run, checked before Ray or any actor starts. A mistake is a line within seconds, not an actor that
fails.

Nothing here loads torch, unless a reward of the user's own does.
"""

import os
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import rewards
from pararl.config import Config, ConfigError
from pararl.rollout.actors import lacking_gpus, starts_own_ray
from pararl.tracking.tracking import resolve_mode
from rewards import names


def preflight(config: Config, folder: Path) -> None:
    """Raise one ConfigError with everything that keeps ``config`` from running here with its results in ``folder``."""
    problems = [*unwritable(folder), *tracking(config), *unloadable(config)]
    # A cluster has other GPUs than this machine: start_ray asks it once it is joined.
    if starts_own_ray() and (count := gpus(os.environ)) is not None and (told := lacking_gpus(config, count, "this machine")):
        problems.append(told)
    if problems:
        raise ConfigError("; ".join(problems))


def unwritable(folder: Path) -> Iterator[str]:
    """What is wrong with the folder of a run, which need not be there yet: a file is made and removed where it will be."""
    above = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    try:
        # Tried rather than asked: os.access may say yes where a network file system then refuses.
        tempfile.TemporaryFile(dir=above).close()
    except OSError as error:
        yield f"run.dir: {above} cannot be written to: {error.strerror} (set --run.dir)"


def tracking(config: Config) -> Iterator[str]:
    """What is wrong with how W&B is to be used."""
    try:
        resolve_mode(config.track.mode, os.environ)
    except ValueError as error:
        yield str(error)


def unloadable(config: Config) -> Iterator[str]:
    """What is wrong with the rewards of the user's own, imported as their workers will do it."""
    for key, name in (("reward.name", config.reward.name), ("eval.reward", config.eval.reward)):
        if not names.is_own(name):
            continue
        try:
            with current_folder_on_path():
                rewards.own(name)
        except ValueError as error:
            yield f"{key}: {error} (set --{key})"
        except (Exception, SystemExit) as error:  # whatever the user's module does when it is imported
            yield f"{key}: reward {name!r} cannot be loaded: {type(error).__name__}: {error} ({place_of(error)}; mend it, or set --{key})"


@contextmanager
def current_folder_on_path() -> Iterator[None]:
    """Ray lets its workers import from the current folder as well; so does this, for as long as it lasts."""
    before = list(sys.path)
    sys.path.append(os.getcwd())
    try:
        yield
    finally:
        sys.path[:] = before


def place_of(error: BaseException) -> str:
    """File and line of an error: where it was raised, or what cannot be parsed."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{last.filename}, line {last.lineno}"


def gpus(environ: Mapping[str, str], devices: Path = Path("/dev")) -> int | None:
    """How many GPUs Ray would find on this machine; None where only a driver could tell (AMD's, or Windows' for Linux).

    As Ray does: those of ``CUDA_VISIBLE_DEVICES``, and no more than there are.
    """
    there = len(list(devices.glob("nvidia[0-9]*")))
    if not there and any((devices / name).exists() for name in ("kfd", "dxg")):
        return None
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    # Slurm writes NoDevFiles where a job has no GPU.
    return there if visible is None else min(there, len([name for name in visible.split(",") if name not in ("", "NoDevFiles")]))
