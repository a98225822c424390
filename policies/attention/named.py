"""Our attention under a name that transformers' layers know it by."""

from typing import Any

from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from policies.attention.core import attention

ATTENTION = "pararl"
"""The name, for ``_attn_implementation`` of a configuration."""


def _attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **_: Any) -> tuple[Tensor, None]:
    """transformers' interface: out [batch, length, heads, width], and no weights."""
    return attention(query, key, value, attention_mask).transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, _attend)
