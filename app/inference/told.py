"""What long work hears while its questions wait at the model server, and writes into its row."""

import threading
import time

from sqlalchemy import select

from app.contracts.generation import Waiting
from app.core.numbers import later
from app.core.work import Cancelled, Lease

_TOLD_EVERY_S = 5.0


class Told:
    """Hears what questions of one piece of work wait for; several may wait at once."""

    def __init__(self, lease: Lease) -> None:
        self._lease, self._lock = lease, threading.Lock()
        self._due_at = 0.0

    def __call__(self, waiting: Waiting) -> None:
        """Write it into the row where it is for memory, so that the page says so, and look there whether somebody has
        cancelled it. Raises Cancelled and LostLease."""
        if self._lease.is_cancelled:
            raise Cancelled
        self._lease.is_waiting = waiting.why == "memory"
        with self._lock:
            if waiting.why != "memory" or time.monotonic() < self._due_at:
                return
            self._due_at = time.monotonic() + _TOLD_EVERY_S
            until = "" if waiting.training_left_s is None else f" {later(waiting.training_left_s)}"
            model, row_id = self._lease.model, self._lease.row_id
            with self._lease.write(phase=f"memory{until}") as session:
                want = session.scalar(select(model.want).where(model.id == row_id))
        if want == "cancel":
            self._lease.is_cancelled = True
            raise Cancelled
