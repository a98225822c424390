"""The backbone of the toy family: a causal transformer of one head, which keeps keys and values."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.cache_utils import Cache

from policies.attention.core import attention
from policies.attention.masks import Omni
from policies.backbones.layers import Angles, Backbone, Head, angles, frequencies, rotate
from policies.sampling.context import Context
from policies.sequences import Sequences


class ToyConfig(PretrainedConfig):
    """Its sizes."""

    model_type = "toy"

    def __init__(self, width: int = 16, depth: int = 2, embedding_size: int = 24, codebook_size: int = 8, **kwargs: Any) -> None:
        self.width, self.depth, self.embedding_size, self.codebook_size = width, depth, embedding_size, codebook_size
        super().__init__(**kwargs)


class ToyLayer(nn.Module):
    """Attention of one head and two products around a ReLU."""

    def __init__(self, width: int, place: int) -> None:
        super().__init__()
        self.place, self.norm = place, nn.LayerNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor, seen: Tensor, turn: Angles, cache: Cache | None) -> Tensor:
        y = self.norm(x)
        q, k, v = rotate(self.q(y)[:, None], *turn), rotate(self.k(y)[:, None], *turn), self.v(y)[:, None]
        if cache is not None:
            k, v = cache.update(k, v, self.place)
        x = x + self.out(attention(q, k, v, seen[:, None])[:, 0])
        return x + self.down(self.up(x).relu())


class Toy(Backbone):
    """``hidden`` is what likelihoods ask for, ``begin`` what samplers of causal text do."""

    config_class = ToyConfig

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.embedding_size, config.width)
        self.layers = nn.ModuleList(ToyLayer(config.width, i) for i in range(config.depth))
        self.last = nn.LayerNorm(config.width)
        self.vocabulary = Head(config.width, config.embedding_size, bias=False)
        self.gradient_checkpointing = False
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.4)

    def get_output_embeddings(self) -> nn.Module:
        return self.vocabulary

    def states(self, ids: Tensor, seen: Tensor, positions: Tensor, cache: Cache | None = None) -> Tensor:
        """See ``policies.sampling.context.Hidden``."""
        x = self.embedding(ids)
        turn = angles(positions, frequencies(self.config.width, 100.0, x.device))
        for layer in self.layers:
            x = self.run(layer, x, seen, turn, cache)
        last: Tensor = self.last(x)
        return last

    def hidden(self, sequences: Sequences, columns: Tensor | None = None) -> Tensor:
        """See ``policies.sequences.Backbone``."""
        found = self.states(sequences.ids, sequences.mask.dense()[:, 0], sequences.mask.positions())
        return found if columns is None else found[:, columns]

    def begin(self, sequences: Sequences) -> Context:
        """What has read sequences."""
        assert isinstance(sequences.mask, Omni)
        context = Context(self.states, len(sequences.ids), sequences.ids.device)
        context.read(sequences.ids, sequences.mask.real, sequences.mask.blocks)
        return context

    def forward(self, input_ids: Tensor) -> Tensor:
        """Logits over the whole vocabulary of causal sequences without padding."""
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        seen = (places[:, None] >= places).expand(len(input_ids), -1, -1)
        return self.head(self.states(input_ids, seen, places.expand(input_ids.shape)))
