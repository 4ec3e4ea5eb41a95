"""The states of a run and the one way to change them: a guarded UPDATE with its diary line, in one transaction."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import update
from sqlalchemy.orm import Session

from app.core import events
from app.core.db import utcnow
from app.core.errors import Conflict
from app.core.work import LostLease
from app.runs.models import END_STATES, LIVE_STATES, Attempt, Run, RunEvent

# To each state, from which states. Nothing leaves an end.
FROM: dict[str, tuple[str, ...]] = {
    "queued": ("starting", "running", "finalizing", "pausing", "paused", "waiting"),
    "waiting": ("queued", "starting", "running", "finalizing", "pausing"),
    "starting": ("queued",),
    "running": ("starting",),
    "finalizing": ("starting", "running", "pausing"),
    "pausing": ("starting", "running"),
    "paused": ("queued", "waiting", "starting", "running", "pausing"),
    "cancelling": ("starting", "running", "finalizing", "pausing"),
    "cancelled": ("queued", "waiting", "paused", "cancelling"),
    "succeeded": ("finalizing",),
    "failed": ("starting", "running", "finalizing", "pausing"),
}


@dataclass(frozen=True, slots=True)
class Claimed:
    """What proves that a run is ours: every write matches all three by equality."""

    run_id: str
    fence: int
    attempt_id: str


def note(
    session: Session, run_id: str, sentence: str, *, kind: str = "", level: str = "info", step: int | None = None
) -> None:
    """Add a line to the run's diary."""
    session.add(RunEvent(run_id=run_id, sentence=sentence, kind=kind, level=level, step=step))
    payload = {"sentence": sentence, "kind": kind, "level": level, "step": step, "at": utcnow().isoformat()}
    events.announce(session, f"run:{run_id}", "log", payload)


def move(
    session: Session,
    run_id: str,
    to: str,
    *,
    claimed: Claimed | None = None,
    only_from: tuple[str, ...] | None = None,
    diary: str = "",
    kind: str = "state",
    level: str = "info",
    exit_kind: str = "",
    **changes: Any,
) -> None:
    """Change the state. A worker passes `claimed`; a person's request goes without.

    `diary` is the line for the diary, `changes` are columns. Leaving the live states ends the attempt (`exit_kind`)
    and forgets the claim. Raises LostLease when the claim is no longer ours, Conflict when the run has moved on
    meanwhile; nothing is written then.
    """
    sources = only_from or FROM[to]
    if not set(sources) <= set(FROM[to]):
        raise ValueError(f"{sources} cannot become {to}")
    query = update(Run).where(Run.id == run_id, Run.state.in_(sources))
    if claimed is not None:
        query = query.where(Run.fence == claimed.fence, Run.attempt_id == claimed.attempt_id)
    if to not in LIVE_STATES:
        changes["attempt_id"] = None
    if to in END_STATES:
        changes["ended_at"] = utcnow()
    result: Any = session.execute(query.values(state=to, **changes).execution_options(synchronize_session=False))
    if result.rowcount != 1:
        raise LostLease(run_id) if claimed is not None else Conflict
    session.expire_all()
    if to not in LIVE_STATES:
        close_attempt(session, run_id, exit_kind or to)
    if diary:
        note(session, run_id, diary, kind=kind, level=level)
    reason = changes.get("reason", "")
    events.announce(session, f"run:{run_id}", "state", {"state": to, "reason": reason, "is_over": to in END_STATES})


def close_attempt(session: Session, run_id: str, exit_kind: str) -> None:
    """End the run's open attempt, if there is one."""
    session.execute(
        update(Attempt)
        .where(Attempt.run_id == run_id, Attempt.ended_at.is_(None))
        .values(ended_at=utcnow(), exit_kind=exit_kind)
    )
