"""What this machine must have for a run, checked before Ray or any actor starts. A mistake is a line within seconds, not an actor that
fails.

Nothing here loads torch.
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from pararl.cli.input_checks import input_problems
from pararl.config import Config, ConfigError
from pararl.rollout.cluster import lacking_gpus, starts_own_ray, temp_folder, unreachable
from pararl.tracking.tracking import resolve_mode

ROOM = 100 * 2**20
"""Bytes that must be free for Ray's sockets and logs."""


def preflight(config: Config, folder: Path) -> None:
    """Raise one ConfigError with everything that keeps ``config`` from running here with its results in ``folder``."""
    problems = [*unwritable(folder), *tracking(config), *input_problems(config)]
    if starts_own_ray():
        problems += cramped(temp_folder(), os.getpid())
        if (count := gpus(os.environ)) is not None and (told := lacking_gpus(config, count, "this machine")):
            problems.append(told)
    # A cluster has other GPUs than this machine: start_ray asks it once it is joined.
    elif told := unreachable():
        problems.append(told)
    if problems:
        raise ConfigError("; ".join(problems))


def unwritable(folder: Path, name: str = "run.dir", remedy: str = "set --run.dir") -> Iterator[str]:
    """What is wrong with the folder of a run, which need not be there yet: a file is made and removed where it will be."""
    above = existing(folder)
    try:
        # Tried rather than asked: os.access may say yes where a network file system then refuses.
        tempfile.TemporaryFile(dir=above).close()
    except OSError as error:
        yield f"{name}: {above} cannot be written to: {error.strerror} ({remedy})"


def existing(folder: Path) -> Path:
    """The folder, or that above it which is there."""
    return next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())


def cramped(folder: Path, process: int, needed: int = ROOM) -> Iterator[str]:
    """Why a Ray that ``process`` starts cannot keep its sockets and logs in ``folder``, where ``needed`` bytes must be free."""
    name = f"Ray's folder {folder}"
    socket = folder / f"session_2026-01-01_00-00-00_000000_{process}" / "sockets" / "plasma_store"
    longest = 103 if sys.platform == "darwin" else 107
    if (over := len(os.fsencode(socket)) - longest) > 0:
        room = len(os.fsencode(folder.parent)) - over
        yield f"{name}: paths of sockets may have {longest} bytes, there they have {longest + over} (set RAY_TMPDIR, of {room} at most)"
    told = list(unwritable(folder, name, "set RAY_TMPDIR"))
    yield from told
    if not told and (free := shutil.disk_usage(existing(folder)).free) < needed:
        yield f"{name}: {free / 2**20:.0f} MiB are free there, and Ray needs {needed / 2**20:.0f} (set RAY_TMPDIR)"


def tracking(config: Config) -> Iterator[str]:
    """What is wrong with how W&B is to be used."""
    try:
        resolve_mode(config.track.mode, os.environ)
    except ValueError as error:
        yield str(error)


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
