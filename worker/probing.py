"""A probe of a recipe in a process of its own: told by the row, watched until it has said what it found."""

import shutil
import sys
import time
from typing import Any

from app.contracts import events as codes
from app.contracts.events import Progress
from app.contracts.probe import Probed, RatesTried
from app.contracts.recipe import TrainOrder
from app.core import storage
from app.core.config import get_settings
from app.core.db import reading
from app.core.errors import AppError
from app.core.work import Lease, LostLease
from app.recipes import probes
from app.recipes.models import Probe
from worker.celery_app import draining
from worker.computer import Computer
from worker.trainer import Trainer

LOOK_EVERY_S = 0.2
LONGEST_S = 1800.0


def make(lease: Lease) -> None:
    """Run the probe of the leased row and keep what it found. Raises AppError with why there is nothing."""
    with reading() as session:
        probe = session.get_one(Probe, lease.row_id)
    order = TrainOrder.model_validate(probe.order)
    storage.require_space(0)
    folder = probes.folder_of(probe.id)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    trainer = Trainer(order, command=_command(probe.kind))
    try:
        result = _watch(lease, trainer)
    finally:
        if trainer.exit_code is None:
            trainer.kill()
        trainer.close()
        shutil.rmtree(folder, ignore_errors=True)
    with lease.write(result=result):
        pass


def _command(kind: str) -> tuple[str, ...]:
    settings = get_settings()
    verb, seconds = ("rates", settings.rates_s) if kind == "rates" else ("probe", settings.probe_s)
    return (sys.executable, "-m", "worker.engine", verb, "--seconds", str(seconds))


def _watch(lease: Lease, trainer: Trainer) -> dict[str, Any]:
    found: dict[str, Any] | None = None
    began, computer, measuring = time.monotonic(), Computer(trainer.identity.pid), 0.0
    joules: list[tuple[float, float]] = []
    while not trainer.has_closed:
        if draining.is_set():
            raise LostLease(lease.row_id)  # the watcher gives it to the next worker
        if time.monotonic() - began > LONGEST_S:
            raise AppError("It took longer than half an hour and was ended. Measure a recipe with fewer rows.")
        event = trainer.next_event(LOOK_EVERY_S)
        if isinstance(event, Progress):
            measuring = measuring or (time.monotonic() if event.phase == "measuring" else 0.0)
            lease.progress(event.done, event.total, event.phase)
        elif isinstance(event, Probed | RatesTried):
            found = event.model_dump(mode="json")
        else:
            lease.progress(0, 0)
        seen = computer.look() if measuring else None
        if seen and "energy_j" in seen:
            joules.append((time.monotonic(), seen["energy_j"]))
    trainer.wait(10)
    if found is None:
        raise AppError(_why(trainer))
    if len(joules) > 1 and "watts" in found:
        (since, least), (until, most) = joules[0], joules[-1]
        found["watts"] = (most - least) / (until - since) or None
    return found


def _why(trainer: Trainer) -> str:
    last = trainer.log_tail.strip().rpartition("\n")[2][:400]
    if trainer.exit_code == codes.EXIT_OUT_OF_MEMORY:
        return "The longest rows do not fit in memory. Choose fewer rows at once, a shorter longest row, or LoRA."
    if trainer.exit_code == codes.EXIT_BAD_DATA and last:
        return last
    return f"The probe ended unexpectedly (code {trainer.exit_code}). {last}"
