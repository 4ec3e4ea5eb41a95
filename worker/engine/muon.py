"""Muon (Jordan et al. 2024) with all matrices of one shape made orthogonal together: in small models torch's own, one
matrix at a time, costs more than the forward pass."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

TOGETHER = 2**24  # elements of the matrices that are made orthogonal at once


class Muon(torch.optim.Muon):
    """torch's Muon with `adjust_lr_fn="match_rms_adamw"`, but for rounding; settings and state are torch's."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step over every matrix that has a gradient."""
        for group in self.param_groups:
            shapes: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes[tuple(parameter.shape)].append((parameter, parameter.grad))
            for shape, same in shapes.items():
                count = max(1, TOGETHER // (shape[0] * shape[1]))
                for start in range(0, len(same), count):
                    self._step_together(group, same[start : start + count])

    def _step_together(self, group: dict[str, Any], same: list[tuple[Tensor, Tensor]]) -> None:
        momentum, rate = group["momentum"], float(group["lr"])
        parameters, gradients = [parameter for parameter, _ in same], [gradient for _, gradient in same]
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        kept = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_lerp_(kept, gradients, 1 - momentum)
        wanted = torch._foreach_lerp(gradients, kept, momentum) if group["nesterov"] else kept
        updates = orthogonal(torch.stack(list(wanted)), group["ns_coefficients"], group["ns_steps"], group["eps"])
        # As large as AdamW's steps are (Liu et al. 2025), so that the learning rate means the same.
        length = 0.2 * rate * max(parameters[0].shape) ** 0.5
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - rate * group["weight_decay"])
        torch._foreach_add_(parameters, list(updates.float().unbind()), alpha=-length)


def orthogonal(matrices: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """(count, rows, columns) with singular values brought near one, in bf16, by Newton-Schulz as in torch's Muon."""
    a, b, c = coefficients
    is_tall = matrices.shape[1] > matrices.shape[2]
    found = (matrices.transpose(1, 2) if is_tall else matrices).bfloat16()
    found = found / found.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = torch.bmm(found, found.transpose(1, 2))
        change = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        found = torch.baddbmm(found, change, found, beta=a)
    return found.transpose(1, 2) if is_tall else found
