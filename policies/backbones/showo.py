"""The Show-o backbone as released: transformers' Phi over one text + image-code vocabulary, under the released names.

Facts: showlab/Show-o, ``models/modeling_showo.py`` and ``models/phi.py``. Its Phi normalises queries and keys in every layer, whatever the
configuration of Phi says. Text is causal, and the tokens of an image see all of it.
"""

from typing import Any

from torch import Tensor, nn
from transformers import PhiConfig, PhiForCausalLM, PretrainedConfig

from policies.attention.masks import Omni
from policies.attention.named import ATTENTION
from policies.backbones.decoder import Decoder
from policies.backbones.layers import Head
from policies.sampling.context import Context
from policies.sequences import Sequences

PHI_1_5 = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "partial_rotary_factor": 0.5,
}
"""Sizes of the released backbone."""


class ShowoConfig(PretrainedConfig):
    """Sizes of a Show-o backbone under the released names, and in ``phi`` those of its Phi, which the release leaves to
    ``llm_model_path``.

    Raises ValueError for a release that reads images through CLIP features: this backbone reads image codes.
    """

    model_type = "showo"
    attribute_map = {"embedding_size": "vocab_size"}

    def __init__(
        self,
        vocab_size: int = 58498,
        llm_vocab_size: int = 50295,
        codebook_size: int = 8192,
        num_vq_tokens: int = 256,
        mask_token_id: int | None = None,
        w_clip_vit: bool = False,
        phi: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if w_clip_vit:
            raise ValueError(
                "w_clip_vit is true in the configuration, which this backbone does not do: take a release that reads image codes"
            )
        self.vocab_size = vocab_size
        self.llm_vocab_size = llm_vocab_size
        self.codebook_size = codebook_size
        self.num_vq_tokens = num_vq_tokens
        self.mask_token_id = vocab_size - 1 if mask_token_id is None else mask_token_id
        self.w_clip_vit = w_clip_vit
        self.phi = PHI_1_5 if phi is None else phi
        super().__init__(**{"tie_word_embeddings": False, **kwargs})

    def backbone(self) -> PhiConfig:
        """The configuration of the Phi inside."""
        # Upstream's Phi norms queries and keys and has a head of its own, whatever the configuration of Phi says.
        given = {**self.phi, "vocab_size": self.vocab_size, "qk_layernorm": True, "tie_word_embeddings": False}
        config = PhiConfig(**given)
        config._attn_implementation = ATTENTION
        return config


class Showo(Decoder):
    """Show-o's transformer."""

    config_class = ShowoConfig
    base_model_prefix = "showo"
    stack = "showo.model"
    last_norm = "final_layernorm"
    _no_split_modules = ["PhiDecoderLayer"]

    def __init__(self, config: ShowoConfig) -> None:
        super().__init__(config)
        self.showo = PhiForCausalLM(config.backbone())
        # The rows asked for alone: the image codes are a seventh of the vocabulary.
        self.showo.lm_head = Head.of(self.showo.lm_head)
        self.gradient_checkpointing = False
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Phi's own, which ran when it was made."""

    def get_input_embeddings(self) -> nn.Module:
        return self.showo.model.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        return self.showo.lm_head

    def begin(self, sequences: Sequences) -> Context:
        """What has read sequences, kept as keys and values."""
        mask = sequences.mask
        assert isinstance(mask, Omni)
        context = Context(self.states, len(sequences.ids), sequences.ids.device)
        context.read(sequences.ids, mask.real, mask.blocks)
        return context

    def forward(self, input_ids: Tensor, seen: Tensor, positions: Tensor) -> Tensor:
        """Logits over the whole vocabulary, [batch, length, vocab_size]; see ``states``."""
        return self.head(self.states(input_ids, seen, positions))
