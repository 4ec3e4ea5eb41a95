"""Memory that is promised as a whole and taken only where something is written."""

import math
import mmap
from contextlib import suppress

import torch
from torch import Tensor

_SMALL = 2**22  # bytes


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of zeros. On the CPU a large one costs no memory until it is written to, page by page."""
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or size < _SMALL:
        return torch.zeros(shape, dtype=dtype, device=device)
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    mapped = mmap.mmap(-1, size, **private)
    with suppress(AttributeError, OSError):
        mapped.madvise(mmap.MADV_NOHUGEPAGE)  # a huge page would take what 40 small ones leave alone
    return torch.frombuffer(mapped, dtype=dtype).view(shape)
