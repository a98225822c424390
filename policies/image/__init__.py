"""Image tokenizers: pixels <-> discrete codes."""

from policies.image.magvitv2 import MAGVITv2, MAGVITv2Config

__all__ = ["MAGVITv2", "MAGVITv2Config"]
