"""Scaled dot-product attention, by torch or written out where that is faster."""

import torch
import torch.nn.functional as F
from torch import Tensor

from policies.cpu import EXACT


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention of q [batch, heads, length, width] over k and v [batch, kv heads, keys, width], of which each serves
    equally many heads. ``mask`` bool, broadcast to [batch, heads, length, keys]: true where a key is seen.

    torch's own, but where oneDNN multiplies: it is slow at the small blocks of torch's, and faster at whole products.
    """
    # Several queries may share a key (grouped-query attention).
    shared = q.shape[-3] // k.shape[-3]
    if q.device.type != "cpu" or torch.get_float32_matmul_precision() == EXACT:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=shared > 1)
    if shared > 1:
        k, v = k.repeat_interleave(shared, -3), v.repeat_interleave(shared, -3)
    batch, heads, length, width = q.shape
    flat = (batch * heads, -1, width)
    keys = k.reshape(flat).transpose(-2, -1)
    if mask is None:
        scores = torch.bmm(q.reshape(flat), keys) * width**-0.5
    else:  # hidden keys at -inf, added within the product
        hidden = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(~mask, -torch.inf).expand(batch, heads, length, -1)
        scores = torch.baddbmm(hidden.reshape(batch * heads, length, -1), q.reshape(flat), keys, alpha=width**-0.5)
    return torch.bmm(scores.softmax(-1), v.reshape(flat)).view(batch, heads, length, -1)
