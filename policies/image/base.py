"""What a policy needs of its image tokenizer: discrete codes, or continuous latents."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, Self

from torch import Tensor, nn


class ImageTokenizer(Protocol):
    """A torch module that turns pixels into codes and back.

    Pixels are float32 [batch, 3, height, width] in [-1, 1], codes int64 [batch, rows * columns] in raster order.
    """

    @property
    def factor(self) -> int:
        """Pixels per token along each side."""

    @property
    def codebook_size(self) -> int:
        """How many codes there are."""

    def get_code(self, pixels: Tensor) -> Tensor:
        """Codes of pixels."""

    def decode_code(self, codes: Tensor, shape: tuple[int, int] | None = None) -> Tensor:
        """Pixels, about in [-1, 1], of codes; ``shape`` (rows, columns), square when None."""

    def save_pretrained(self, save_directory: str | Path, /) -> Any:
        """Write weights and configuration: safetensors and JSON."""

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def eval(self) -> Self: ...

    def requires_grad_(self, requires_grad: bool = True) -> Self: ...


class ImageLatents(Protocol):
    """A torch module that turns pixels into continuous latents and back.

    Pixels are float32 [batch, 3, height, width] in [-1, 1]. Latents are float32 [batch, channels, height / factor, width / factor].
    Each channel has mean 0 and standard deviation 1 over the images that it was made for.
    """

    @property
    def factor(self) -> int:
        """Pixels per latent along each side."""

    @property
    def channels(self) -> int:
        """Numbers per latent."""

    def encode(self, pixels: Tensor) -> Tensor:
        """Latents of pixels, without noise."""

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels, about in [-1, 1], of latents."""

    def save_pretrained(self, save_directory: str | Path, /) -> Any:
        """Write weights and configuration: safetensors and JSON."""

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def eval(self) -> Self: ...

    def requires_grad_(self, requires_grad: bool = True) -> Self: ...
