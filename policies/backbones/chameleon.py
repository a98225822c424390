"""The Chameleon backbone: transformers' ``ChameleonModel`` and a head over one vocabulary of texts and images, under the released names.

transformers' ``ChameleonForConditionalGeneration`` is not used. Its ``forward`` puts the logits of image tokens to the lowest number. The
loss of an image is infinite then, and the head learns nothing of it. The image tokenizer that it carries (``model.vqmodel``) is read by the
image codec, not by this model.
"""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import ChameleonConfig as ReleasedConfig
from transformers import ChameleonModel
from transformers.models.chameleon.configuration_chameleon import ChameleonVQVAEConfig

from policies.attention.masks import Omni, omni
from policies.attention.named import ATTENTION
from policies.backbones.decoder import Decoder
from policies.backbones.layers import Head
from policies.sampling.context import Context
from policies.sequences import Sequences

NO_IMAGES: dict[str, Any] = {
    "base_channels": 32,
    "channel_multiplier": [1],
    "num_res_blocks": 1,
    "embed_dim": 1,
    "latent_channels": 1,
    "num_embeddings": 1,
}
"""Sizes of the image tokenizer that ``ChameleonModel`` makes in any case, and that is thrown away."""


class ChameleonConfig(ReleasedConfig):
    """transformers' own. ``vocabulary_map`` names the ids of the vocabulary, those of the image codes among them."""

    attribute_map = {"embedding_size": "vocab_size"}

    def backbone(self) -> ReleasedConfig:
        """The configuration of the ``ChameleonModel`` inside."""
        found = deepcopy(self)
        found.vq_config = ChameleonVQVAEConfig(**NO_IMAGES)
        found._attn_implementation = ATTENTION
        return found


class Chameleon(Decoder):
    """A causal transformer whose queries and keys are normalised in every head."""

    config_class = ChameleonConfig
    base_model_prefix = "model"
    stack = "model"
    last_norm = "norm"
    _no_split_modules = ["ChameleonDecoderLayer", "ChameleonSwinDecoderLayer"]
    _keys_to_ignore_on_load_unexpected = [r"^model\.vqmodel\."]

    def __init__(self, config: ChameleonConfig) -> None:
        super().__init__(config)
        self.model = ChameleonModel(config.backbone())
        del self.model.vqmodel
        self.lm_head = Head(config.hidden_size, config.vocab_size, bias=False)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def begin(self, sequences: Sequences) -> Context:
        """What has read sequences, kept as keys and values. Equal rows, such as the prompt of a group, are read once."""
        mask = sequences.mask
        assert isinstance(mask, Omni)
        rows = torch.cat((sequences.ids, mask.real), 1).tolist()
        places = {tuple(row): i for i, row in reversed(list(enumerate(rows)))}
        once = sorted(places.values())
        context = Context(self.states, len(once), sequences.ids.device)
        context.read(sequences.ids[once], mask.real[once], mask.blocks[once])
        if len(once) < len(rows):
            context.spread(torch.tensor([once.index(places[tuple(row)]) for row in rows], device=sequences.ids.device))
        return context

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits over the whole vocabulary, [batch, length, vocab_size], image tokens included; padding, 0 in the mask, may stand
        anywhere."""
        mask = omni(torch.zeros_like(input_ids), attention_mask)
        return self.head(self.hidden(Sequences(input_ids, mask)))
