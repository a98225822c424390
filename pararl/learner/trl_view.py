"""A policy that writes text token by token as TRL sees a language model, for outputs that are text alone.

TRL asks the model that it is given for its last hidden states only, and applies the weights of ``get_output_embeddings()`` itself, all of
their rows. So what is the policy's own stands here, on either side of that. Before it, the layout's mask of the ids. Behind it, the
head of a text, which has the text rows alone, and the forbidden ones of these out of reach.
"""

from copy import deepcopy
from types import SimpleNamespace
from typing import Any

from torch import Tensor
from transformers import GenerationConfig, PretrainedConfig
from transformers.modeling_outputs import BaseModelOutput

from policies import Policy
from policies.backbones.layers import Backbone
from policies.sequences import Sequences

OUT_OF_REACH = -1e9
"""Bias of a forbidden row. Not -inf: TRL also takes the mean of the logits and their entropy, which would be NaN."""


class TextView(Backbone):
    """The layers of a policy's backbone under the names that they have there: an adapter of the view is an adapter of the policy."""

    config_class = PretrainedConfig
    base_model_prefix = ""  # transformers' ``base_model``, which TRL asks for hidden states, is then the view itself

    def __init__(self, policy: Policy) -> None:
        super().__init__(deepcopy(policy.model.config))  # TRL writes into it
        for name, part in policy.model.named_children():
            self.add_module(name, part)
        self.policy = policy
        self.generation_config = GenerationConfig()  # and into this

    def forward(self, input_ids: Tensor, attention_mask: Tensor, use_cache: bool = False) -> BaseModelOutput:
        """Last hidden states [batch, length, width] of ids [batch, length], whose padding (0 in the mask) may stand anywhere."""
        mask = self.policy.layout.mask(input_ids, attention_mask.bool())
        return BaseModelOutput(self.policy.model.hidden(Sequences(input_ids, mask)))

    def get_output_embeddings(self) -> Any:
        """The head of a text, ``weight`` and ``bias``."""
        head, rows = self.policy.model.get_output_embeddings(), self.policy.layout.text.vocabulary.rows("text")
        forbidden = self.policy.tokens.text_bias.to(head.bias).clamp_min(OUT_OF_REACH)
        return SimpleNamespace(weight=head.weight[rows], bias=head.bias[rows] + forbidden)
