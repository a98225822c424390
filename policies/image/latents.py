"""Which VAE a directory holds: what a policy with continuous images reads and writes them by."""

from pathlib import Path
from typing import Any

from pararl.policy_files import REMEDY
from pararl.readers import read_json
from policies.weights import read_model


def read_vae(directory: Path) -> Any:
    """The VAE in a directory: Wan 2.1's through diffusers, or a small one of ours. Raises ValueError for files that do
    not hold one."""
    if read_json(directory / "config.json", REMEDY).get("_class_name") == "AutoencoderKLWan":
        from policies.image.wan import WanVAE

        return WanVAE.from_pretrained(directory)
    from policies.image.continuous import ContinuousVAE

    return read_model(ContinuousVAE, directory)
