"""What the housekeeper does for runs every few seconds: dead leases, waiting runs, wake-ups, stray folders."""

import contextlib
import logging
import shutil
import time
from pathlib import Path

from sqlalchemy import exists, or_, select, update
from sqlalchemy.orm import Session

from app.core import storage
from app.core.config import get_settings
from app.core.db import reading, transaction, utcnow
from app.core.errors import Conflict
from app.core.queue import nudge
from app.core.work import LostLease
from app.runs.models import END_STATES, LIVE_STATES, Attempt, Checkpoint, Model, Run
from app.runs.outcomes import MAX_STALLED_ATTEMPTS
from app.runs.service import TASK
from app.runs.states import Claimed, move

log = logging.getLogger(__name__)


def release(session: Session, run_id: str, fence: int, *, exit_kind: str, heartbeat: int | None = None) -> None:
    """Give a run back whose worker is gone: to the queue, or to the end that was asked for.

    The fence is raised, so nothing of the old attempt can be written any more. Raises LostLease when the run has
    moved on, or has beaten since `heartbeat`.
    """
    query = select(Run).where(Run.id == run_id, Run.fence == fence, Run.state.in_(LIVE_STATES))
    if heartbeat is not None:
        query = query.where(Run.heartbeat == heartbeat)
    run = session.scalar(query.with_for_update())
    if run is None or run.attempt_id is None:
        raise LostLease(run_id)
    claimed = Claimed(run_id, fence, run.attempt_id)
    step = session.scalar(
        select(Checkpoint.step)
        .where(Checkpoint.run_id == run_id, Checkpoint.state == "kept")
        .order_by(Checkpoint.step.desc())
        .limit(1)
    )
    again = f"goes on from step {step} of {run.total_steps}" if step else "starts again from the beginning"
    if run.want == "cancel":
        move(session, run_id, "cancelled", claimed=claimed, exit_kind=exit_kind, diary="Cancelled.", fence=fence + 1)
        return
    if run.want == "pause":
        move(session, run_id, "paused", claimed=claimed, exit_kind=exit_kind, diary="Paused.", fence=fence + 1)
        return
    stalled = run.stalled_attempts + 1
    if stalled >= MAX_STALLED_ATTEMPTS:
        sentence = (
            f"The machine that trained was lost {stalled} times without getting further, and the run was given up. "
            "Perhaps it needs more memory than there is: choose a smaller base model or batch, then start it again."
        )
        move(
            session,
            run_id,
            "failed",
            claimed=claimed,
            exit_kind=exit_kind,
            fence=fence + 1,
            reason="crash_loop",
            sentence=sentence,
            diary=sentence,
            level="error",
        )
        return
    move(
        session,
        run_id,
        "queued",
        claimed=claimed,
        exit_kind=exit_kind,
        fence=fence + 1,
        stalled_attempts=stalled,
        phase="",
        diary=f"The worker was interrupted. The run {again}; nothing is lost.",
        kind="interrupted",
        level="warning",
    )


class Reconciler:
    """Keeps between sweeps what it has seen itself: two clocks are never compared."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[tuple[int, int], float]] = {}
        self._tidied_at = float("-inf")

    def sweep(self) -> None:
        """One round; each part on its own, so that a fault in one does not keep the others from their work."""
        for part in (self.release_dead, self.wake_waiting, self.ring_forgotten, self.tidy_sometimes):
            try:
                part()
            except Exception:
                log.exception("reconciling runs failed in %s", part.__name__)

    def release_dead(self) -> int:
        """Give back runs whose (fence, heartbeat) stood still for the lease's time while this process watched."""
        now = time.monotonic()
        with reading() as session:
            query = select(Run.id, Run.fence, Run.heartbeat).where(Run.state.in_(LIVE_STATES))
            rows = session.execute(query).all()
        fresh: dict[str, tuple[tuple[int, int], float]] = {}
        dead = 0
        for row in rows:
            pair = (row.fence, row.heartbeat)
            known = self._seen.get(row.id)
            since = known[1] if known and known[0] == pair else now
            fresh[row.id] = (pair, since)
            if now - since < get_settings().lease_ttl_s:
                continue
            with contextlib.suppress(LostLease), transaction() as session:
                release(session, row.id, row.fence, exit_kind="lease_expired", heartbeat=row.heartbeat)
                dead += 1
        self._seen = fresh
        return dead

    def wake_waiting(self) -> int:
        """Queue runs again that waited for disk space, now that there is some."""
        with reading() as session:
            waiting = session.execute(
                select(Run.id, Run.plan).where(Run.state == "waiting", Run.reason == "disk_full")
            ).all()
        woken = 0
        for row in waiting:
            needed = int(row.plan.get("needed_bytes", 0)) + get_settings().disk_reserve_bytes
            if storage.free_bytes() < needed:
                continue
            with contextlib.suppress(Conflict), transaction() as session:
                move(
                    session,
                    row.id,
                    "queued",
                    only_from=("waiting",),
                    reason="",
                    sentence="",
                    diary="There is space on the disk again; the run goes on.",
                    kind="resume",
                )
                woken += 1
        return woken

    def ring_forgotten(self) -> int:
        """Wake the workers while something is due, or has missed heartbeats: its worker may be back and not know."""
        with reading() as session:
            is_due = or_(Run.next_attempt_at.is_(None), Run.next_attempt_at <= utcnow())
            query = select(Run.id).where(Run.state == "queued", is_due).order_by(Run.queued_at).limit(1)
            waiting = session.scalar(query)
        suspect_after_s, now = 2 * get_settings().lease_heartbeat_s, time.monotonic()
        waiting = waiting or next(
            (one for one, (_, since) in self._seen.items() if now - since > suspect_after_s), None
        )
        return int(waiting is not None and nudge(TASK, waiting, expires_s=2 * get_settings().reconcile_every_s))

    def tidy_sometimes(self) -> None:
        """Once a minute: stray folders, checkpoints that vanished, attempts that nobody closed."""
        if time.monotonic() - self._tidied_at >= 60:
            self._tidied_at = time.monotonic()
            tidy()


def tidy() -> int:
    """Delete what no row names and nobody uses any more; how many folders went."""
    removed = 0
    root = storage.run_dir("").resolve()
    with reading() as session:
        states = {row.id: row.state for row in session.execute(select(Run.id, Run.state))}
        named = {
            (row.run_id, row.dir)
            for row in session.execute(select(Checkpoint.run_id, Checkpoint.dir).where(Checkpoint.state == "kept"))
        }
        given_up = set(session.scalars(select(Model.run_id).where(Model.deleted_at.is_not(None))))
    for folder in (path for path in root.iterdir() if path.is_dir()):
        state = states.get(folder.name)
        if state is None:
            strays = [folder] if _is_old(folder) else []
        elif state in END_STATES:
            inside = [*folder.rglob(".tmp-*"), *folder.glob("checkpoints/*")]
            # An export of an ended run may be at work right now: its half-made folder is its own to clear.
            inside = [path for path in inside if folder / "exports" not in path.parents]
            strays = [p for p in inside if (folder.name, f"checkpoints/{p.name}") not in named]
            strays += folder.glob("model") if folder.name in given_up else ()
        else:
            continue
        for stray in strays:
            shutil.rmtree(stray, ignore_errors=True)
            removed += 1
    for lock in (root.parent / "locks").glob("run-*.lock"):
        state = states.get(lock.stem.removeprefix("run-"))
        # A run newer than our look at the table may hold its lock right now.
        if state in END_STATES or (state is None and _is_old(lock)):
            lock.unlink(missing_ok=True)
    with transaction() as session:
        for run_id, place in named:
            if states.get(run_id) in END_STATES and not (root / run_id / place).is_dir():
                session.execute(
                    update(Checkpoint)
                    .where(Checkpoint.run_id == run_id, Checkpoint.dir == place)
                    .values(state="missing")
                )
        # A live run has its open attempt; any other open attempt would keep its device from the next run.
        is_live = exists().where(Run.id == Attempt.run_id, Run.attempt_id == Attempt.id, Run.state.in_(LIVE_STATES))
        session.execute(
            update(Attempt).where(Attempt.ended_at.is_(None), ~is_live).values(ended_at=utcnow(), exit_kind="lost")
        )
    return removed


def _is_old(folder: Path) -> bool:
    """A folder without a row may belong to a run whose transaction is still open: leave it for an hour."""
    return time.time() - folder.stat().st_mtime > 3600
