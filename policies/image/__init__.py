"""Image tokenizers: pixels <-> discrete codes, or continuous latents."""

from policies.image.continuous import ContinuousVAE, ContinuousVAEConfig
from policies.image.magvitv2 import MAGVITv2, MAGVITv2Config

__all__ = ["ContinuousVAE", "ContinuousVAEConfig", "MAGVITv2", "MAGVITv2Config"]
