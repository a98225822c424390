"""Which VAE a directory holds: what a policy with continuous images reads and writes them by."""

import json
from pathlib import Path
from typing import Any


def read_vae(directory: Path) -> Any:
    """The VAE in a directory: Wan 2.1's through diffusers, or a small one of ours. Raises what their loading raises."""
    if json.loads((directory / "config.json").read_text()).get("_class_name") == "AutoencoderKLWan":
        from policies.image.wan import WanVAE

        return WanVAE.from_pretrained(directory)
    from policies.image.continuous import ContinuousVAE

    return ContinuousVAE.from_pretrained(directory)
