"""What backbones of transformers' own decoder layers share: one pass through the layers, told who sees whom."""

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache

from policies.backbones.layers import Backbone
from policies.sequences import Sequences


class Decoder(Backbone):
    """A backbone whose caller says who sees whom (``policies.attention.masks``). One call serves a whole sequence and the continuation of
    a cached one."""

    stack: str
    """Where the module lies that holds ``embed_tokens``, ``rotary_emb`` and ``layers``."""
    last_norm: str
    """The norm behind the layers, by its name in the stack."""

    def states(self, input_ids: Tensor, seen: Tensor, positions: Tensor, cache: Cache | None = None) -> Tensor:
        """Last hidden states [batch, length, width] of ids [batch, length] at their ``positions`` int64 [batch, length].

        ``seen`` bool [batch, length, keys]: which keys each token sees, those in the ``cache`` first, to which the ids are added.
        """
        stack: Any = self.get_submodule(self.stack)
        x = stack.embed_tokens(input_ids)
        given = {
            "attention_mask": seen[:, None],
            "position_embeddings": stack.rotary_emb(x, position_ids=positions),
            "past_key_values": cache,
        }
        for layer in stack.layers:
            found = self.run(layer, x, **given)
            # Some of transformers' layers give more than their states.
            x = found if isinstance(found, Tensor) else found[0]
        # Layers may lie on several devices (device_map): what is made of their states goes on where the ids are.
        last: Tensor = stack.get_submodule(self.last_norm)(x)
        return last.to(input_ids.device)

    def hidden(self, sequences: Sequences, columns: Tensor | None = None) -> Tensor:
        """See ``policies.sequences.Backbone``."""
        found = self.states(sequences.ids, sequences.mask.dense()[:, 0], sequences.mask.positions())
        return found if columns is None else found[:, columns]
