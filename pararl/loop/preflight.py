"""What this machine must have for a run, checked before Ray or any actor starts. A mistake is a line within seconds, not an actor that
fails.

Nothing here loads torch.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from pararl.cli.input_checks import input_problems
from pararl.config import Config, ConfigError
from pararl.rollout.actors import lacking_gpus, starts_own_ray
from pararl.tracking.tracking import resolve_mode


def preflight(config: Config, folder: Path) -> None:
    """Raise one ConfigError with everything that keeps ``config`` from running here with its results in ``folder``."""
    problems = [*unwritable(folder), *tracking(config), *input_problems(config)]
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
