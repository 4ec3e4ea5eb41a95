"""What a supervisor writes about its attempt: the trainer it started, the model it finished, the way it ended."""

import errno
import logging
import shutil
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from sqlalchemy import select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app.contracts.events import Ended
from app.core import storage
from app.core.db import reading, utcnow
from app.core.queue import ring
from app.core.work import LostLease
from app.runs import finishing
from app.runs.claim import RunLease
from app.runs.models import Attempt, Checkpoint, Run
from app.runs.outcomes import Facts, Outcome, judge
from app.runs.service import TASK
from app.runs.states import move

log = logging.getLogger(__name__)
_PATIENCE_S = 600.0
_BUSY_WAIT_S = 5.0
T = TypeVar("T")


def patiently(action: Callable[[], T]) -> T:
    """Repeat a fenced write while the database is out of reach: whoever owns the run by then decides if it counts."""
    give_up_at, wait_s = time.monotonic() + _PATIENCE_S, 0.5
    while True:
        try:
            return action()
        except SQLAlchemyError as error:
            if time.monotonic() > give_up_at:
                raise
            log.warning("the database did not answer, trying again: %s", error)
            time.sleep(wait_s)
            wait_s = min(wait_s * 2, 10.0)


def record_trainer(lease: RunLease, *, pid: int, started: float, boot_id: str) -> None:
    """Name the process, so that whoever comes later can end exactly this one."""
    with lease.write() as session:
        session.execute(
            update(Attempt)
            .where(Attempt.id == lease.claimed.attempt_id)
            .values(pid=pid, pid_started=started, boot_id=boot_id)
        )


def drop_unregistered(lease: RunLease) -> int | None:
    """Delete checkpoints that no row names: the attempt that wrote them died before its metrics were recorded.

    Going on from the newest registered one instead keeps the curve without holes; its step is returned. They stay when
    nothing registered is left on disk. Call it while holding the run's lock. Raises LostLease.
    """
    run_id = lease.claimed.run_id
    with lease.write() as session:
        named = {row.dir: row.step for row in _kept(session, run_id)}
    folder = storage.run_dir(run_id)
    there = [step for place, step in named.items() if (folder / place).is_dir()]
    is_safe = not named or bool(there)
    for path in folder.glob("checkpoints/step-*"):
        if is_safe and f"checkpoints/{path.name}" not in named:
            shutil.rmtree(path)
    return max(there, default=None)


def succeed(lease: RunLease, ended: Ended) -> None:
    """Finish the run with a model; a cancel that came first wins. Raises LostLease."""
    try:
        patiently(lambda: finishing.finish(lease, ended))
    except LostLease:
        with reading() as session:
            run = session.get_one(Run, lease.claimed.run_id)
        if run.attempt_id != lease.claimed.attempt_id or run.want != "cancel":
            raise
        end(lease, Outcome("cancelled", "cancelled", diary="Cancelled."))


def settle(lease: RunLease, facts_of: Callable[[Run, int | None], Facts]) -> None:
    """Judge an attempt that left no model and move the run on. Raises LostLease."""

    def action() -> None:
        with lease.write() as session:
            run = session.get_one(Run, lease.claimed.run_id)
            _apply(session, lease, run, judge(facts_of(run, newest_kept(session, run.id))))

    patiently(action)


def end(lease: RunLease, outcome: Outcome) -> None:
    """Move the run on as `outcome` says. Raises LostLease."""

    def action() -> None:
        with lease.write() as session:
            _apply(session, lease, session.get_one(Run, lease.claimed.run_id), outcome)

    patiently(action)


def give_back(lease: RunLease) -> None:
    """Put the run back for a few seconds without counting the attempt."""
    end(lease, Outcome("queued", "drained", wait_s=_BUSY_WAIT_S))


def give_back_quietly(lease: RunLease) -> None:
    """Put the run back if it is still ours and the database answers; otherwise the reconciler will."""
    try:
        with lease.write() as session:
            run = session.get_one(Run, lease.claimed.run_id)
            _apply(
                session, lease, run, Outcome("queued", "drained", diary="Out of touch with the database for a while.")
            )
    except (LostLease, SQLAlchemyError) as error:
        log.warning("left to the reconciler: %r", error)


def give_up_attempt(lease: RunLease, error: Exception) -> None:
    """End an attempt whose supervision itself failed: again later, or failed after three in a row."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        wait_for_space(lease, "The disk is full.")
        return
    message = getattr(error, "sentence", "") or f"{type(error).__name__}: {error}"
    settle(
        lease,
        lambda run, kept: Facts(
            exit_code=None,
            message=message,
            want=run.want,
            step=run.step,
            total_steps=run.total_steps,
            stalled_attempts=run.stalled_attempts,
            memory_rung=0,
            relief="",
            learning_rate=0,
            kept_step=kept,
        ),
    )


def wait_for_space(lease: RunLease, sentence: str) -> None:
    """Let the run wait until the disk has room again."""
    words = f"Paused: {sentence} It goes on by itself once there is space."
    end(lease, Outcome("waiting", "disk_full", "disk_full", words, words, "warning"))


def newest_kept(session: Session, run_id: str) -> int | None:
    """Step of the newest registered checkpoint."""
    return max((row.step for row in _kept(session, run_id)), default=None)


def _kept(session: Session, run_id: str) -> Any:
    query = select(Checkpoint.dir, Checkpoint.step, Checkpoint.size_bytes)
    return session.execute(query.where(Checkpoint.run_id == run_id, Checkpoint.state == "kept")).all()


def _apply(session: Session, lease: RunLease, run: Run, outcome: Outcome) -> None:
    changes = dict(outcome.changes)
    plan = dict(run.plan)
    if "memory_rung" in changes:
        plan["memory_rung"] = changes.pop("memory_rung")
    if outcome.to == "waiting":
        plan["needed_bytes"] = 2 * max((row.size_bytes for row in _kept(session, run.id)), default=0)
    if outcome.exit_kind == "drained":
        changes["attempts"] = Run.attempts - 1
    if outcome.to == "queued":
        changes["next_attempt_at"] = utcnow() + timedelta(seconds=outcome.wait_s) if outcome.wait_s else None
    move(
        session,
        run.id,
        outcome.to,
        claimed=lease.claimed,
        exit_kind=outcome.exit_kind,
        diary=outcome.diary,
        kind=outcome.reason or outcome.exit_kind,
        level=outcome.level,
        reason=outcome.reason,
        sentence=outcome.sentence,
        plan=plan,
        phase="",
        **changes,
    )
    if outcome.to == "queued":
        ring(session, TASK, run.id)
