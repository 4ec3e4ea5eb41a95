"""Attention within short sequences on a CPU in bf16, with its gradient written out.

Torch's own attention for CPUs makes the gradient of bf16 in small pieces and takes two to six times as long as these
plain products (rows of 64 to 512 tokens, one core); in fp32 it is as fast, and longer rows want its little memory.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

LONGEST = 512  # tokens; above, the whole square of weights costs more than it gains
KEPT = 256  # tokens; above, the square is made again for the gradient and not kept


def is_short(query: Tensor, dropout: float) -> bool:
    """Whether `short_attention` is the faster way; `query` is (sequences, heads, tokens, head width).

    Only its gradient is: layers that do not learn use torch's own, whether what they say is kept or not.
    """
    if query.device.type != "cpu" or dropout or not query.requires_grad or query.shape[2] > LONGEST:
        return False
    return query.dtype is torch.bfloat16 or (
        torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") is torch.bfloat16
    )


def short_attention(query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    """Causal attention. (sequences, heads, tokens, head width), keys and values with as many heads or a divisor of it.

    `scaling` None: one by the root of the head width.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    with torch.autocast("cpu", enabled=False):
        out: Tensor = _ShortAttention.apply(*(part.to(torch.bfloat16) for part in (query, key, value)), scale)
    return out


class _ShortAttention(torch.autograd.Function):
    """softmax(Q K^T) V. The query heads that share keys lie one after the other, so that each product is one."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        count, heads, length, width = query.shape
        groups = count * key.shape[1]
        asked = (query * scale).reshape(groups, -1, width)
        keys, values = key.reshape(groups, length, width), value.reshape(groups, length, width)
        weights = _weights(asked, keys, length)
        ctx.save_for_backward(asked, keys, values, weights if length <= KEPT else None)
        ctx.shapes = query.shape, key.shape, scale
        return torch.bmm(weights, values).view(count, heads, length, width)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        asked, keys, values, weights = ctx.saved_tensors
        query_shape, key_shape, scale = ctx.shapes
        grad = grads[0].to(asked.dtype).reshape(asked.shape)
        if weights is None:
            weights = _weights(asked, keys, query_shape[2])
        to_values = torch.bmm(weights.transpose(1, 2), grad)
        to_weights = torch.bmm(grad, values.transpose(1, 2))
        to_scores = torch._softmax_backward_data(to_weights, weights, -1, weights.dtype)
        to_asked = torch.bmm(to_scores, keys).mul_(scale)
        to_keys = torch.bmm(to_scores.transpose(1, 2), asked)
        return to_asked.view(query_shape), to_keys.view(key_shape), to_values.view(key_shape), None


def _weights(asked: Tensor, keys: Tensor, length: int) -> Tensor:
    """(groups, queries of every head that shares the keys, tokens): what each query takes of each token."""
    scores = torch.bmm(asked, keys.transpose(1, 2))
    scores.view(len(asked), -1, length, length).add_(_later(length))
    return torch.softmax(scores, dim=-1)


@lru_cache(maxsize=32)
def _later(length: int) -> Tensor:
    """Minus infinity where a query may not look."""
    return torch.full((length, length), float("-inf"), dtype=torch.bfloat16).triu(1)
