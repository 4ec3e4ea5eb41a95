"""Weights, gradients and the optimiser's memory split between the processes that train together (torch's FSDP2)."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from worker.engine import loss, ranks
from worker.engine.methods.last_layers import find_blocks
from worker.engine.methods.whole import Whole, weights, write_model
from worker.engine.prepare import Material


def shard(model: PreTrainedModel, device: torch.device) -> None:
    """Split `model` in place, block by block; each process keeps its part on `device`. All call it together."""
    mesh = init_device_mesh(device.type, (ranks.count(),))
    blocks = find_blocks(getattr(model, model.base_model_prefix))
    modules: list[Any] = [fully_shard(module, mesh=mesh, reshard_after_forward=True) for module in (*blocks, model)]
    for module in modules:
        # The loss is divided once, by the supervised tokens of all.
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # gloo knows no other
    # The loss looks at body and head by itself, not through the model's own forward.
    setattr(model, loss.OF_SHARDS, partial(loss.packed_loss, model))
    register_fsdp_forward_method(model, loss.OF_SHARDS)


def whole(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The whole tensors, on the processor, in the first process; nothing in the others. All call it together."""
    kept: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        there: Any = tensor.detach()
        full: Tensor = there.full_tensor() if isinstance(there, DTensor) else there
        if ranks.is_first():
            kept[name] = full.cpu().contiguous()
    return kept


def writer(material: Material) -> Callable[[Path], None]:
    """What writes the split model's whole weights, the same files as one process. All call this together."""
    method = material.method
    assert isinstance(method, Whole)
    tensors = whole(weights(material.model))
    return lambda folder: write_model(material.model, tensors, folder, method.tokenizer_dir)
