"""The aMUSEd VQ tokenizer of MMaDA-Parallel-A: diffusers' ``VQModel`` behind the interface that the policies use.

Facts: tyfeld/MMaDA-Parallel, ``MMaDA-Parallel-A/utils/image_utils.py``: pixels in [0, 1], codes decoded without quantising again.
"""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pararl.policy_files import REMEDY
from pararl.readers import read_json, record_of
from policies.weights import load_exactly


class AmusedVQ(nn.Module):
    """``get_code(pixels)`` and ``decode_code(codes)``, pixels in [-1, 1] as for every tokenizer here."""

    def __init__(self, vq: Any) -> None:
        """``vq``: diffusers' ``VQModel``, which is imported only where somebody has one."""
        super().__init__()
        self.vq = vq

    @classmethod
    def from_pretrained(cls, directory: Path) -> "AmusedVQ":
        """Read a directory of diffusers' format. Raises ImportError that says what to install, and ValueError where a key is missing or
        left over."""
        try:
            from diffusers import VQModel
        except ImportError as error:
            raise ImportError("the image tokenizer of MMaDA-Parallel-A is diffusers': pip install 'pararl[diffusers]'") from error
        model = record_of(VQModel.from_config, read_json(directory / "config.json", REMEDY), directory / "config.json", REMEDY)
        load_exactly(model, directory, ("diffusion_pytorch_model.safetensors", "model.safetensors"))
        return cls(model)

    @property
    def factor(self) -> int:
        """Pixels per token along each side."""
        return int(2 ** (len(self.vq.config.block_out_channels) - 1))

    @property
    def codebook_size(self) -> int:
        """How many codes there are."""
        return int(self.vq.config.num_vq_embeddings)

    def get_code(self, pixels: Tensor) -> Tensor:
        """Codes [batch, h w] of pixels [batch, 3, height, width] in [-1, 1]."""
        latents = self.vq.encode((pixels + 1) / 2).latents
        codes: Tensor = self.vq.quantize(latents)[2][2]
        return codes.reshape(len(pixels), -1)

    def decode_code(self, codes: Tensor, shape: tuple[int, int] | None = None) -> Tensor:
        """Pixels [batch, 3, h f, w f], about in [-1, 1], of codes [batch, h w]; ``shape`` (h, w), square when None."""
        side = round(codes.shape[1] ** 0.5)
        height, width = shape or (side, side)
        size = (len(codes), height, width, self.vq.config.latent_channels)
        pixels: Tensor = self.vq.decode(codes, force_not_quantize=True, shape=size).sample
        return pixels * 2 - 1

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write weights and configuration as diffusers does: safetensors and JSON."""
        self.vq.save_pretrained(save_directory)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels after encode and decode, same shape."""
        return self.decode_code(self.get_code(pixels), (pixels.shape[2] // self.factor, pixels.shape[3] // self.factor))
