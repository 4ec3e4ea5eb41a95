"""Answers' next tokens by passes compiled for this processor (`pass_kernels.py`), for models of the usual shape whose
layers were laid out for it (`compiled.py`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from worker.engine import products
from worker.engine.adapters import Adapter
from worker.engine.compiled import INT8, TiledLinear, kernels, threads
from worker.engine.lean import Lean
from worker.engine.precision import is_rms

_ROWS = 8  # that kernels take at once
_WORTH_ROWS = 16  # of a prompt; fewer are not worth a thread of their own
_PARTS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Stretch:
    """Tokens of one answer that follow each other: whose slot they are for, the place of the first, the answer's
    adapter, and whether they are of its prompt: then the sums of their attention have the order that prompts have."""

    slot: int
    begin: int
    ids: list[int]
    adapter: Adapter | None
    is_prompt: bool


@dataclass
class _Part:
    """Rows from `begin` to `end` as a thread of its own computes them: its stretches, the rows among them whose logits
    are wanted, and the first part whose keys and values it needs."""

    begin: int
    end: int
    stretches: np.ndarray
    told: np.ndarray
    since: int


class Compiled:
    """The pass of one model over tokens of several answers. It belongs to the model thread."""

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

    def logits(self, stretches: Sequence[Stretch], cache: Tensor) -> Tensor:
        """(stretches, vocabulary) fp32, of the last token of each. Their slots in `cache` get their keys and values.
        Its room is a multiple of four, and nobody has two stretches."""
        ids = [token for stretch in stretches for token in stretch.ids]
        where = torch.tensor([stretch.begin + i for stretch in stretches for i in range(len(stretch.ids))])
        states = self._lean.embedded(torch.tensor(ids), where).float().contiguous().numpy()
        shape = self._shape.copy()
        turns = self._lean.table(int(where.max()) + 1)
        if turns is not None:
            if self._turns is None or self._turns.shape != turns.shape:
                self._turns = turns.float().contiguous()
            shape[kernels().TURNS] = self._turns.shape[1]
        shape[kernels().SLOTS], shape[kernels().ROOM] = cache.shape[2], cache.shape[4]
        shape[kernels().SHORT_CACHE] = cache.dtype == torch.bfloat16
        wanted = list(dict.fromkeys(one.adapter for one in stretches if one.adapter is not None))
        laid = [self._laid(adapter) for adapter in wanted]
        tables = np.stack([one.table for one in laid]) if laid else np.zeros((1, 1, 7, 4), np.int64)
        parts = _parts(stretches, wanted, torch.get_num_threads())
        turning = 0 if self._turns is None else self._turns.data_ptr()
        progress = np.zeros(len(parts), np.int64)
        # Rows beyond the last are written, too, so each part writes into a tensor of its own.
        told = [torch.empty(len(part.told) + _ROWS, self._layers[-1].blocks * 16) for part in parts]

        def run(number: int) -> None:
            part = parts[number]
            try:
                kernels().forward(
                    shape, self._epsilon, self._scaling, states[part.begin : part.end], part.stretches, part.told,
                    self._sites, self._norm_places, cache.data_ptr(), turning, tables, told[number].numpy(), progress,
                    number, part.since,
                )  # fmt: skip
            finally:
                progress[number] = len(self._layers)  # nobody waits for one that has failed

        others = [threads.submit(run, number) for number in range(1, len(parts))]
        try:
            run(0)
        finally:
            failures = [other.exception() for other in others]
        for failure in failures:
            if failure is not None:
                raise failure
        if len(parts) == 1:
            return told[0][: len(stretches), : self._vocabulary]
        rows = [each[: len(part.told), : self._vocabulary] for each, part in zip(told, parts, strict=True)]
        return torch.cat(rows)

    def _laid(self, adapter: Adapter) -> "_Laid":
        if adapter not in self._adapters:
            self._adapters[adapter] = _Laid(adapter, int(self._shape[0]))
        return self._adapters[adapter]


def _parts(stretches: Sequence[Stretch], adapters: list[Adapter], most: int) -> list[_Part]:
    """Equal numbers of rows for at most so many threads. Answers that only speak are shared by two: with more, the
    weights would be read more often than that is worth."""
    rows = sum(len(stretch.ids) for stretch in stretches)
    if any(stretch.is_prompt for stretch in stretches):
        count = max(1, min(most, rows // _WORTH_ROWS))
        size = -(-rows // (count * _ROWS)) * _ROWS
    else:
        size = -(-rows // min(most, 2))
    done: list[_Part] = []
    for begin in range(0, rows, size):
        end, first, since = min(begin + size, rows), 0, len(done)
        lines, told = [], []
        for stretch in stretches:
            last = first + len(stretch.ids)
            start, stop = max(first, begin), min(last, end)
            if start < stop:
                owner = -1 if stretch.adapter is None else adapters.index(stretch.adapter)
                place = stretch.begin + start - first
                lines.append([start - begin, stop - start, stretch.slot, place, owner, stretch.is_prompt])
                since = min(since, first // size)
                if last <= end:
                    told.append(last - 1 - begin)
            first = last
        done.append(_Part(begin, end, np.array(lines, np.int64), np.array(told, np.int64), since))
    return done


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
