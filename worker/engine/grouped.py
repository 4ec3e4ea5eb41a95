"""Linear layers that read the same input as one product with its gradient written out, plain or with LoRA adapters."""

from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from worker.engine.adapted import AdaptedLinear
from worker.engine.replicas import leaf


class Group:
    """Layers of one input. Their weights lie one after the other in `whole`; the layers keep views of it."""

    def __init__(self, layers: list[nn.Module]) -> None:
        self.layers: list[Any] = layers
        self.bases: list[Any] = [layer.get_base_layer() if isinstance(layer, LoraLayer) else layer for layer in layers]
        self.sizes = [base.weight.shape[0] for base in self.bases]
        self.has_adapters = any(isinstance(layer, AdaptedLinear) for layer in layers)
        self.bias: Tensor | None = None
        self.whole: Tensor
        self.lay_together()
        self._half: Tensor | None = None
        self._adapters: tuple[Tensor, Tensor] | None = None

    @staticmethod
    def fits(layers: list[nn.Module]) -> bool:
        """Whether these are plain layers, or plain LoRA on frozen ones, all that learn learning alike."""
        bases: list[Any] = []
        for layer in layers:
            if isinstance(layer, AdaptedLinear):
                bases.append(layer.get_base_layer())
                if bases[-1].weight.requires_grad or len(layer.active_adapters) != 1:
                    return False
            elif type(layer) is nn.Linear:
                bases.append(layer)
            else:
                return False
        kinds = {(b.weight.requires_grad, b.weight.dtype, b.bias is None, b.weight.device.type) for b in bases}
        return len(kinds) == 1

    @property
    def is_learning(self) -> bool:
        """Whether the layers' own weights learn."""
        return bool(self.bases[0].weight.requires_grad)

    def lay_together(self) -> None:
        """Put the weights one after the other; nothing to do where they are."""
        if not self.is_apart():
            return
        with torch.no_grad():
            own = [base.weight.data for base in self.bases]
            self.whole = own[0] if len(own) == 1 else torch.cat(own)
            for base, part in zip(self.bases, self.whole.split(self.sizes), strict=True):
                base.weight.data = part

    def is_apart(self) -> bool:
        """Whether somebody has given a layer other memory."""
        whole, at = getattr(self, "whole", None), 0
        if whole is None:
            return True
        start, row = whole.data_ptr(), whole.shape[1] * whole.element_size()
        for base, size in zip(self.bases, self.sizes, strict=True):
            if base.weight.data_ptr() != start + at * row:
                return True
            at += size
        return False

    def refresh(self, half: torch.dtype) -> None:
        """Bring the copies in the compute type up to date: the base, and the adapters end to end, A (ranks, in) and B
        (out, ranks) times its scale. To be called by one thread."""
        self.lay_together()
        if self.whole.dtype is not half:
            if self._half is None or self._half.dtype is not half:
                self._half = self.whole.to(half)
            else:
                self._half.copy_(self.whole)
        if self.bases[0].bias is not None:
            biases = [base.bias.detach().to(half) for base in self.bases]
            self.bias = biases[0] if len(biases) == 1 else torch.cat(biases)
        if self.has_adapters:
            self._refresh_adapters(half)

    def _refresh_adapters(self, half: torch.dtype) -> None:
        sites = self.sites()
        ranks = sum(a.shape[0] for a, *_ in sites)
        down = torch.cat([a.detach() for a, *_ in sites]).to(half)
        up = self.whole.new_zeros(self.whole.shape[0], ranks, dtype=half)
        at = 0
        for _, b, scale, start in sites:
            up[start : start + b.shape[0], at : at + b.shape[1]] = b.detach() * scale
            at += b.shape[1]
        self._adapters = down, up

    def sites(self) -> list[tuple[Tensor, Tensor, float, int]]:
        """(A, B, scale, first output) of each adapter."""
        found: list[tuple[Tensor, Tensor, float, int]] = []
        start = 0
        for layer, size in zip(self.layers, self.sizes, strict=True):
            if isinstance(layer, AdaptedLinear):
                name = layer.active_adapters[0]
                a: Any = layer.lora_A[name]
                b: Any = layer.lora_B[name]
                found.append((a.weight, b.weight, layer.scaling[name], start))
            start += size
        return found

    @property
    def is_adapted(self) -> bool:
        """Whether there are adapters, and they are on."""
        first = next((layer for layer in self.layers if isinstance(layer, AdaptedLinear)), None)
        return first is not None and not first.disable_adapters and not first.merged

    def learning(self) -> list[Tensor]:
        """What learns here as this thread sees it, in the order in which `gradients` are: weights, biases, A and B."""
        found: list[Tensor] = []
        if self.is_learning:
            found += [base.weight for base in self.bases] + [base.bias for base in self.bases if base.bias is not None]
        if self.is_adapted:
            found += [part for a, b, *_ in self.sites() for part in (a, b)]
        return [leaf(parameter) for parameter in found]

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """(rows, in) to (rows, out), both in the compute type, and what the adapters make of the rows."""
        out = F.linear(rows, self._matrix(rows.dtype), self.bias)
        if not self.is_adapted:
            return out, None
        assert self._adapters is not None
        down, up = self._adapters
        narrow = rows @ down.T
        out.addmm_(narrow, up.T)
        return out, narrow

    def backward(
        self, grad: Tensor, rows: Tensor, narrow: Tensor | None, wants_rows: bool = True
    ) -> tuple[Tensor | None, list[Tensor]]:
        """The gradient of the rows and those of `learning`, from that of the outputs."""
        grads: list[Tensor] = []
        if self.is_learning:
            whole = (grad.T @ rows).to(self.bases[0].weight.dtype)
            grads += whole.split(self.sizes)
            if self.bias is not None:
                grads += grad.sum(0).to(self.bases[0].bias.dtype).split(self.sizes)
        to_narrow: Tensor | None = None
        if narrow is not None and self._adapters is not None:
            to_narrow = grad @ self._adapters[1]
            to_a, to_b = to_narrow.T @ rows, grad.T @ narrow
            at = 0
            for a, b, scale, start in self.sites():
                rank = a.shape[0]
                grads.append(to_a[at : at + rank].to(a.dtype))
                part = to_b[start : start + b.shape[0], at : at + rank]
                grads.append(part.to(b.dtype).mul_(scale) if part.dtype is not b.dtype else part * scale)
                at += rank
        if not wants_rows:
            return None, grads
        to_rows = grad @ self._matrix(grad.dtype)
        if to_narrow is not None and self._adapters is not None:
            to_rows.addmm_(to_narrow, self._adapters[0])
        return to_rows, grads

    def _matrix(self, half: torch.dtype) -> Tensor:
        if self.whole.dtype is half:
            return self.whole
        assert self._half is not None
        return self._half
