"""The image tokenizer of Chameleon, a VQGAN: transformers' encoder and codebook, and its Janus's decoder with Chameleon's sizes.

Pixels -> ``encode`` -> latents -> ``indices`` -> codes [batch, rows, columns] -> ``tokens`` -> ids of the vocabulary -> ``codebook`` ->
vectors -> ``decode`` -> pixels. Keys of the weights are those of taming-transformers, which Chameleon's ``vqgan.ckpt`` has. Checkpoints of
transformers have those of the encoder under ``model.vqmodel.``. Facts: CompVis/taming-transformers, ``taming/models/vqgan.py``;
transformers, ``convert_chameleon_weights_to_hf.py``.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.chameleon.configuration_chameleon import ChameleonVQVAEConfig
from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE
from transformers.models.janus.configuration_janus import JanusVQVAEConfig
from transformers.models.janus.modeling_janus import JanusVQVAEAttnBlock, JanusVQVAEDecoder

DIGITS = str.maketrans("0123456789", "ABCDEFGHIJ")
NUMBERS = str.maketrans("ABCDEFGHIJ", "0123456789")


def code_name(code: int) -> str:
    """What the vocabulary calls an image code: its digits as letters, ``IMGIMGBCZ`` is 12."""
    return f"IMGIMG{str(code).translate(DIGITS)}Z"


def code_ids(vocabulary_map: Mapping[str, int]) -> Tensor:
    """The vocabulary id of each image code, int64 [codes]. Raises ValueError where a code has none, or there are no codes at all."""
    named = {int(m[1].translate(NUMBERS)): i for name, i in vocabulary_map.items() if (m := re.fullmatch(r"IMGIMG([A-J]+)Z", name))}
    if not named or sorted(named) != list(range(len(named))):
        raise ValueError(f"the vocabulary names {len(named)} image codes (IMGIMG...Z), which are not 0, 1, 2 and so on")
    return torch.tensor([named[code] for code in range(len(named))])


class ChameleonVQ(PreTrainedModel):
    """The tokenizer; ``config.decoder`` says whether it has a decoder, without which images are read and not drawn."""

    config_class = ChameleonVQVAEConfig
    main_input_name = "pixels"

    def __init__(self, config: ChameleonVQVAEConfig) -> None:
        super().__init__(config)
        reader = ChameleonVQVAE(config)
        self.encoder, self.quantize = reader.encoder, reader.quantize
        self.quant_conv, self.post_quant_conv = reader.quant_conv, reader.post_quant_conv
        self.decoder = new_decoder(config) if getattr(config, "decoder", True) else None
        self.post_init()

    @property
    def factor(self) -> int:
        """Pixels per token along each side."""
        return int(2 ** (len(self.config.channel_multiplier) - 1))

    @property
    def codebook_size(self) -> int:
        """How many codes there are."""
        return int(self.config.num_embeddings)

    # ---- from pixels to pixels

    def encode(self, pixels: Tensor) -> Tensor:
        """Latents [batch, channels, rows, columns] of pixels [batch, 3, height, width] in [-1, 1]."""
        latents: Tensor = self.quant_conv(self.encoder(pixels))
        return latents

    def indices(self, latents: Tensor) -> Tensor:
        """The nearest codes int64 [batch, rows, columns] of latents."""
        batch, _, rows, columns = latents.shape
        found: Tensor = self.quantize(latents)[2]
        return found.view(batch, rows, columns)

    def tokens(self, indices: Tensor, ids: Tensor | None = None) -> Tensor:
        """Codes in raster order, [batch, rows * columns], as the ``ids`` int64 [codes] that a vocabulary gives them (None: themselves)."""
        codes = indices.flatten(1)
        return codes if ids is None else ids.to(codes.device)[codes]

    def codebook(self, tokens: Tensor, grid: tuple[int, int], ids: Tensor | None = None) -> Tensor:
        """Vectors [batch, channels, rows, columns] of tokens [batch, rows * columns], the inverse of ``tokens`` first."""
        codes = tokens
        if ids is not None:
            given, order = ids.to(tokens.device).sort()
            codes = order[torch.searchsorted(given, tokens)]
        return self.quantize.embedding(codes.unflatten(1, grid)).movedim(-1, 1)

    def decode(self, vectors: Tensor) -> Tensor:
        """Pixels [batch, 3, height, width], about in [-1, 1], of vectors. Raises ValueError where there is no decoder."""
        if self.decoder is None:
            raise ValueError(
                "this image tokenizer has no decoder, as transformers' Chameleon checkpoints have none: name a directory of the whole "
                "VQGAN (image_tokenizer=)"
            )
        x = self.decoder.mid(self.decoder.conv_in(self.post_quant_conv(vectors)))
        level: Any
        for level in reversed(self.decoder.up):
            for i, block in enumerate(level.block):
                x = block(x)
                x = level.attn[i](x) if level.attn else x
            x = level.upsample(x) if hasattr(level, "upsample") else x
        pixels: Tensor = self.decoder.conv_out(nn.functional.silu(self.decoder.norm_out(x)))
        return pixels

    # ---- as every image tokenizer here

    def get_code(self, pixels: Tensor) -> Tensor:
        """Codes [batch, rows * columns] of pixels."""
        return self.tokens(self.indices(self.encode(pixels)))

    def decode_code(self, codes: Tensor, shape: tuple[int, int] | None = None) -> Tensor:
        """Pixels of codes [batch, rows * columns]; ``shape`` (rows, columns), square when None."""
        side = round(codes.shape[1] ** 0.5)
        return self.decode(self.codebook(codes, shape or (side, side)))

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels after encode and decode, same shape."""
        return self.decode_code(self.get_code(pixels), (pixels.shape[2] // self.factor, pixels.shape[3] // self.factor))


def new_decoder(config: ChameleonVQVAEConfig) -> JanusVQVAEDecoder:
    """Janus's decoder as taming's has it: levels counted from the highest resolution on, and attention in those of
    ``config.attn_resolutions`` alone. ``ChameleonVQ.decode`` runs it; its own ``forward`` counts the other way round."""
    sizes = {
        name: getattr(config, name) for name in ("base_channels", "channel_multiplier", "num_res_blocks", "latent_channels", "dropout")
    }
    janus = JanusVQVAEConfig(**sizes)
    decoder = JanusVQVAEDecoder(janus)
    decoder.up = nn.ModuleList(reversed(decoder.up))
    for i, times in enumerate(config.channel_multiplier):
        attentive = config.resolution // 2**i in (config.attn_resolutions or ())
        blocks = range(config.num_res_blocks + 1 if attentive else 0)
        decoder.up[i].attn = nn.ModuleList(JanusVQVAEAttnBlock(config.base_channels * times) for _ in blocks)
    return decoder
