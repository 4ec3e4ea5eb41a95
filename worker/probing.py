"""A probe of a recipe in a process of its own: told by the row, watched until it has said what it found."""

import os
import shutil
import time
from typing import Any

from app.contracts import events as codes
from app.contracts.recipe import TrainOrder
from app.core import storage
from app.core.config import get_settings
from app.core.db import reading
from app.core.errors import AppError
from app.core.work import Lease
from app.recipes import probes
from app.recipes.models import Probe
from worker.computer import Computer
from worker.following import Outcome, obeyed
from worker.trainer import environment

LONGEST_S = 1800.0
_BUSY = ("measuring", "looking")  # phases in which energy is counted


def make(lease: Lease) -> None:
    """Run the probe of the leased row and keep what it found. Raises AppError with why there is nothing."""
    with reading() as session:
        probe = session.get_one(Probe, lease.row_id)
    order = TrainOrder.model_validate(probe.order)
    storage.require_space(0)
    folder = probes.folder_of(probe.id)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        result = _Watch(lease).of(_command(probe.kind), order)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    with lease.write(result=result):
        pass


def _command(kind: str) -> list[str]:
    settings = get_settings()
    verb, seconds = ("rates", settings.rates_s) if kind == "rates" else ("probe", settings.probe_s)
    return ["worker.engine", verb, "--seconds", str(seconds), "--parent", str(os.getpid())]


class _Watch:
    """What is heard and seen of one probe while it runs."""

    def __init__(self, lease: Lease) -> None:
        self.lease, self.began = lease, time.monotonic()
        self.found: dict[str, Any] | None = None
        self.phase = ""
        self.joules: list[tuple[float, float]] = []

    def of(self, module: list[str], order: TrainOrder) -> dict[str, Any]:
        """What the probe found. Raises AppError."""
        outcome = obeyed(
            self.lease, module, order.model_dump_json(), environment(), probes.TASK, self._tell, self._begin
        )
        if self.found is None:
            raise AppError(_why(outcome))
        if len(self.joules) > 1 and "watts" in self.found:
            (since, least), (until, most) = self.joules[0], self.joules[-1]
            self.found["watts"] = (most - least) / (until - since) or None
        return self.found

    def _begin(self, pid: int) -> None:
        self.computer = Computer(pid, environment().get("CUDA_VISIBLE_DEVICES", ""))

    def _tell(self, event: dict[str, Any]) -> None:
        if time.monotonic() - self.began > LONGEST_S:
            raise AppError("It took longer than half an hour and was ended. Measure a recipe with fewer rows.")
        kind = event.get("type")
        if kind == "progress":
            is_new, self.phase = event["phase"] != self.phase, event["phase"]
            self.lease.progress(event["done"], event["total"], self.phase if is_new else None)
        else:
            self.found = event if kind in ("probed", "rates_tried") else self.found
            self.lease.progress(0, 0)
        seen = self.computer.look() if self.phase in _BUSY else None
        if seen and "energy_j" in seen:
            self.joules.append((time.monotonic(), seen["energy_j"]))


def _why(outcome: Outcome) -> str:
    last = outcome.trace.strip().rpartition("\n")[2][:400]
    if outcome.returncode == codes.EXIT_OUT_OF_MEMORY:
        return "The longest rows do not fit in memory. Choose fewer rows at once, a shorter longest row, or LoRA."
    if outcome.returncode == codes.EXIT_BAD_DATA and last:
        return last
    return f"The probe ended unexpectedly (code {outcome.returncode}). {last}"
