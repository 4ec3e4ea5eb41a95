"""The halves of a Llama block with their gradients written out: what is cheap is made again and not kept.

Rows are tokens of several sequences laid end to end. Half: the number format of the products (bf16 or that of the
weights); the stream between the blocks keeps its own.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.engine.attention import attend, attend_backward
from worker.engine.grouped import Group


def normed(states: Tensor, weight: Tensor, epsilon: float, half: torch.dtype) -> tuple[Tensor, Tensor]:
    """Root-mean-square norm (Zhang & Sennrich 2019) in `half`, and one over the root (rows, 1) in fp32."""
    size = torch.linalg.vector_norm(states, dim=-1, keepdim=True, dtype=torch.float32)
    scale = (size.square_() / states.shape[-1]).add_(epsilon).rsqrt_()
    return _scaled(states, scale, weight, half), scale


def _scaled(states: Tensor, scale: Tensor, weight: Tensor, half: torch.dtype) -> Tensor:
    even = states.float() * scale
    return even.mul_(weight).to(half) if weight.dtype is torch.float32 else even.to(half).mul_(weight)


def norm_backward(
    grad: Tensor, states: Tensor, scale: Tensor, weight: Tensor, learns: bool
) -> tuple[Tensor, Tensor | None]:
    """The gradients of the states (fp32) and of the norm's weight, from that of what it gave."""
    even, back = states.float() * scale, grad.float()
    to_weight = (back * even).sum(0) if learns else None
    back = back * weight if back is grad else back.mul_(weight)
    share = (back * even).mean(-1, keepdim=True)
    return back.addcmul_(even, share, value=-1).mul_(scale), to_weight


def turn(part: Tensor, cosines: Tensor, sines: Tensor, back: bool = False) -> None:
    """Rotary positions (Su et al. 2021) in place on (rows, heads, width); the first half of the sines is negative."""
    half = part.shape[-1] // 2
    swapped = torch.cat((part[..., half:], part[..., :half]), -1)
    part.mul_(cosines).addcmul_(swapped, sines, value=-1 if back else 1)


class Asked(torch.autograd.Function):
    """Norm, queries, keys and values, rotation: (rows, width) to (rows, heads · width) of all three, in half."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        turns: tuple[Tensor, Tensor],
        about: tuple[Group, float, int, torch.dtype],
        *learning: Tensor,
    ) -> Tensor:
        group, epsilon, turned, half = about
        rows, scale = normed(states, weight, epsilon, half)
        out, narrow = group.forward(rows)
        turn(out.view(len(out), -1, turns[0].shape[-1])[:, :turned], *turns)
        ctx.save_for_backward(states, weight, scale, narrow, *turns)
        ctx.about = about
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        states, weight, scale, narrow, cosines, sines = ctx.saved_tensors
        group, _, turned, half = ctx.about
        grad = grads[0]
        turn(grad.view(len(grad), -1, cosines.shape[-1])[:, :turned], cosines, sines, back=True)
        rows = _scaled(states, scale, weight, half)
        wants_rows = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        to_rows, to_learning = group.backward(grad, rows, narrow, wants_rows)
        to_states = to_weight = None
        if to_rows is not None:
            to_states, to_weight = norm_backward(to_rows, states, scale, weight, ctx.needs_input_grad[1])
            to_states = to_states.to(states.dtype)
        return to_states, to_weight, None, None, *to_learning


class Answered(torch.autograd.Function):
    """What attention found, added to the states; norm, gated middle layer, added again: (rows, width) to the same."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        found: Tensor,
        weight: Tensor,
        about: tuple[Group, Group, Group, float, torch.dtype],
        *learning: Tensor,
    ) -> Tensor:
        out_group, middle_group, last_group, epsilon, half = about
        out, narrow_out = out_group.forward(found)
        between = states + out
        rows, scale = normed(between, weight, epsilon, half)
        middle, narrow_middle = middle_group.forward(rows)
        size = middle.shape[1] // 2
        out, narrow_last = last_group.forward(F.silu(middle[:, :size]).mul_(middle[:, size:]))
        ctx.save_for_backward(found, between, weight, scale, middle, narrow_out, narrow_middle, narrow_last)
        ctx.about = about
        return out.add_(between) if out.dtype is between.dtype else between + out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        found, between, weight, scale, middle, narrow_out, narrow_middle, narrow_last = ctx.saved_tensors
        out_group, middle_group, last_group, _, half = ctx.about
        size = middle.shape[1] // 2
        gate, up = middle[:, :size], middle[:, size:]
        open_gate = F.silu(gate)
        back, to_last = last_group.backward(grads[0].to(half), open_gate * up, narrow_last)
        assert back is not None
        to_middle = torch.empty_like(middle)
        torch.mul(back, open_gate, out=to_middle[:, size:])
        torch.ops.aten.silu_backward.grad_input(back.mul_(up), gate, grad_input=to_middle[:, :size])
        rows = _scaled(between, scale, weight, half)
        back, to_middle_learning = middle_group.backward(to_middle, rows, narrow_middle)
        assert back is not None
        to_between, to_weight = norm_backward(back, between, scale, weight, ctx.needs_input_grad[2])
        to_between = to_between.add_(grads[0]).to(between.dtype)
        to_found, to_out = out_group.backward(to_between.to(half), found, narrow_out, ctx.needs_input_grad[1])
        return to_between, to_found, to_weight, None, *to_out, *to_middle_learning, *to_last


class Attended(torch.autograd.Function):
    """Causal attention within each sequence: joint queries, keys and values of all rows to (rows, heads · width)."""

    @staticmethod
    def forward(ctx: Any, joint: Tensor, about: tuple[tuple[int, ...], int, int, float, int | None]) -> Tensor:
        out, kept = attend(joint, *about, keeps=ctx.needs_input_grad[0])
        ctx.save_for_backward(*kept)
        ctx.about, ctx.shape = about, joint.shape
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return attend_backward(grads[0], ctx.shape, ctx.saved_tensors, *ctx.about), None


class Normed(torch.autograd.Function):
    """The norm after the last block."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        rows, scale = normed(states, weight, epsilon, states.dtype)
        ctx.save_for_backward(states, weight, scale)
        return rows

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, scale = ctx.saved_tensors
        to_states, to_weight = norm_backward(grads[0], states, scale, weight, ctx.needs_input_grad[1])
        return to_states.to(states.dtype), to_weight, None
