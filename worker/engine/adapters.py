"""LoRA adapters beside one base model: in one pass each row goes through the products of its own adapter
(after Punica, Chen et al. 2023, and S-LoRA, Sheng et al. 2023). Nothing is merged, so one base serves them all."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from worker.engine.errors import BadData
from worker.engine.products import Layer, matrix, sizes

# What changes more than a product of two narrow matrices beside a linear layer; such an adapter is merged instead.
BEYOND = (
    "modules_to_save", "layer_replication", "trainable_token_indices", "alpha_pattern", "lora_bias",
    "target_parameters", "alora_invocation_tokens", "arrow_config", "use_qalora", "use_bdlora",
)  # fmt: skip
_PREFIX = "base_model.model."
_WEIGHTS = "adapter_model.safetensors"
_HEADS = frozenset({"lm_head", "embed_out"})  # a layer of such a name is the head
_PARTS = {"lora_A.weight": "a", "lora_B.weight": "b", "lora_magnitude_vector": "m", "lora_magnitude_vector.weight": "m"}
LINGERING = 2  # adapters whose answers have ended, and which stay beside the others until one joins


@dataclass(frozen=True, eq=False)
class Site:
    """What an adapter adds to one layer: x A^T B^T, with A (rank, in) and B (out, rank) that holds the scale.

    `gain` (out,) multiplies what the base gives (DoRA, Liu et al. 2024); None: one.
    """

    a: Tensor
    b: Tensor
    gain: Tensor | None


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter in memory: its sites by the names of the base's layers. Equal `key`: equal weights."""

    key: str
    sites: dict[str, Site]
    size_bytes: int


def stands_beside(folder: Path) -> bool:
    """Whether an adapter changes linear layers only, so that it need not be merged, as far as its files tell before
    they are read. True for a folder that cannot be read: loading it says what is wrong."""
    try:
        if not _is_narrow(orjson.loads((folder / "adapter_config.json").read_bytes())):
            return False
        with safe_open(folder / _WEIGHTS, "pt") as file:
            parsed = [_parsed(name) for name in file.keys()]  # noqa: SIM118  (it is no mapping)
    except (OSError, ValueError, AttributeError, SafetensorError):
        return True
    return all(part is not None and site.rpartition(".")[2] not in _HEADS for site, part in parsed)


def read(folder: Path, model: PreTrainedModel, key: str) -> Adapter | None:
    """The adapter of a PEFT folder for `model`; None when it changes more than linear layers and has to be merged.

    Raises BadData when it was made for another base model.
    """
    config = orjson.loads((folder / "adapter_config.json").read_bytes())
    if not _is_narrow(config):
        return None
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in load_file(folder / _WEIGHTS).items():
        site, part = _parsed(name)
        if part is None:
            return None
        found.setdefault(site, {})[part] = tensor
    layers = dict(model.named_modules())
    head = model.get_output_embeddings()
    sites = {}
    for name, parts in found.items():
        layer = layers.get(name)
        if layer is head:
            return None
        if not isinstance(layer, Layer) or "a" not in parts or "b" not in parts:
            raise BadData(f"{folder.name} does not fit this base model: it has {name}.")
        sites[name] = _site(layer, parts, config, folder.name, model.dtype, model.device)
    size = sum(part.nbytes for site in sites.values() for part in (site.a, site.b, site.gain) if part is not None)
    return Adapter(key, sites, size)


def _is_narrow(config: dict[str, Any]) -> bool:
    is_lora = config.get("peft_type") == "LORA" and config.get("bias", "none") == "none"
    return is_lora and not any(config.get(name) for name in BEYOND)


def _parsed(name: str) -> tuple[str, str | None]:
    """The layer's name and which part of its site this is, None when it is something else."""
    for ending, part in _PARTS.items():
        if name.startswith(_PREFIX) and name.endswith("." + ending):
            return name[len(_PREFIX) : -len(ending) - 1], part
    return name, None


def _site(
    layer: nn.Module, parts: dict[str, Tensor], config: dict[str, Any], folder: str, dtype: torch.dtype, device: Any
) -> Site:
    a, b, gain = parts["a"].float(), parts["b"].float(), None
    rank, width = a.shape
    # Rank-stabilised (Kalajdzievski 2023): alpha over the root of the rank.
    b = b * (config["lora_alpha"] / (rank**0.5 if config.get("use_rslora") else rank))
    if (b.shape[0], width) != sizes(layer) or b.shape[1] != rank:
        raise BadData(f"{folder} does not fit this base model: its matrices have other sizes.")
    if "m" in parts:
        gain = parts["m"].float() / torch.linalg.norm(matrix(layer).float().cpu() + b @ a, dim=1)
        b = b * gain[:, None]
        gain = gain.to(device, dtype)
    return Site(a.to(device, dtype).contiguous(), b.to(device, dtype).contiguous(), gain)


@dataclass(frozen=True)
class _Mixed:
    """The sites of several adapters at one layer, end to end: A (sum of ranks, in) and B (out, sum of ranks).

    `owners`: which adapter each rank is of. `gains` (adapters + 1, out), the last row for rows without an adapter; None
    where nobody has any. `outputs`: where the layer's outputs lie in its product's.
    """

    outputs: slice
    a: Tensor
    b: Tensor
    owners: tuple[int, ...]
    gains: Tensor | None


Parts = tuple[tuple[str, int, int], ...]
"""Layers that one product joins: name, first output, end of its outputs."""


class Mixer:
    """Adds to a base model's layers what the adapters of the pass say. It belongs to the model thread.

    Call `use` before every forward pass; rows without an adapter get the base's own answer.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._hooked: set[str] = set()
        self._adapters: list[Adapter] = []
        self._sites: dict[Parts, list[_Mixed]] = {}
        self._is_hooked, self._is_mixed, self._count = True, False, 0
        self._spans: list[tuple[Adapter, int, int]] = []
        self._owners: Tensor | None = None
        self._masks: dict[tuple[int, ...], Tensor] = {}
        self.is_used = False
        """Whether an adapter has anything to add in this pass."""

    @torch.inference_mode()
    def use(self, rows: Sequence[tuple[Adapter | None, int]], single: int | None = None) -> None:
        """The adapters of the next pass: for each answer its adapter and how many rows it has, in the pass's order.

        With `single` whoever runs the pass calls `add`; so many answers come first that have one row each, and go
        through one product, while the others go each through their own. Without it the model's own forward asks.
        """
        self._is_hooked = single is None
        mixed = rows[:single]
        self._count = sum(count for _, count in mixed)
        self._spans, start = [], self._count
        for adapter, count in rows[len(mixed) :]:
            if adapter is not None:
                self._spans.append((adapter, start, start + count))
            start += count
        wanted = list(dict.fromkeys(adapter for adapter, _ in mixed if adapter is not None))
        self._is_mixed, self.is_used = bool(wanted), bool(wanted or self._spans)
        if not wanted:
            return
        is_known = all(adapter in self._adapters for adapter in wanted)
        if not is_known or len(self._adapters) > len(wanted) + (LINGERING if len(wanted) > 1 else 0):
            self._adapters, self._sites = wanted, {}
        if self._is_hooked:
            self._hook()
        self._masks.clear()
        self._owners = None
        if len(self._adapters) > 1 or any(adapter is None for adapter, _ in mixed):
            place = {adapter: number for number, adapter in enumerate(self._adapters)}
            owners = [place[adapter] if adapter else len(place) for adapter, count in mixed for _ in range(count)]
            self._owners = torch.tensor(owners, device=self._model.device)

    def _hook(self) -> None:
        """Let the model's own forward ask for what is to be added."""
        new = {name for adapter in self._adapters for name in adapter.sites} - self._hooked
        layers = dict(self._model.named_modules()) if new else {}
        for name in new:
            parts = ((name, 0, sizes(layers[name])[0]),)
            layers[name].register_forward_hook(partial(self._asked, parts))
        self._hooked |= new

    def _asked(self, parts: Parts, layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor | None:
        if not self.is_used or not self._is_hooked:
            return None
        out = output.flatten(0, -2)
        bias: Tensor | None = layer.bias  # type: ignore[assignment]
        self.add(parts, inputs[0].flatten(0, -2), out, bias)
        return out.view(output.shape)

    def _laid(self, parts: Parts) -> list[_Mixed]:
        """The matrices of the adapters end to end, for each layer of a product where anybody has some.

        One product over all of a layer's adapters: small ones of few rows cost less than their number suggests, and
        blocks of zeros between layers would have to be read from memory with every token.
        """
        done = []
        for name, start, end in parts:
            sites = [adapter.sites.get(name) for adapter in self._adapters]
            there = [site for site in sites if site is not None]
            if not there:
                continue
            gains = None
            if any(site.gain is not None for site in there):
                one = torch.ones_like(there[0].b[:, 0])
                rows = [site.gain if site is not None and site.gain is not None else one for site in sites]
                gains = torch.stack([*rows, one])
            owners = tuple(n for n, site in enumerate(sites) if site is not None for _ in site.a)
            is_alone = len(there) == 1
            a = there[0].a if is_alone else torch.cat([site.a for site in there])
            b = there[0].b if is_alone else torch.cat([site.b for site in there], dim=1)
            done.append(_Mixed(slice(start, end), a, b, owners, gains))
        return done

    def add(self, parts: Parts, rows: Tensor, out: Tensor, bias: Tensor | None = None) -> None:
        """Add in place to `out` (rows, outputs), a product of `rows` (rows, in), what the adapters say; `bias`: the one
        that is in it."""
        if self._is_mixed:
            if parts not in self._sites:
                self._sites[parts] = self._laid(parts)
            first = rows[: self._count]
            for mixed in self._sites[parts]:
                narrow = F.linear(first, mixed.a)
                gain = None if mixed.gains is None else mixed.gains[0]
                if self._owners is not None:
                    narrow.mul_(self._mask(mixed.owners, narrow.dtype))
                    gain = None if mixed.gains is None else mixed.gains[self._owners]
                _add(out[: self._count, mixed.outputs], narrow, mixed.b, gain, bias, mixed.outputs)
        for adapter, start, end in self._spans:
            for name, first_output, last_output in parts:
                if (site := adapter.sites.get(name)) is not None:
                    outputs = slice(first_output, last_output)
                    _add(out[start:end, outputs], F.linear(rows[start:end], site.a), site.b, site.gain, bias, outputs)

    def _mask(self, owners: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """(rows, sum of ranks): one where the column is the row's own adapter's."""
        if owners not in self._masks:
            assert self._owners is not None
            columns = torch.tensor(owners, device=self._owners.device)
            self._masks[owners] = (self._owners[:, None] == columns).to(dtype)
        return self._masks[owners]


def _add(out: Tensor, narrow: Tensor, b: Tensor, gain: Tensor | None, bias: Tensor | None, outputs: slice) -> None:
    """What the base gives (without its bias) times the gain, and the adapter's part, in place."""
    if gain is not None:
        own = 0 if bias is None else bias[outputs]
        out.sub_(own).mul_(gain).add_(own)
    out.addmm_(narrow, b.T)
