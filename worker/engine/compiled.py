"""Answers' next tokens by passes compiled for this processor (`kernels.py`): where Numba is installed, the processor
has the instructions and the model has the usual shape. Everything else goes on through torch."""

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from worker.engine import products
from worker.engine.adapters import Adapter
from worker.engine.lean import Lean
from worker.engine.precision import is_rms

log = logging.getLogger(__name__)
FP32, BF16, INT8 = 0, 1, 2
_FLAGS = {FP32: "avx512f", BF16: "avx512_bf16", INT8: "avx512_vnni"}
_ROWS = 8  # that kernels take at once
PATIENCE_S = 2.0  # that a model which is being loaded waits for the compiler
_WORTH = 2**22  # multiplications from which on a product is shared among threads
_PARTS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

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
    if "avx512f" not in _processor_flags():
        return
    try:
        from worker.engine import kernels

        kernels.compile_all()
    except Exception:  # not installed, or of a version that cannot compile this: torch goes on alone
        log.exception("passes could not be compiled")
        return
    _kernels = kernels
    then()


def state() -> bool | None:
    """Whether passes are compiled; None while that is not known yet."""
    return None if _preparing is not None and _preparing.is_alive() else _kernels is not None


def is_ready(patience_s: float | None = None) -> bool:
    """Whether models may be laid out for compiled passes; waits a while (None: to the end) for what is prepared."""
    if _preparing is not None and _preparing is not threading.current_thread():
        _preparing.join(patience_s)
    return _kernels is not None


def _processor_flags() -> list[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return []
    return next((line for line in text.splitlines() if line.startswith("flags")), "").split()


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
            other = _threads.submit(part, self._halves[1], int(self._halves[0][1]))
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


_threads = ThreadPoolExecutor(1, thread_name_prefix="products")


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
    return kind is not None and _FLAGS[kind] in _processor_flags()


class Compiled:
    """The pass of one model over one token of each of several answers. It belongs to the model thread."""

    def __init__(self, model: PreTrainedModel, lean: Lean) -> None:
        config: Any = model.config
        body: Any = getattr(model, model.base_model_prefix)
        self._lean = lean
        layers: list[Any] = []
        norms = []
        for block in body.layers[: config.num_hidden_layers]:
            attention, middle = block.self_attn, block.mlp
            layers += [attention.q_proj.joined, attention.o_proj, middle.gate_proj.joined, middle.down_proj]
            heads = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
            norms += [block.input_layernorm, block.post_attention_layernorm, *heads]
        layers.append(model.get_output_embeddings())
        self._norms = [norm and norm.weight.detach().float().contiguous() for norm in [*norms, body.norm]]
        self._norm_places = np.array([0 if norm is None else norm.data_ptr() for norm in self._norms], np.int64)
        self._layers = layers
        self._sites = np.stack([layer.site for layer in layers])
        self._scaling = np.array([b.self_attn.scaling for b in body.layers], np.float32)
        self._shape = np.array([
            config.num_hidden_layers, config.hidden_size, lean.heads, lean.key_heads, lean.width,
            config.intermediate_size, 0, 0, layers[0].kind, 0, 0,
        ], np.int64)  # fmt: skip
        # What int8 leaves of a number is less than bf16 keeps of it, and half as much has to be read.
        self.cache_dtype = torch.bfloat16 if layers[0].kind == INT8 else model.dtype
        self._epsilon = np.float32(config.rms_norm_eps)
        self._turns: Tensor | None = None
        self._adapters: WeakKeyDictionary[Adapter, _Laid] = WeakKeyDictionary()
        self._vocabulary = layers[-1].sizes[0]

    def logits(
        self, ids: Sequence[int], positions: Sequence[int], cache: Tensor, adapters: Sequence[Adapter | None]
    ) -> Tensor:
        """(answers, vocabulary) fp32, of answers that hold the first slots of `cache`, which gets their keys and
        values. Its room is a multiple of four."""
        count = len(ids)
        where = torch.tensor(positions)
        states = F.pad(self._lean.embedded(torch.tensor(ids), where).float(), (0, 0, 0, 2 * _ROWS))
        shape = self._shape.copy()
        turns = self._lean.table(int(where.max()) + 1)
        if turns is not None:
            if self._turns is None or self._turns.shape != turns.shape:
                self._turns = turns.float().contiguous()
            shape[10] = self._turns.shape[1]
        shape[6], shape[7], shape[9] = cache.shape[2], cache.shape[4], cache.dtype == torch.bfloat16
        wanted = list(dict.fromkeys(adapter for adapter in adapters if adapter is not None))
        laid = [self._laid(adapter) for adapter in wanted]
        tables = np.stack([one.table for one in laid]) if laid else np.zeros((1, 1, 7, 4), np.int64)
        owners = np.array([-1 if adapter is None else wanted.index(adapter) for adapter in adapters], np.int64)
        out = torch.empty(count + 2 * _ROWS, self._layers[-1].blocks * 16)
        places, given, told = where.numpy(), states.numpy(), out.numpy()

        def part(start: int, end: int) -> None:
            _kernels.decode(
                shape, self._epsilon, self._scaling, given[start:], places[start:end], start, self._sites,
                self._norm_places, cache.data_ptr(), 0 if self._turns is None else self._turns.data_ptr(), tables,
                owners[start:end], told[start:],
            )  # fmt: skip

        if count > 1 and torch.get_num_threads() > 1:
            # Rows beyond the last are written, too, so each half works on tensors of its own.
            middle = (count + 1) // 2
            second = torch.empty(count - middle + _ROWS, out.shape[1])
            others = given[middle:].copy()
            far = _threads.submit(
                _kernels.decode, shape, self._epsilon, self._scaling, others, places[middle:], middle, self._sites,
                self._norm_places, cache.data_ptr(), 0 if self._turns is None else self._turns.data_ptr(), tables,
                owners[middle:], second.numpy(),
            )  # fmt: skip
            part(0, middle)
            wait([far])
            far.result()
            out[middle:count] = second[: count - middle]
        else:
            part(0, count)
        return out[:count, : self._vocabulary]

    def _laid(self, adapter: Adapter) -> "_Laid":
        if adapter not in self._adapters:
            self._adapters[adapter] = _Laid(adapter, int(self._shape[0]))
        return self._adapters[adapter]


class _Laid:
    """An adapter's matrices in fp32 as the kernels read them, and where they lie: (layers, 7, 4)."""

    def __init__(self, adapter: Adapter, layers: int) -> None:
        self.table = np.zeros((layers, len(_PARTS), 4), np.int64)
        self._kept = []
        for name, site in adapter.sites.items():
            *_, number, _, part = name.split(".")
            a, b = site.a.float().contiguous(), site.b.float().T.contiguous()
            gain = None if site.gain is None else site.gain.float().contiguous()
            self._kept.append((a, b, gain))
            place = 0 if gain is None else gain.data_ptr()
            self.table[int(number), _PARTS.index(part)] = (a.data_ptr(), b.data_ptr(), a.shape[0], place)


def compiled_pass(model: PreTrainedModel, lean: Lean) -> Compiled | None:
    """The compiled pass of a model that was laid out for it and has the usual shape: rotary or no positions within a
    layer, root-mean-square norms, gated SiLU, no window."""
    config: Any = model.config
    body: Any = getattr(model, model.base_model_prefix)
    if not isinstance(model.get_output_embeddings(), TiledLinear) or not hasattr(body, "layers"):
        return None
    is_usual = (
        getattr(config, "hidden_act", "") in ("silu", "swish")
        and is_rms(body.norm)
        and lean.width % 16 == 0
        and all(window is None for window in lean.windows)
        and all(_is_joined(block) for block in body.layers)
    )
    return Compiled(model, lean) if is_usual else None


def _is_joined(block: Any) -> bool:
    joined = [block.self_attn.q_proj, block.mlp.gate_proj]
    return all(isinstance(part, products.Part) for part in joined)
