"""The machine that trains, as far as presets and estimates need to know it."""

import os
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path

import psutil
from pydantic import BaseModel

# bf16 operations a second that one core of the measured kind reaches in our loop, for models of 4 to 135 M.
CORE_FLOPS = 1.07e11
# Share of a graphics card's peak that a small model reaches; the calibration replaces it after the first run.
GPU_FLOPS = 5e13


class Machine(BaseModel):
    """Cores we may use, memory in bytes, and the accelerator if there is one."""

    cores: int
    memory_bytes: int
    has_bf16: bool
    gpu_name: str = ""
    gpu_memory_bytes: int = 0

    @property
    def device(self) -> str:
        """The kind of device: cuda or cpu."""
        return "cuda" if self.gpu_name else "cpu"

    @property
    def flops(self) -> float:
        """Floating point operations a second to expect before anything was measured here."""
        if self.gpu_name:
            return GPU_FLOPS
        return CORE_FLOPS * self.cores * (1 if self.has_bf16 else 1 / 1.5)

    @property
    def usable_memory_bytes(self) -> int:
        """Memory that a run may fill: the card's, or what is left of the computer's after 1.5 GB for the rest."""
        return self.gpu_memory_bytes or max(0, self.memory_bytes - 3 * 2**29)


@lru_cache
def this_machine() -> Machine:
    """Read once a process. Nothing here touches the tensor stack or keeps a graphics card busy."""
    name, memory = _gpu()
    return Machine(
        cores=_cores(),
        memory_bytes=_memory_limit(),
        has_bf16=_has_bf16(),
        gpu_name=name,
        gpu_memory_bytes=memory,
    )


def _cores() -> int:
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(count, round(int(quota) / int(period))))
    except (OSError, ValueError):
        return count


def _memory_limit() -> int:
    total = int(psutil.virtual_memory().total)
    try:
        return min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):
        return total


def _has_bf16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _gpu() -> tuple[str, int]:
    program = shutil.which("nvidia-smi")
    if not program:
        return "", 0
    query = [program, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=5, check=True)
        name, memory = answer.stdout.splitlines()[0].rsplit(",", 1)
        return name.strip(), int(memory) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return "", 0
