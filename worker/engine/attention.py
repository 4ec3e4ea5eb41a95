"""Attention within short sequences on a CPU in bf16, with its gradient written out.

Torch's own attention for CPUs makes the gradient of bf16 in small pieces and takes two to six times as long as these
plain products (rows of 64 to 512 tokens, one core); in fp32 it is as fast, and longer rows want its little memory.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LONGEST = 512  # tokens; above, the whole square of weights costs more than it gains
KEPT = 256  # tokens; above, the square is made again for the gradient and not kept
PIECE = 256  # queries of a longer sequence that are looked at together


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
    scores.view(len(asked), -1, length, length).add_(hidden(length, length, None, scores.dtype))
    return torch.softmax(scores, dim=-1)


def attend(
    joint: Tensor, lengths: tuple[int, ...], heads: int, key_heads: int, scaling: float, window: int | None, keeps: bool
) -> tuple[Tensor, list[Tensor | None]]:
    """Causal attention within each of `lengths`: (rows, heads + 2 key heads times width) to (rows, heads times width).

    With `keeps` also what the gradient wants of each run of equal lengths: queries, keys, values, weights or None.
    """
    width = joint.shape[1] // (heads + 2 * key_heads)
    out = joint.new_empty(len(joint), heads * width)
    kept: list[Tensor | None] = []
    for start, count, length in _runs(lengths):
        rows = joint[start : start + count * length].view(count, length, -1, width)
        place = out[start : start + count * length].view(count, length, key_heads, -1, width).permute(0, 2, 3, 1, 4)
        if not keeps and (window or length) >= length:
            parts = (rows[:, :, :heads], rows[:, :, heads : heads + key_heads], rows[:, :, heads + key_heads :])
            query, key, value = (part.transpose(1, 2) for part in parts)
            found = F.scaled_dot_product_attention(
                query, key, value, is_causal=True, scale=scaling, enable_gqa=heads != key_heads
            )
            place.copy_(found.unflatten(1, (key_heads, -1)))
            continue
        asked, keys, values = _laid_out(rows, heads, key_heads, scaling)
        weights: Tensor | None = None
        for first, last in _pieces(length):
            weights = _shares(asked[:, :, first:last], keys[:, :last], window)
            found = torch.bmm(weights, values[:, :last])
            place[:, :, :, first:last].copy_(found.view(count, key_heads, -1, last - first, width))
        kept += [asked, keys, values, weights if length <= KEPT else None]
    return out, kept if keeps else []


def attend_backward(
    grad: Tensor,
    shape: torch.Size,
    kept: Sequence[Tensor | None],
    lengths: tuple[int, ...],
    heads: int,
    key_heads: int,
    scaling: float,
    window: int | None,
) -> Tensor:
    """The gradient of `joint`, of this shape, from that of what `attend` gave."""
    width = shape[1] // (heads + 2 * key_heads)
    done = grad.new_empty(shape)
    for number, (start, count, length) in enumerate(_runs(lengths)):
        asked, keys, values, weights = kept[4 * number : 4 * number + 4]
        assert asked is not None
        assert keys is not None
        assert values is not None
        place = done[start : start + count * length].view(count, length, -1, width)
        to_asked = place[:, :, :heads].unflatten(2, (key_heads, -1)).permute(0, 2, 3, 1, 4)
        given = grad[start : start + count * length].view(count, length, key_heads, -1, width).permute(0, 2, 3, 1, 4)
        given = given.reshape(count * key_heads, -1, length, width)
        pieces = _pieces(length)
        # Of several pieces the sums are kept in fp32.
        to_keys = torch.zeros_like(keys, dtype=torch.float32) if pieces[1:] else None
        to_values = torch.zeros_like(values, dtype=torch.float32) if pieces[1:] else None
        for first, last in pieces:
            part, some = asked[:, :, first:last], given[:, :, first:last].reshape(len(keys), -1, width)
            if weights is None or pieces[1:]:
                weights = _shares(part, keys[:, :last], window)
            values_now = torch.bmm(weights.transpose(1, 2), some)
            to_weights = torch.bmm(some, values[:, :last].transpose(1, 2))
            to_scores = torch._softmax_backward_data(to_weights, weights, -1, weights.dtype)
            found = torch.bmm(to_scores, keys[:, :last]).view(count, key_heads, -1, last - first, width)
            torch.mul(found, scaling, out=to_asked[:, :, :, first:last])
            keys_now = torch.bmm(to_scores.transpose(1, 2), part.reshape(len(keys), -1, width))
            if to_keys is None or to_values is None:
                to_keys, to_values = keys_now, values_now
            else:
                to_keys[:, :last] += keys_now
                to_values[:, :last] += values_now
        assert to_keys is not None
        assert to_values is not None
        place[:, :, heads : heads + key_heads].copy_(to_keys.view(count, key_heads, length, width).transpose(1, 2))
        place[:, :, heads + key_heads :].copy_(to_values.view(count, key_heads, length, width).transpose(1, 2))
    return done


def _runs(lengths: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
    """(first row, how many sequences, their length) of neighbours of equal length."""
    start = 0
    for length, group in groupby(lengths):
        count = len(list(group))
        yield start, count, length
        start += count * length


def _pieces(length: int) -> list[tuple[int, int]]:
    return [(first, min(first + PIECE, length)) for first in range(0, length, PIECE)]


def _laid_out(rows: Tensor, heads: int, key_heads: int, scaling: float) -> tuple[Tensor, Tensor, Tensor]:
    """Scaled queries (groups, heads that share keys, length, width), keys and values (groups, length, width)."""
    count, length, _, width = rows.shape
    asked = rows.new_empty(count, key_heads, heads // key_heads, length, width)
    torch.mul(rows[:, :, :heads].unflatten(2, (key_heads, -1)).permute(0, 2, 3, 1, 4), scaling, out=asked)
    keys, values = (
        rows[:, :, start : start + key_heads].transpose(1, 2).reshape(-1, length, width)
        for start in (heads, heads + key_heads)
    )
    return asked.flatten(0, 1), keys, values


def _shares(asked: Tensor, keys: Tensor, window: int | None) -> Tensor:
    """(groups, queries of every head that shares the keys, keys): what each query takes of each token."""
    queries, reach = asked.shape[2], keys.shape[1]
    scores = torch.bmm(asked.reshape(len(keys), -1, keys.shape[2]), keys.transpose(1, 2))
    scores.view(len(keys), -1, queries, reach).add_(hidden(queries, reach, window, scores.dtype))
    return torch.softmax(scores, dim=-1)


@lru_cache(maxsize=64)
def hidden(queries: int, reach: int, window: int | None, dtype: torch.dtype) -> Tensor:
    """Minus infinity where one of the last `queries` of `reach` tokens may not look."""
    here, there = torch.arange(reach - queries, reach)[:, None], torch.arange(reach)[None]
    forbidden = there > here
    if window:
        forbidden |= there <= here - window
    return torch.zeros(queries, reach, dtype=dtype).masked_fill_(forbidden, float("-inf"))
