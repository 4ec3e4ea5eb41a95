"""Several processes that train one model together, one a device: each reads its share of every step's rows.

Started by `torchrun --nproc-per-node N -m worker.engine train …`, or by whoever sets the same environment. The first
process tells what happens, evaluates and saves; the others do as it does. Alone, everything here does nothing.
"""

import os
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

# The others wait while the first one evaluates, writes samples and saves.
LONGEST_WAIT = timedelta(hours=2)


def join() -> None:
    """Meet the other processes where the environment names any; once a process."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=LONGEST_WAIT)


def leave() -> None:
    """Part from the others."""
    if dist.is_initialized():
        dist.destroy_process_group()


def count() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this process speaks for all."""
    return not dist.is_initialized() or dist.get_rank() == 0


def share(numbers: np.ndarray) -> np.ndarray:
    """What of `numbers` this process reads: every n-th."""
    return numbers[dist.get_rank() :: count()] if dist.is_initialized() else numbers


def draw_apart(seed: int, step: int) -> None:
    """Let every process but the first draw its own random numbers (dropout)."""
    if not is_first():
        torch.manual_seed(hash((seed, step, dist.get_rank())))


def wait() -> None:
    """Until all are here."""
    if dist.is_initialized():
        dist.barrier()


def told(value: Any) -> Any:
    """What the first process says, in all of them."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def summed(values: Sequence[float], device: torch.device) -> Sequence[float]:
    """The sums of each value over all processes."""
    if not dist.is_initialized():
        return values
    tensor = torch.tensor(values, dtype=torch.float64 if device.type != "mps" else torch.float32, device=device)
    dist.all_reduce(tensor)
    return [float(value) for value in tensor]


def part_of(tensor: Tensor, parameter: Tensor) -> Tensor:
    """What this process keeps of a whole tensor of the parameter's shape: all of it, unless the model is split."""
    here = tensor.to(parameter.device)
    if is_split(parameter) and here.shape == parameter.shape:
        from torch.distributed.tensor import distribute_tensor

        split: Any = parameter
        return distribute_tensor(here, split.device_mesh, split.placements, src_data_rank=None)
    return here


def is_split(tensor: Tensor) -> bool:
    """Whether each process has its part of this tensor. Only where there are several is its kind loaded."""
    if not dist.is_initialized():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def add_gradients(named: Iterable[tuple[str, nn.Parameter]]) -> None:
    """Every gradient becomes the sum over all processes, in one message."""
    if not dist.is_initialized():
        return
    parameters = [parameter for _, parameter in named]
    gradients: list[Tensor] = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter)
