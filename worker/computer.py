"""How busy the computer is while a trainer runs: processor, memory, graphics card, energy; every few seconds."""

import contextlib
import shutil
import subprocess
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import psutil

EVERY_S = 5.0
# Below this share a graphics card waits for something else than itself.
IDLE_SHARE = 0.4
_RAPL = Path("/sys/class/powercap/intel-rapl:0")


class Computer:
    """Observes one trainer with its children. Nothing here can fail the run: what cannot be read is left out.

    `cards`: the graphics cards that it trains on, as CUDA_VISIBLE_DEVICES names them; empty: the first one.
    """

    def __init__(self, pid: int, cards: str = "") -> None:
        self._cards = cards
        self._at = 0.0
        self._process: psutil.Process | None = None
        self._children: dict[int, psutil.Process] = {}
        self._smi = shutil.which("nvidia-smi")
        self._joules = 0.0
        self._energy: int | None = None
        self._idle_since: float | None = None
        with contextlib.suppress(psutil.Error):
            self._process = psutil.Process(pid)
            self._process.cpu_percent()  # the first call only starts its clock

    def look(self) -> dict[str, Any] | None:
        """What is seen now, at most every five seconds; None in between and when the process is gone.

        Keys: cpu_share (of all cores, 0 to 1), cores, memory_bytes, free_bytes; gpu_share, gpu_memory_bytes and
        gpu_idle_s with a graphics card; energy_j where the processor or the card tells it.
        """
        now = time.monotonic()
        if self._process is None or now - self._at < EVERY_S:
            return None
        passed, self._at = now - self._at, now
        try:
            cores = psutil.cpu_count() or 1
            # Those that train together are its children; each is kept, since it counts from its last look on.
            now_there = {child.pid: child for child in self._process.children()}
            self._children = {pid: self._children.get(pid, child) for pid, child in now_there.items()}
            together = [self._process, *self._children.values()]
            found: dict[str, Any] = {
                "cpu_share": round(min(1.0, sum(one.cpu_percent() for one in together) / 100 / cores), 3),
                "cores": cores,
                "memory_bytes": sum(one.memory_info().rss for one in together),
                "free_bytes": psutil.virtual_memory().available,
            }
        except psutil.Error:
            return None
        watts = self._card(found, now)
        self._count_energy(watts, passed if passed < 10 * EVERY_S else EVERY_S)
        if self._joules:
            found["energy_j"] = round(self._joules)
        return found

    def _card(self, found: dict[str, Any], now: float) -> float | None:
        """Add what the trainer's cards say: their mean share, their memory; their power in watts, where they tell."""
        if self._smi is None:
            return None
        query = [self._smi, "--query-gpu=utilization.gpu,memory.used,power.draw", "--format=csv,noheader,nounits"]
        if self._cards:
            query.append(f"--id={self._cards}")
        try:
            answer = subprocess.run(query, capture_output=True, text=True, timeout=2, check=True).stdout
            told = [line.split(",") for line in answer.splitlines()]
            shares, memories, powers = zip(*(told if self._cards else told[:1]), strict=True)
            found["gpu_share"] = fmean(float(share) for share in shares) / 100
            found["gpu_memory_bytes"] = sum(int(memory) for memory in memories) * 2**20
        except (OSError, subprocess.SubprocessError, ValueError):
            return None
        if found["gpu_share"] >= IDLE_SHARE:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = now
        found["gpu_idle_s"] = 0 if self._idle_since is None else round(now - self._idle_since)
        with contextlib.suppress(ValueError):
            return sum(float(power) for power in powers)
        return None

    def _count_energy(self, watts: float | None, passed_s: float) -> None:
        """The card's power over time, and the processor package's own counter (which wraps) where it may be read."""
        if watts is not None:
            self._joules += watts * passed_s
        try:
            energy = int((_RAPL / "energy_uj").read_text())
        except (OSError, ValueError):
            return
        if self._energy is not None and energy >= self._energy:
            self._joules += (energy - self._energy) / 1e6
        self._energy = energy
