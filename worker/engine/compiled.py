"""Linear layers as compiled for this processor (`kernels.py`), where Numba is installed and the processor has the
instructions; whole passes are in `compiled_pass.py`. Everything else goes on through torch."""

import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from worker.engine import products
from worker.engine.devices import processor_flags

log = logging.getLogger(__name__)
FP32, BF16, INT8 = 0, 1, 2
_FLAGS = {FP32: "avx512f", BF16: "avx512_bf16", INT8: "avx512_vnni"}
_ROWS = 8  # that kernels take at once
PATIENCE_S = 2.0  # that a model which is being loaded waits for the compiler
_WORTH = 2**22  # multiplications from which on a product is shared among threads

_kernels: Any = None
_preparing: threading.Thread | None = None


def prepare(then: Callable[[], object] = lambda: None) -> None:
    """Begin to compile, or to read what an earlier start has compiled, on a thread of its own, and call `then` at its
    end. Takes about ten seconds the first time, and half a second later."""
    global _preparing
    if _preparing is None:
        _preparing = threading.Thread(target=_prepare, args=(then,), name="compile", daemon=True)
        _preparing.start()


def _prepare(then: Callable[[], object]) -> None:
    global _kernels
    if _FLAGS[FP32] not in processor_flags():
        return
    try:
        from worker.engine import pass_kernels

        pass_kernels.compile_all()
    except Exception:  # not installed, or of a version that cannot compile this: torch goes on alone
        log.exception("passes could not be compiled")
        return
    _kernels = pass_kernels
    then()


def kernels() -> Any:
    """What was compiled; None while nothing is."""
    return _kernels


def state() -> bool | None:
    """Whether passes are compiled; None while that is not known yet."""
    return None if _preparing is not None and _preparing.is_alive() else _kernels is not None


def is_ready(patience_s: float | None = None) -> bool:
    """Whether models may be laid out for compiled passes; waits a while (None: to the end) for what is prepared."""
    if _preparing is not None and _preparing is not threading.current_thread():
        _preparing.join(patience_s)
    return _kernels is not None


class TiledLinear(products.Own):
    """A linear layer whose weights lie in the order in which the compiled products read them: (blocks of sixteen
    outputs, steps, sixteen, inputs of a step), four bytes an output and step.

    In int8 with one scale an output and one a row, in bf16 with sums in fp32. `bias` as in the layer that it replaces.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.bias: Tensor | None = layer.bias  # type: ignore[assignment]
        self._scales, self._offsets = torch.ones(1), torch.zeros(1, dtype=torch.int32)
        if isinstance(layer, products.Int8Linear):
            self.kind, each = INT8, 4
            weight, scales = layer.whole
        else:
            weight = products.matrix(layer)
            self.kind, each = (BF16, 2) if weight.dtype == torch.bfloat16 else (FP32, 1)
        self.sizes = out, width = (weight.shape[0], weight.shape[1])
        self.blocks, self.steps = -(-out // 32) * 2, -(-width // each)
        padded = F.pad(weight, (0, self.steps * each - width, 0, self.blocks * 16 - out))
        self._weights = padded.view(self.blocks, 16, self.steps, each).transpose(1, 2).contiguous()
        if self.kind == INT8:
            self._scales = F.pad(scales.float(), (0, self.blocks * 16 - out))
            # Inputs are told as 1 to 255, so that many times 128 is taken off again.
            self._offsets = 128 * padded.int().sum(1, dtype=torch.int32)
        self._fp32_bias = None if self.bias is None else self.bias.detach().float().contiguous()
        self.nbytes = self._weights.nbytes
        self.site = self._site(0, self.blocks)
        middle = self.blocks // 4 * 2
        self._halves = [self._site(0, middle), self._site(middle, self.blocks)] if middle else []

    def _site(self, start: int, end: int) -> np.ndarray:
        """What the kernels are told of the blocks from `start` to `end`."""
        bias, is_int8 = self._fp32_bias, self.kind == INT8
        return np.array([
            self._weights.data_ptr() + start * self.steps * 64, end - start, self.steps,
            self._scales.data_ptr() + start * 64 * is_int8, self._offsets.data_ptr() + start * 64 * is_int8,
            0 if bias is None else bias.data_ptr() + start * 64, self.sizes[1],
            max(min(end * 16, self.sizes[0]) - start * 16, 0),
        ], np.int64)  # fmt: skip

    def forward(self, rows: Tensor) -> Tensor:
        """(…, in) to (…, out)."""
        flat = rows.reshape(-1, rows.shape[-1]).float()
        count = len(flat)
        held = -(-count // _ROWS) * _ROWS
        flat = F.pad(flat, (0, 0, 0, held - count)) if held > count else flat.contiguous()
        out = torch.empty(held, self.blocks * 16)
        work = count * self.blocks * 16 * self.sizes[1]

        def part(site: np.ndarray, start: int) -> None:
            _kernels.linear(
                self.kind, site, count, flat.data_ptr(), flat.shape[1], out.data_ptr() + start * 64, out.shape[1]
            )

        if self._halves and work >= _WORTH and torch.get_num_threads() > 1:
            other = threads.submit(part, self._halves[1], int(self._halves[0][1]))
            part(self._halves[0], 0)
            other.result()
        else:
            part(self.site, 0)
        return out[:count, : self.sizes[0]].to(rows.dtype).view(*rows.shape[:-1], -1)

    @property
    def matrix(self) -> Tensor:  # type: ignore[override]
        """The weights (out, in), as they are used."""
        padded = self._weights.transpose(1, 2).reshape(self.blocks * 16, -1)
        if self.kind == INT8:
            padded = padded.float() * self._scales[:, None]
        return padded[: self.sizes[0], : self.sizes[1]].contiguous()


# In the order in which they are given, so that a part of a pass may wait for those before it.
threads = ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - 1), thread_name_prefix="products")


@torch.no_grad()
def lay_out(model: PreTrainedModel) -> bool:
    """Lay every linear layer out for the compiled passes, in place. False, and nothing is done, where they cannot be
    used."""
    linear = nn.Linear | Conv1D | products.Int8Linear
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, linear)}
    if (
        model.device.type != "cpu"
        or not is_ready(PATIENCE_S)
        or not all(has_products_for(layer) for layer in layers.values())
    ):
        return False
    for name, layer in layers.items():
        model.set_submodule(name, TiledLinear(layer))
    return True


def has_products_for(layer: nn.Module) -> bool:
    """Whether this processor has the instructions for a layer of this kind."""
    weight: Any = getattr(layer, "weight", None)
    kind = (
        INT8
        if isinstance(layer, products.Int8Linear)
        else {torch.float32: FP32, torch.bfloat16: BF16}.get(weight.dtype)
    )
    return kind is not None and _FLAGS[kind] in processor_flags()
