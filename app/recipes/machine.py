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


class Card(BaseModel):
    """A graphics card: the name that CUDA knows it by, what it is called, its memory in bytes."""

    id: str
    name: str
    memory_bytes: int


class Machine(BaseModel):
    """Cores we may use, memory in bytes, and the accelerators; `gpu_name` and its memory are the first one's."""

    cores: int
    memory_bytes: int
    has_bf16: bool
    gpu_name: str = ""
    gpu_memory_bytes: int = 0
    cards: tuple[Card, ...] = ()

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
    cards = _cards()
    return Machine(
        cores=_cores(),
        memory_bytes=_memory_limit(),
        has_bf16=_has_bf16(),
        gpu_name=cards[0].name if cards else "",
        gpu_memory_bytes=cards[0].memory_bytes if cards else 0,
        cards=cards,
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


def _cards() -> tuple[Card, ...]:
    """The cards that training may use: all, or those that CUDA_VISIBLE_DEVICES names, in its order."""
    program = shutil.which("nvidia-smi")
    if not program:
        return ()
    query = [program, "--query-gpu=index,uuid,name,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=5, check=True)
        return cards_of(answer.stdout, os.environ.get("CUDA_VISIBLE_DEVICES"))
    except (OSError, subprocess.SubprocessError, ValueError):
        return ()


def cards_of(told: str, visible: str | None) -> tuple[Card, ...]:
    """The cards in what nvidia-smi told, a line each of index, UUID, name, MiB; of those only the `visible` ones."""
    known: dict[str, Card] = {}
    for line in told.splitlines():
        index, uuid, name, memory = (part.strip() for part in line.split(",", 3))
        for one in (index, uuid):
            known[one] = Card(id=one, name=name, memory_bytes=int(memory) * 2**20)
    if visible is None:
        return tuple(card for one, card in known.items() if one.isdigit())
    return tuple(known[one.strip()] for one in visible.split(",") if one.strip() in known)
