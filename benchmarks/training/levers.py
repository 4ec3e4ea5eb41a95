"""Each lever of the engine, and how it is taken out for `training_throughput.py --levers`. Of the process that trains
only, before it trains."""

import importlib
from collections.abc import Callable, Iterable
from typing import Any


def _without_own_threads() -> None:
    """Threads help within each operation, and rows go through the layers together."""
    _set("worker.engine.sharing", "threads_of", lambda *_: 1)


def _without_pass() -> None:
    """The model's own forward, with the attention and the adapters below."""
    _set("worker.engine.learning", "attach", lambda _: None)


def _without_short_attention() -> None:
    _without_pass()
    _set("worker.engine.packing", "is_short", lambda *_: False)


def _without_light_adapters() -> None:
    _without_pass()
    _set("worker.engine.methods.lora", "lighten", lambda *_: None)


def _without_packing() -> None:
    """Row after row, each through the layers alone."""
    attempt: Any = importlib.import_module("worker.engine.attempt")
    packed = attempt.backward
    attempt.backward = lambda material, chosen, device, recipe, _: packed(material, chosen, device, recipe, 1)


def _without_half() -> None:
    _set("worker.engine.devices", "computes_bf16", lambda _: False)


def _without_round_shapes() -> None:
    for module in ("packing", "loss"):
        _set(f"worker.engine.{module}", "rounded", lambda count: count)


def _without_picked_positions() -> None:
    """Logits at every token, learned or not, as a plain forward makes them."""
    loss: Any = importlib.import_module("worker.engine.loss")
    loss.is_packable = lambda _: False
    plain = loss._one_by_one

    def everywhere(model: Any, *rest: Any) -> Any:
        forward = type(model).forward
        model.forward = lambda *a, logits_to_keep=0, **k: _picked(forward(model, *a, **k), logits_to_keep)
        try:
            return plain(model, *rest)
        finally:
            del model.forward

    loss._one_by_one = everywhere


def _picked(out: Any, positions: Any) -> Any:
    out.logits = out.logits[:, positions]
    return out


def _set(module: str, name: str, value: object) -> None:
    setattr(importlib.import_module(module), name, value)


def _without_muon_together() -> None:
    import torch

    _set("worker.engine.optim", "Muon", torch.optim.Muon)


LEVERS: dict[str, Callable[[], None]] = {
    "threads with rows of their own": _without_own_threads,
    "the pass for training": _without_pass,
    "that and plain products for attention": _without_short_attention,
    "that and light adapters": _without_light_adapters,
    "packing": _without_packing,
    "bf16": _without_half,
    "round shapes": _without_round_shapes,
    "logits where learned": _without_picked_positions,
}
# Of models from scratch.
SCRATCH_LEVERS: dict[str, Callable[[], None]] = {"Muon's matrices together": _without_muon_together}


def switch_off(names: Iterable[str]) -> None:
    """Train without these levers."""
    for name in names:
        {**LEVERS, **SCRATCH_LEVERS}[name]()
