"""The adapter that a run starts from: a copy in its folder, so that the run needs the one that was named no more."""

import shutil
from pathlib import Path

from pararl.adapter_files import CONFIG, START, TENSORS
from pararl.config import Config, changed
from pararl.files import atomic_folder


def keep_start(config: Config, folder: Path) -> None:
    """Copy the adapter that ``policy.adapter`` names into the folder of a new run; nothing where it names none."""
    if config.policy.adapter:
        with atomic_folder(folder / START) as part:
            for name in (CONFIG, TENSORS):
                shutil.copyfile(Path(config.policy.adapter) / name, part / name)


def with_own_start(config: Config, folder: Path) -> Config:
    """The settings of a run whose ``policy.adapter`` is its own copy."""
    return changed(config, {"policy.adapter": str((folder / START).resolve())}) if config.policy.adapter else config
