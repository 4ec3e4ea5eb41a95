"""Claiming a run, fairly between workspaces, and writing as its owner: a lease, a fence, no clocks."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Select, func, or_, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.core.config import get_settings
from app.core.db import new_id, transaction, utcnow
from app.core.work import LostLease
from app.runs.models import LIVE_STATES, Attempt, Run
from app.runs.states import Claimed, move

_ADVISORY_LOCK = 0x6770745F72756E  # "gpt_run": one claimer at a time


def due(workspace_cap: int) -> Select[Any]:
    """The queued run to take next: the workspace with the fewest live runs first, then priority, then age.

    Ranking each workspace's queue and adding its live runs gives every workspace its turn, however many runs one of
    them has queued (after the study of queues in Trigger.dev: only fair selection helps, caps alone do not).
    """
    live = (
        select(Run.workspace_id, func.count().label("live"))
        .where(Run.state.in_(LIVE_STATES))
        .group_by(Run.workspace_id)
        .subquery()
    )
    rank = func.row_number().over(partition_by=Run.workspace_id, order_by=(Run.priority.desc(), Run.queued_at, Run.id))
    queue = (
        select(Run.id, Run.workspace_id, Run.fence, Run.priority, Run.queued_at, rank.label("place"))
        .where(Run.state == "queued", or_(Run.next_attempt_at.is_(None), Run.next_attempt_at <= utcnow()))
        .subquery()
    )
    running = func.coalesce(live.c.live, 0)
    return (
        select(queue.c.id, queue.c.fence)
        .join(live, live.c.workspace_id == queue.c.workspace_id, isouter=True)
        .where(running < workspace_cap)
        .order_by(queue.c.place + running, queue.c.priority.desc(), queue.c.queued_at, queue.c.id)
        .limit(1)
    )


def claim(*, node: str, device: str, boot_id: str = "") -> Claimed | None:
    """Take the next run for a device; None when nothing is due or the device already has an open attempt."""
    attempt_id = new_id()
    try:
        with transaction() as session:
            if session.get_bind().dialect.name == "postgresql":
                session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
            row = session.execute(due(get_settings().runs_per_workspace)).first()
            if row is None:
                return None
            claimed = Claimed(row.id, row.fence + 1, attempt_id)
            # The index refuses a second open attempt of the run, or of the device.
            session.add(
                Attempt(id=attempt_id, run_id=row.id, fence=claimed.fence, node=node, device=device, boot_id=boot_id)
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
            )
            return claimed
    except IntegrityError:
        return None


class RunLease:
    """Writing as the owner of a claimed run."""

    def __init__(self, claimed: Claimed) -> None:
        self.claimed = claimed
        self.renewed_at = boottime()

    @contextmanager
    def write(self, **changes: Any) -> Iterator[Session]:
        """A transaction that renews the lease and applies `changes`. Raises LostLease without writing anything."""
        claimed, began = self.claimed, boottime()
        with transaction() as session:
            result: Any = session.execute(
                update(Run)
                .where(Run.id == claimed.run_id, Run.fence == claimed.fence, Run.attempt_id == claimed.attempt_id)
                .where(Run.state.in_(LIVE_STATES))
                .values(heartbeat=Run.heartbeat + 1, **changes)
                .execution_options(synchronize_session=False)
            )
            if result.rowcount != 1:
                raise LostLease(claimed.run_id)
            yield session
        # Counted from before the write: a watcher may have seen the new heartbeat from then on.
        self.renewed_at = began

    @property
    def unrenewed_s(self) -> float:
        """Seconds since the last renewal, counting those in which the machine slept."""
        return boottime() - self.renewed_at


def boottime() -> float:
    """Seconds since boot including suspend; elsewhere than on Linux the monotonic clock, which may stand still."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.clock_gettime(clock) if clock is not None else time.monotonic()
