"""A linear layer with a LoRA adapter, forward and gradient written out: no copies in other number formats, and the
adapter's products are added in place. The numbers are PEFT's."""

from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear
from torch import Tensor, nn


class AdaptedLinear(Linear):
    """PEFT's layer, lighter where it is plain; where its adapter is off or merged, PEFT's own forward."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        base, active = self.get_base_layer(), self.active_adapters
        is_other = self.disable_adapters or self.merged or len(active) != 1 or base.weight.requires_grad
        if args or kwargs or is_other:
            return super().forward(x, *args, **kwargs)
        adapter = active[0]
        a, b = self.lora_A[adapter].weight, self.lora_B[adapter].weight
        out: Tensor = _Adapted.apply(x, base.weight, base.bias, a, b, self.scaling[adapter])
        return out


def lighten(layer: Any, adapter: str) -> None:
    """Make an AdaptedLinear of a PEFT layer that is plain LoRA on a linear layer, without dropout; leave any other."""
    if type(layer) is not Linear or type(layer.get_base_layer()) is not nn.Linear:
        return
    if isinstance(layer.lora_dropout[adapter], nn.Identity) and not layer.lora_variant and not layer.lora_bias[adapter]:
        layer.__class__ = AdaptedLinear


class _Adapted(torch.autograd.Function):
    """x W^T + bias + scale (x A^T) B^T with frozen W (out, in) and bias; A (rank, in), B (out, rank) learn."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        device = x.device.type
        half = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        with torch.autocast(device, enabled=False):
            flat, matrix, a_half, b_half = (part.to(half) for part in (x.flatten(0, -2), weight, a, b))
            narrow = flat @ a_half.T
            out = F.linear(flat, matrix, None if bias is None else bias.to(half))
            out.addmm_(narrow, b_half.T, alpha=scale)
        ctx.save_for_backward(flat, matrix, a_half, b_half, narrow)
        ctx.about = x.dtype, a.dtype, b.dtype, scale
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        flat, matrix, a, b, narrow = ctx.saved_tensors
        x_type, a_type, b_type, scale = ctx.about
        grad = grads[0].to(flat.dtype).flatten(0, -2)
        to_narrow = (grad @ b).mul_(scale)
        to_a = (to_narrow.T @ flat).to(a_type)
        to_b = (grad.T @ narrow).to(b_type).mul_(scale)
        to_x = None
        if ctx.needs_input_grad[0]:
            to_x = (grad @ matrix).addmm_(to_narrow, a).view(*grads[0].shape[:-1], -1).to(x_type)
        return to_x, None, None, to_a, to_b, None
