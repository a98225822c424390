"""A bidirectional transformer of one block, with queries, keys and values in one matrix."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from policies.attention.core import attention
from policies.backbones.layers import Backbone, angles, frequencies, rotate
from policies.sequences import Sequences


class ToyConfig(PretrainedConfig):
    model_type = "toy"

    def __init__(self, width: int = 32, embedding_size: int = 64, codebook_size: int = 8, **kwargs: Any) -> None:
        self.width, self.embedding_size, self.codebook_size = width, embedding_size, codebook_size
        super().__init__(**kwargs)


class ToyBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.mixed, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (4, -1)).transpose(1, 2) for part in self.mixed(self.norm(x)).chunk(3, -1))
        seen = attention(rotate(q, *turn), rotate(k, *turn), v, mask)
        return x + self.out(seen.transpose(1, 2).flatten(2))


class Toy(Backbone):
    config_class = ToyConfig

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        self.embed = nn.Embedding(config.embedding_size, config.width)
        self.block = ToyBlock(config.width)
        self.lm_head = nn.Linear(config.width, config.embedding_size, bias=False)
        self.gradient_checkpointing = False
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.4)

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def hidden(self, sequences: Sequences, columns: Tensor | None = None) -> Tensor:
        turn = angles(sequences.mask.positions(), frequencies(self.config.width // 4, 1e4))
        found: Tensor = self.run(self.block, self.embed(sequences.ids), turn, sequences.mask.dense())
        return found if columns is None else found[:, columns]

    def head(self, hidden: Tensor, rows: slice | None = None) -> Tensor:
        logits: Tensor = self.lm_head(hidden)
        return logits if rows is None else logits[..., rows]

    def forward(self, input_ids: Tensor) -> Tensor:
        from policies.attention.masks import Full

        return self.head(self.hidden(Sequences(input_ids, Full(torch.ones_like(input_ids, dtype=torch.bool)))))
