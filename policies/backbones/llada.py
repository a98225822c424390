"""The LLaDA backbone as MMaDA releases it: a bidirectional LLaMA-like transformer over one text + image-code vocabulary.

Parameter names are the released ones (``model.transformer.blocks.0.q_proj.weight`` and so on), so that a released checkpoint
loads key by key. Facts: Gen-Verse/MMaDA, ``models/modeling_llada.py`` (block type "llama", RMSNorm, rotary embedding, SwiGLU).

Unlike the released class there is no causal path: a mask only ever hides padding keys.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig

from policies.attention.core import attention
from policies.attention.masks import Full
from policies.backbones.layers import Angles, Backbone, Head, RMSNorm, angles, frequencies, rotate
from policies.sequences import Sequences

ARCHITECTURE = {
    "activation_type": "silu",
    "alibi": False,
    "attention_layer_norm": False,
    "block_type": "llama",
    "include_bias": False,
    "include_qkv_bias": False,
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "rope": True,
    "scale_logits": False,
    "weight_tying": False,
}
"""Fields of a released configuration that must say this, where they say anything."""


class MMadaConfig(PretrainedConfig):
    """Sizes of an MMaDA backbone, under the released names. Released fields that do not change this architecture are kept and ignored.

    Raises ValueError for those that would: this is the block type "llama" without biases, its head not tied.
    """

    model_type = "mmada"

    def __init__(
        self,
        d_model: int = 4096,
        n_layers: int = 32,
        n_heads: int = 32,
        n_kv_heads: int | None = None,
        mlp_hidden_size: int | None = 12288,
        rope_theta: float = 500000.0,
        rms_norm_eps: float = 1e-5,
        max_sequence_length: int = 4096,
        embedding_size: int | None = 134656,
        mask_token_id: int = 126336,
        codebook_size: int = 8192,
        num_vq_tokens: int = 1024,
        init_std: float = 0.02,
        **kwargs: Any,
    ) -> None:
        for name, only in ARCHITECTURE.items():
            if kwargs.get(name) not in (None, only):
                raise ValueError(f"{name} is {kwargs[name]!r} in the configuration, which this backbone does not do: it has {only!r}")
        self.d_model = d_model
        self.n_layers = n_layers
        self.n_heads = n_heads
        self.n_kv_heads = n_heads if n_kv_heads is None else n_kv_heads
        self.mlp_hidden_size = mlp_hidden_size or d_model * kwargs.get("mlp_ratio", 4)
        self.rope_theta = rope_theta
        self.rms_norm_eps = rms_norm_eps
        self.max_sequence_length = max_sequence_length
        self.embedding_size = embedding_size or kwargs["vocab_size"]
        self.mask_token_id = mask_token_id
        self.codebook_size = codebook_size
        self.num_vq_tokens = num_vq_tokens
        self.init_std = init_std
        super().__init__(**kwargs)


class LLaDABlock(nn.Module):
    """Pre-norm attention and SwiGLU with separate projections, without biases."""

    def __init__(self, config: MMadaConfig) -> None:
        super().__init__()
        width, hidden = config.d_model, config.mlp_hidden_size
        self.heads, self.kv_heads = config.n_heads, config.n_kv_heads
        self.head_dim = width // config.n_heads
        self.attn_norm = RMSNorm(width, config.rms_norm_eps)
        self.ff_norm = RMSNorm(width, config.rms_norm_eps)
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, self.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(width, self.kv_heads * self.head_dim, bias=False)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.ff_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.ff_out = nn.Linear(hidden, width, bias=False)
        self.feed_forward: nn.Module | None = None
        """What stands in the place of the SwiGLU, such as experts; None = the SwiGLU of the release."""

    def exchange(self, feed_forward: nn.Module) -> None:
        """Put another feed-forward, [batch, length, d_model] to the same, in the place of the SwiGLU, whose weights go."""
        del self.ff_proj, self.up_proj, self.ff_out
        self.feed_forward = feed_forward

    def forward(self, x: Tensor, turn: Angles, mask: Tensor | None, kept: Tensor | None = None) -> Tensor:
        """[batch, length, d_model], or its columns ``kept`` [n] alone: as queries, while every column is a key."""
        batch, length, width = x.shape
        y = self.attn_norm(x)
        asked, asked_turn = (y, turn) if kept is None else (y[:, kept], (turn[0][:, :, kept], turn[1][:, :, kept]))
        if kept is not None:
            x, mask = x[:, kept], None if mask is None else mask[:, :, kept]
        q = rotate(self.q_proj(asked).view(batch, -1, self.heads, self.head_dim).transpose(1, 2), *asked_turn)
        k = rotate(self.k_proj(y).view(batch, length, self.kv_heads, self.head_dim).transpose(1, 2), *turn)
        v = self.v_proj(y).view(batch, length, self.kv_heads, self.head_dim).transpose(1, 2)
        y = attention(q, k, v, mask)
        x = x + self.attn_out(y.transpose(1, 2).reshape(batch, -1, width))
        y = self.ff_norm(x)
        if self.feed_forward is not None:
            return x + self.feed_forward(y)
        return x + self.ff_out(F.silu(self.ff_proj(y)) * self.up_proj(y))


class LLaDAModel(nn.Module):
    """Holds the layers under the released names: ``transformer.wte``, ``.blocks``, ``.ln_f`` and the head ``.ff_out``."""

    def __init__(self, config: MMadaConfig) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.embedding_size, config.d_model),
                "blocks": nn.ModuleList(LLaDABlock(config) for _ in range(config.n_layers)),
                "ln_f": RMSNorm(config.d_model, config.rms_norm_eps),
                "ff_out": Head(config.d_model, config.embedding_size, bias=False),
            }
        )


class MMadaModelLM(Backbone):
    """MMaDA's masked-diffusion language model: ``model(input_ids)`` gives logits [batch, length, embedding_size]."""

    config_class: type[MMadaConfig] = MMadaConfig
    base_model_prefix = "model"
    _no_split_modules = ["LLaDABlock"]

    def __init__(self, config: MMadaConfig) -> None:
        super().__init__(config)
        self.model = LLaDAModel(config)
        self.gradient_checkpointing = False
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=self.config.init_std)

    def get_input_embeddings(self) -> nn.Module:
        return self.model.transformer["wte"]

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.transformer["wte"] = value

    def get_output_embeddings(self) -> nn.Module:
        return self.model.transformer["ff_out"]

    def states(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, columns: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """Last hidden states after the final norm, [batch, length, d_model]. For ``columns`` int64 [n] alone: [batch, n, d_model], and the
        last layer does less.

        ``attention_mask`` [batch, length]: true or 1 at real tokens; padding is hidden as a key, attention stays bidirectional.
        ``positions`` int64 [length] or [batch, length]: where in its sequence each column stands, None = in the order given. They are
        relative (rotary), so left padding of any width leaves the hidden states of real tokens unchanged.
        """
        layers = self.model.transformer
        x = layers["wte"](input_ids)
        places = torch.arange(input_ids.shape[1], device=x.device) if positions is None else positions.to(x.device)
        inverse = frequencies(self.config.d_model // self.config.n_heads, self.config.rope_theta, x.device)
        turn = angles(places.view(-1, input_ids.shape[1]), inverse)
        seen = None if attention_mask is None else Full(attention_mask.bool()).dense()
        last = len(layers["blocks"]) - 1
        for i, block in enumerate(layers["blocks"]):
            # Behind the last layer nothing attends to the other columns: their queries, their feed-forward and the head are spared.
            x = self.run(block, x, turn, seen, columns if i == last else None)
        # Layers may lie on several devices (device_map): what is made of their states goes on where the ids are.
        found: Tensor = layers["ln_f"](x)
        return found.to(input_ids.device)

    def hidden(self, sequences: Sequences, columns: Tensor | None = None) -> Tensor:
        """See ``policies.sequences.Backbone``."""
        return self.states(sequences.ids, sequences.mask.real, columns)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits over the whole vocabulary, [batch, length, embedding_size]; see ``states`` for the mask."""
        return self.head(self.states(input_ids, attention_mask))


class LLaDAConfig(MMadaConfig):
    """The configuration of MMaDA-Parallel-A, which calls the same sizes ``llada``."""

    model_type = "llada"

    def __init__(self, **kwargs: Any) -> None:  # without one of its own transformers would make one
        super().__init__(**kwargs)


class LLaDAForMultiModalGeneration(MMadaModelLM):
    """The backbone of MMaDA-Parallel-A: the same layers and names, another vocabulary."""

    config_class = LLaDAConfig
