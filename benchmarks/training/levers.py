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


def _without_fused() -> None:
    """AdamW in torch's plain form: one weight matrix after another, one operation after another."""
    import torch

    plain = torch.optim.AdamW
    _set("torch.optim", "AdamW", lambda groups, **more: plain(groups, **{**more, "fused": False, "foreach": False}))


def _without_round_shapes() -> None:
    for module in ("packing", "loss"):
        _set(f"worker.engine.{module}", "rounded", lambda count: count)


def _without_picked_positions() -> None:
    """Logits at every token, learned or not, all at once, as a plain forward makes them."""
    from torch.nn.functional import cross_entropy, linear

    from worker.engine.packing import NOT_LEARNED, hidden_states
    from worker.engine.replicas import leaf

    def plain(model: Any, batch: Any, label_smoothing: float, noise_alpha: float) -> tuple[Any, int]:
        hidden = hidden_states(model, batch, noise_alpha)
        logits = linear(hidden, leaf(model.get_output_embeddings().weight).to(hidden.dtype)).float()
        smooth: dict[str, Any] = {"label_smoothing": label_smoothing, "ignore_index": NOT_LEARNED, "reduction": "sum"}
        return cross_entropy(logits, batch.targets, **smooth), 0

    _set("worker.engine.loss", "packed_loss", plain)


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
    "fused AdamW": _without_fused,
    "round shapes": _without_round_shapes,
    "logits in pieces, where learned": _without_picked_positions,
}
# Of models from scratch.
SCRATCH_LEVERS: dict[str, Callable[[], None]] = {"Muon's matrices together": _without_muon_together}


def switch_off(names: Iterable[str]) -> None:
    """Train without these levers."""
    for name in names:
        {**LEVERS, **SCRATCH_LEVERS}[name]()
