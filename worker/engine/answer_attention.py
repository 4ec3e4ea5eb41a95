"""Attention as answers need it where torch makes it: one token of each of several answers, or the first of a prompt."""

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.engine.attention import hidden

LONGEST = 256  # tokens; above, the whole square of weights costs more than it gains


def spoken(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """One token of every answer; heads that share a key head are its queries: (answers, key heads, shared, width)."""
    if query.dtype != torch.bfloat16 or query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scaling)
    # The processor's own attention takes three times as long for a single query in bf16 as these products.
    scores = (query * scaling) @ keys.transpose(-1, -2)
    if mask is not None:
        scores += mask
    return torch.softmax(scores, -1, dtype=torch.float32).to(query.dtype) @ values


def is_short(query: Tensor) -> bool:
    """Whether `begun` is the faster way for so many tokens."""
    return query.device.type == "cpu" and len(query) <= LONGEST


def begun(query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
    """The first tokens of a prompt, each with those before it: queries (tokens, heads, width), keys and values (tokens,
    key heads, width) to (tokens, heads · width). Torch's own attention takes three times as long for so few."""
    count, heads, width = query.shape
    groups = keys.shape[1]
    asked = (query * scaling).transpose(0, 1).reshape(groups, -1, width)
    scores = torch.bmm(asked, keys.permute(1, 2, 0))
    scores.view(groups, -1, count, count).add_(hidden(count, count, None, scores.dtype))
    weights = torch.softmax(scores, -1)
    return torch.bmm(weights, values.transpose(0, 1)).view(heads, count, width).transpose(0, 1).reshape(count, -1)
