"""This machine as a place to train: its name, its devices' locks, and what an earlier life left running on it."""

import contextlib
import fcntl
import logging
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

from sqlalchemy import select

from app.core.config import get_settings
from app.core.db import reading, transaction
from app.core.work import LostLease
from app.recipes.machine import this_machine
from app.runs.models import Attempt
from app.runs.reconcile import release
from worker.trainer import Identity

log = logging.getLogger(__name__)


def name() -> str:
    """Stable over restarts, different for every home on every machine."""
    return f"{socket.gethostname()}:{get_settings().home_dir}"[-100:]


@contextlib.contextmanager
def lock(path: Path) -> Iterator[int | None]:
    """An exclusive lock that the kernel frees when its last holder dies; None when somebody else holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        yield None
        return
    try:
        yield descriptor
    finally:
        # Closing is enough; an explicit unlock would also take it from a trainer that inherited it.
        os.close(descriptor)


def own_devices() -> list[str]:
    """The devices that this worker serves, one after the other: what CUDA shows it, else every card, else one."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [shown] if shown else [card.id for card in this_machine().cards] or ["0"]


def only(device: str) -> list[str]:
    """What a trainer of one device may see, where this worker sees more; empty: what this worker sees."""
    return [device] if len(own_devices()) > 1 else []


def device_lock(device: str) -> contextlib.AbstractContextManager[int | None]:
    """Held by the one supervisor of a device."""
    return lock(get_settings().home_dir / "locks" / f"device-{device}.lock")


def hold_devices(stack: contextlib.ExitStack, devices: Sequence[str]) -> bool:
    """Take the locks of more devices for as long as `stack` lives; whether all were free. Else none is held."""
    with contextlib.ExitStack() as taken:
        if not all(taken.enter_context(device_lock(device)) is not None for device in devices):
            return False
        stack.push(taken.pop_all())
        return True


def run_lock(run_id: str) -> contextlib.AbstractContextManager[int | None]:
    """Held by a run's trainer for as long as it lives, whatever became of its supervisor."""
    return lock(get_settings().home_dir / "locks" / f"run-{run_id}.lock")


def release_leftovers(device: str) -> int:
    """Kill trainers that an earlier supervisor of this device left, and give their runs back at once; how many.

    Only for whoever holds the device's lock: an open attempt is then certainly nobody's.
    """
    with reading() as session:
        query = select(Attempt).where(Attempt.node == name(), Attempt.device == device, Attempt.ended_at.is_(None))
        attempts = session.scalars(query).all()
    for attempt in attempts:
        kill_trainer(attempt)
        with contextlib.suppress(LostLease), transaction() as session:
            release(session, attempt.run_id, attempt.fence, exit_kind="worker_lost")
        log.warning("gave back a run of an earlier life", extra={"run": attempt.run_id})
    return len(attempts)


def kill_trainer(attempt: Attempt) -> None:
    """Kill the attempt's trainer if it still runs here."""
    if attempt.pid is None or attempt.pid_started is None:
        return
    identity = Identity(attempt.pid, attempt.pid_started, attempt.boot_id)
    if identity.is_alive() and not identity.kill():
        log.error("a trainer does not die", extra={"pid": attempt.pid})


def kill_earlier_trainers(run_id: str) -> None:
    """Kill every trainer of the run that earlier attempts started on this machine and that still lives."""
    with reading() as session:
        query = select(Attempt).where(Attempt.run_id == run_id, Attempt.node == name())
        for attempt in session.scalars(query).all():
            kill_trainer(attempt)
