"""The tensor libraries, loaded without what a training in one process never uses: half of their loading time.

Left out are torch's compiler, tensors split between processes, transformers' table of its model files, and scipy. The
compiler and the table are loaded all the same as soon as somebody asks for more of them than is here.
"""

import gc
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from app.contracts.recipe import TrainOrder

COMPILER = "torch._dynamo"
MODELS = "transformers.models"
# Of the compiler, the one part that transformers loads by name; it needs no other.
_ALONE = "_trace_wrapped_higher_order_op"
# What transformers asks before it loads these, for models and losses that are not trained here.
_ABSENT = ("is_scipy_available", "is_torch_distributed_available", "is_torch_flex_attn_available")


class Deferred(ModuleType):
    """Stands where a module belongs until somebody asks for more than it has; then the module is loaded."""

    def __init__(self, spec: ModuleSpec, **has: Any) -> None:
        super().__init__(spec.name)
        self.__dict__.update(has, __file__=spec.origin)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__path__":
            raise AttributeError(name)  # asked of every module by whoever only looks around
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


def load(order: TrainOrder) -> None:
    """Load what the order needs. For a process of its own: what is left out stays out of transformers."""
    gc.disable()  # what is loaded stays; looking for rubbish in it again and again takes a tenth of the time
    try:
        is_alone = order.recipe.replicas == 1 and os.environ.get("WORLD_SIZE", "1") == "1"
        if is_alone:
            _defer_compiler()
            _lighten_transformers()
        importlib.import_module("worker.engine.train")
        if is_alone and (tuners := sys.modules.get("peft.tuners.tuners_utils")) is not None:
            vars(tuners)["_torch_supports_distributed"] = False
        if order.recipe.method == "lora":
            importlib.import_module("worker.engine.methods.lora")
    finally:
        gc.freeze()
        gc.enable()


def _defer_compiler() -> None:
    spec = importlib.util.find_spec(COMPILER)
    if COMPILER in sys.modules or spec is None or not spec.origin:
        return

    def unchanged(function: Callable[..., Any] | None = None, *_: object, **__: object) -> Any:
        return unchanged if function is None else function

    # What these mean where nothing is compiled.
    marks = dict.fromkeys(("disable", "allow_in_graph", "assume_constant_result"), unchanged)
    sys.modules[COMPILER] = Deferred(spec, **marks, graph_break=lambda: None)
    part = importlib.util.spec_from_file_location(f"{COMPILER}.{_ALONE}", Path(spec.origin).parent / f"{_ALONE}.py")
    if part is not None and part.loader is not None and Path(str(part.origin)).is_file():
        module = importlib.util.module_from_spec(part)
        sys.modules[part.name] = module
        part.loader.exec_module(module)


def _lighten_transformers() -> None:
    import transformers

    spec = importlib.util.find_spec(MODELS)
    if MODELS not in sys.modules and spec is not None and spec.submodule_search_locations:
        sys.modules[MODELS] = Deferred(spec, __path__=list(spec.submodule_search_locations))
    for place in (transformers.utils, transformers.utils.import_utils):
        for name in _ABSENT:
            if hasattr(place, name):
                setattr(place, name, _absent)


def _absent() -> bool:
    return False
