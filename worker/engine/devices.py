"""What this machine offers: device, number format, threads, memory in use."""

import contextlib
import ctypes
import gc
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from app.contracts.recipe import RecipeSpec

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # malloc.h


@dataclass(frozen=True)
class Device:
    """Where and in which number format a run computes. Learning weights are always held in fp32."""

    device: torch.device
    compute: torch.dtype

    @property
    def precision(self) -> str:
        return "bf16" if self.compute is torch.bfloat16 else "fp32"

    def autocast(self) -> AbstractContextManager[object]:
        """Matrix products in the compute type; nothing to do in fp32, so that fp32 stays exact."""
        if self.compute is torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.compute)


def choose(recipe: RecipeSpec) -> Device:
    """CUDA, then Apple's MPS, then CPU; bf16 only where the hardware computes in it."""
    if torch.cuda.is_available():
        device = torch.device("cuda")
    elif torch.backends.mps.is_available():
        device = torch.device("mps")
    else:
        device = torch.device("cpu")
    has_bf16 = recipe.precision == "bf16" or (recipe.precision == "auto" and computes_bf16(device))
    return Device(device, torch.bfloat16 if has_bf16 else torch.float32)


def computes_bf16(device: torch.device) -> bool:
    """True where bf16 products run in hardware; elsewhere they are emulated and slower than fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and not processor_flags().isdisjoint(("avx512_bf16", "amx_bf16"))


@cache
def processor_flags() -> frozenset[str]:
    """The processor's instruction sets by Linux's names; none where it does not tell."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return frozenset()
    return frozenset(next((line for line in text.splitlines() if line.startswith("flags")), "").split())


def set_threads(wanted: int | None) -> int:
    """Fix the number of threads (results on CPU depend on it) and return it.

    The parent should start this process with OMP_WAIT_POLICY=PASSIVE: threads that wait by spinning fall to a
    fifth of their speed as soon as one other process is busy.
    """
    cores = len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else [0] * (os.cpu_count() or 1))
    # Processes that train together share them; the variable is torchrun's.
    count = wanted or max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    torch.set_num_threads(count)
    return count


def keep_freed_memory() -> None:
    """Let the GNU C library keep what is freed, in one pool, for the next step: given back to the system, every large
    tensor's memory comes anew and is cleared first, a tenth of a step. What the environment says of it goes first."""
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt") and not any(name.startswith("MALLOC_") for name in os.environ):
        for parameter, value in ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1)):
            library.mallopt(parameter, value)


def free_memory_bytes() -> int:
    """Memory that this process may still take: of the machine, or of its container where that is less; 0: unknown."""
    free = 0
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    with contextlib.suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        free = min(free, limit - int((group / "memory.current").read_text(encoding="ascii")))
    return max(0, free)


def memory_bytes(device: torch.device) -> int:
    """Memory in use now: of the accelerator, or the resident memory of this process."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory that this process has held: of the accelerator, or resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def let_go() -> None:
    """Give back what a failed attempt still holds: graphs that point at themselves, and the accelerator's store."""
    gc.collect()
    give_back_freed()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def give_back_freed() -> None:
    """Give freed main memory back to the system."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # glibc keeps what was freed; elsewhere there is no such call


def settle(device: torch.device) -> None:
    """Wait until the accelerator has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
