"""Claiming a run, fairly between workspaces and people, and writing as its owner: a lease, a fence, no clocks."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import case, func, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.core.config import get_settings
from app.core.db import new_id, transaction, utcnow
from app.core.work import LostLease
from app.runs import turns
from app.runs.models import LIVE_STATES, Attempt, Run
from app.runs.states import Claimed, move

_ADVISORY_LOCK = 0x6770745F72756E  # "gpt_run": one claimer at a time


def claim(*, node: str, device: str, boot_id: str = "", hold: Callable[[Sequence[str]], bool] = bool) -> Claimed | None:
    """Take the next run for a device; None when nothing is due or a device that it needs has an open attempt.

    `hold` is asked to take a run's other devices on this machine, and whether it has them all. A run that waits for
    one holds up whatever comes after it on its others: else a run of several devices might never find them all free.
    """
    attempt_id = new_id()
    try:
        with transaction() as session:
            if session.get_bind().dialect.name == "postgresql":
                session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
            line = [one for one in turns.waiting(session, due_only=True) if one.may_use(device)]
            row = turns.next_of(line, turns.served(session, line), get_settings().runs_per_workspace)
            if row is None:
                return None
            devices = row.devices or (device,)
            if _taken(session, node) & set(devices):
                return None
            others = [one for one in devices if one != device]
            if others and not hold(others):
                return None
            claimed = Claimed(row.id, row.fence + 1, attempt_id)
            # The index refuses a second open attempt of the run, or of the device.
            session.add(
                Attempt(
                    id=attempt_id,
                    run_id=row.id,
                    fence=claimed.fence,
                    node=node,
                    device=device,
                    devices=list(devices),
                    boot_id=boot_id,
                )
            )
            session.flush()
            move(
                session,
                row.id,
                "starting",
                only_from=("queued",),
                fence=claimed.fence,
                attempt_id=attempt_id,
                attempts=Run.attempts + 1,
                reason="",
                sentence="",
                phase="starting",
                started_at=func.coalesce(Run.started_at, utcnow()),
                want=case((Run.want == "restart", "run"), else_=Run.want),
            )
            return claimed
    except IntegrityError:
        return None


def _taken(session: Session, node: str) -> set[str]:
    """The devices of a machine that have an open attempt. Claims come one after the other, so this is still so."""
    query = select(Attempt.device, Attempt.devices).where(Attempt.node == node, Attempt.ended_at.is_(None))
    return {device for row in session.execute(query) for device in (row.device, *row.devices)}


class RunLease:
    """Writing as the owner of a claimed run."""

    def __init__(self, claimed: Claimed) -> None:
        self.claimed = claimed
        self.renewed_at = boottime()
        # Time in which the machine slept is nobody's.
        self._counted_until = time.monotonic()
        self._counting = threading.Lock()

    @contextmanager
    def write(self, **changes: Any) -> Iterator[Session]:
        """A transaction that renews the lease, counts its time and applies `changes`.

        Raises LostLease without writing anything.
        """
        claimed = self.claimed
        # Heartbeat and recording write from two threads, and a second counts once.
        with self._counting:
            began, now = boottime(), time.monotonic()
            with transaction() as session:
                result: Any = session.execute(
                    update(Run)
                    .where(Run.id == claimed.run_id, Run.fence == claimed.fence, Run.attempt_id == claimed.attempt_id)
                    .where(Run.state.in_(LIVE_STATES))
                    .values(
                        heartbeat=Run.heartbeat + 1,
                        spent_s=Run.spent_s + (now - self._counted_until),
                        **changes,
                    )
                    .execution_options(synchronize_session=False)
                )
                if result.rowcount != 1:
                    raise LostLease(claimed.run_id)
                yield session
            # Counted from before the write: a watcher may have seen the new heartbeat from then on.
            self.renewed_at, self._counted_until = began, now

    @property
    def unrenewed_s(self) -> float:
        """Seconds since the last renewal, counting those in which the machine slept."""
        return boottime() - self.renewed_at


def boottime() -> float:
    """Seconds since boot including suspend; elsewhere than on Linux the monotonic clock, which may stand still."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.clock_gettime(clock) if clock is not None else time.monotonic()
