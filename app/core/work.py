"""Long work other than runs (import, freeze, evaluate, export): a row with claim, lease, fence, progress and cancel.

The row is the truth and the queue message only a wake-up: whoever cannot claim does nothing, so a doubled or late
message is harmless, and the watcher re-queues what has stopped beating.
"""

import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Integer, String, Text, literal_column, select, union_all, update
from sqlalchemy.orm import Mapped, Session, mapped_column

from app.core.config import get_settings
from app.core.db import UTCDateTime, new_id, reading, transaction, utcnow
from app.core.queue import nudge, ring

log = logging.getLogger(__name__)
LIVE = ("queued", "running")
FORGOTTEN_AFTER_S = 15
MAX_ATTEMPTS = 3


class LostLease(Exception):
    """The row belongs to somebody else now: stop at once and write nothing more."""


class Cancelled(Exception):
    """A person asked to stop."""


class LeasedWork:
    """Columns of a piece of long work. States: queued, running, then succeeded, failed or cancelled."""

    state: Mapped[str] = mapped_column(String(20), default="queued", index=True)
    want: Mapped[str] = mapped_column(String(10), default="run")
    fence: Mapped[int] = mapped_column(Integer, default=0)
    attempt_id: Mapped[str | None] = mapped_column(String(20))
    heartbeat: Mapped[int] = mapped_column(Integer, default=0)
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    phase: Mapped[str] = mapped_column(String(60), default="")
    done: Mapped[int] = mapped_column(BigInteger, default=0)
    total: Mapped[int] = mapped_column(BigInteger, default=0)
    error: Mapped[str] = mapped_column(Text, default="")
    work_started_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    work_ended_at: Mapped[datetime | None] = mapped_column(UTCDateTime)


class Lease:
    """A claimed row. Every write goes through `write`, which fails when the claim is no longer ours."""

    def __init__(self, model: type[Any], row_id: str, fence: int, attempt_id: str) -> None:
        self.model, self.row_id, self.fence, self.attempt_id = model, row_id, fence, attempt_id
        self.is_cancelled = False
        self.is_waiting = False  # for memory, as long as training holds it: other work is done meanwhile
        self._is_lost = threading.Event()
        self._stop = threading.Event()
        self._last_progress = 0.0

    @contextmanager
    def write(self, **changes: Any) -> Iterator[Session]:
        """A transaction that also applies `changes` to the row. Raises LostLease without writing anything."""
        with transaction() as session:
            result: Any = session.execute(
                update(self.model)
                .where(self.model.id == self.row_id, self.model.fence == self.fence)
                .where(self.model.attempt_id == self.attempt_id, self.model.state == "running")
                .values(heartbeat=self.model.heartbeat + 1, **changes)
            )
            if result.rowcount != 1:
                self._is_lost.set()
                raise LostLease(f"{self.model.__tablename__} {self.row_id}")
            yield session

    def progress(self, done: int, total: int = 0, phase: str | None = None, at_most_every_s: float = 0.5) -> None:
        """Record progress, at most every half second. Raises Cancelled or LostLease: let them pass through."""
        now = time.monotonic()
        if self._is_lost.is_set():
            raise LostLease(self.row_id)
        if now - self._last_progress < at_most_every_s and phase is None:
            if self.is_cancelled:
                raise Cancelled
            return
        self._last_progress = now
        changes: dict[str, Any] = {"done": done, "total": total}
        if phase is not None:
            changes["phase"] = phase
        with self.write(**changes) as session:
            want = session.scalar(select(self.model.want).where(self.model.id == self.row_id))
        if want == "cancel":
            self.is_cancelled = True
            raise Cancelled

    def _beat(self) -> None:
        while not self._stop.wait(get_settings().lease_heartbeat_s):
            try:
                with self.write() as session:
                    want = session.scalar(select(self.model.want).where(self.model.id == self.row_id))
                self.is_cancelled = self.is_cancelled or want == "cancel"
            except LostLease:
                return
            except Exception:
                log.warning("heartbeat not written", exc_info=True)


def claim(model: type[Any], row_id: str) -> Lease | None:
    """Claim the queued row, or None when somebody else has it, it is done, or it was cancelled meanwhile."""
    attempt_id = new_id()
    with transaction() as session:
        session.execute(
            update(model)
            .where(model.id == row_id, model.state == "queued", model.want == "cancel")
            .values(state="cancelled", work_ended_at=utcnow())
        )
        result: Any = session.execute(
            update(model)
            .where(model.id == row_id, model.state == "queued")
            .values(
                state="running",
                fence=model.fence + 1,
                attempt_id=attempt_id,
                attempts=model.attempts + 1,
                error="",
                work_started_at=utcnow(),
                work_ended_at=None,
            )
        )
        if result.rowcount != 1:
            return None
        fence = session.scalar(select(model.fence).where(model.id == row_id))
    return Lease(model, row_id, int(fence or 0), attempt_id)


@contextmanager
def working(lease: Lease) -> Iterator[Lease]:
    """Beat while the block runs; end the row as succeeded, cancelled or failed (with the error's sentence)."""
    thread = threading.Thread(target=lease._beat, name=f"beat-{lease.row_id}", daemon=True)
    thread.start()
    ending: dict[str, Any] = {"state": "succeeded"}
    try:
        yield lease
    except LostLease:
        ending = {}
    except Cancelled:
        ending = {"state": "cancelled"}
    except Exception as error:
        log.exception(
            "work failed", extra={"table": lease.model.__tablename__, "row": lease.row_id, "pid": os.getpid()}
        )
        sentence = (
            getattr(error, "sentence", "") or "It stopped on an unexpected error. Nothing was lost; try it again."
        )
        ending = {"state": "failed", "error": sentence}
    finally:
        lease._stop.set()
        thread.join(timeout=5)
    if ending:
        try:
            with lease.write(work_ended_at=utcnow(), **ending):
                pass
        except LostLease:
            log.info("lease lost at the end", extra={"row": lease.row_id})


class Watcher:
    """Finds dead work without comparing clocks: a pair (fence, heartbeat) that it saw unchanged for the lease's time.

    `watched`: tables of long work, each with the task that does it. Method: docs/decisions, after the study of leases
    in Kolibri, Solid Queue and Airflow.
    """

    def __init__(self, *watched: tuple[type[Any], str]) -> None:
        self.watched = watched
        self._seen: dict[tuple[int, str], tuple[tuple[int, int], float]] = {}
        self._waiting: dict[tuple[int, str], float] = {}

    def sweep(self) -> int:
        """Re-queue dead rows (failing them after three attempts) and wake for forgotten ones; how many were dead."""
        rows, now = self._open_rows(), time.monotonic()
        self._wake_forgotten([(row.place, row.id) for row in rows if row.state == "queued"])
        dead = []
        fresh: dict[tuple[int, str], tuple[tuple[int, int], float]] = {}
        for row in (row for row in rows if row.state == "running"):
            pair, one = (row.fence, row.heartbeat), (row.place, row.id)
            known = self._seen.get(one)
            since = known[1] if known and known[0] == pair else now
            fresh[one] = (pair, since)
            if now - since >= get_settings().lease_ttl_s:
                dead.append(row)
        self._seen = fresh
        for row in dead:
            try:
                self._release(row, *self.watched[row.place])
            except Exception:
                log.exception("dead work was not released; it is tried again", extra={"row": row.id})
        return len(dead)

    def _open_rows(self) -> Sequence[Any]:
        """What waits or runs in all tables, asked in one query: an idle machine should stay idle."""
        queries = [
            select(
                literal_column(str(place)).label("place"),
                model.id, model.state, model.fence, model.heartbeat, model.attempts,
            ).where(model.state.in_(LIVE))
            for place, (model, _) in enumerate(self.watched)
        ]  # fmt: skip
        with reading() as session:
            return session.execute(union_all(*queries)).all()

    def _wake_forgotten(self, waiting: list[tuple[int, str]]) -> None:
        """Wake again for what has been queued for a while: Redis may have lost the first wake-up."""
        now = time.monotonic()
        self._waiting = {one: self._waiting.get(one, now) for one in waiting}
        for one, since in self._waiting.items():
            place, row_id = one
            task = self.watched[place][1]
            if now - since >= FORGOTTEN_AFTER_S and nudge(task, row_id, expires_s=2 * FORGOTTEN_AFTER_S):
                self._waiting[one] = now

    def _release(self, row: Any, model: type[Any], task: str) -> None:
        is_last = row.attempts >= MAX_ATTEMPTS
        changes: dict[str, Any] = (
            {
                "state": "failed",
                "error": "It was interrupted three times and given up. Try it again.",
                "work_ended_at": utcnow(),
            }
            if is_last
            else {"state": "queued"}
        )
        with transaction() as session:
            session.execute(
                update(model)
                .where(
                    model.id == row.id,
                    model.state == "running",
                    model.fence == row.fence,
                    model.heartbeat == row.heartbeat,
                )
                .values(fence=model.fence + 1, attempt_id=None, **changes)
            )
            if not is_last:
                ring(session, task, row.id)
