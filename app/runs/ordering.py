"""Changing the order of the queue: a person's own runs among themselves. Turns between people stay what they are."""

from datetime import datetime, timedelta
from typing import Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.accounts.service import Actor
from app.core.errors import Conflict, Invalid
from app.runs import service
from app.runs.models import Run
from app.runs.states import note

Direction = Literal["earlier", "later", "first"]
PRIORITIES = {"high": 1, "normal": 0, "low": -1}
_TICK = timedelta(microseconds=1)


def set_priority(session: Session, actor: Actor, run_id: str, *, priority: str) -> Run:
    """Let a queued run go before or after the other runs of the same person. Raises Conflict when it has started."""
    if priority not in PRIORITIES:
        raise Invalid(fields={"do": "Choose high, normal or low."})
    run = _queued(session, actor, run_id)
    if run.priority != PRIORITIES[priority]:
        run.priority = PRIORITIES[priority]
        note(session, run.id, f"Its priority is {priority} now, set by {actor.name or 'a key'}.", kind="priority")
    return run


def reorder(session: Session, actor: Actor, run_id: str, *, direction: Direction) -> Run:
    """Move a queued run among its person's queued runs; at the end of the line nothing happens. Raises Conflict."""
    run = _queued(session, actor, run_id)
    query = select(Run).where(
        Run.state == "queued", Run.workspace_id == run.workspace_id, Run.created_by.is_not_distinct_from(run.created_by)
    )
    line = list(session.scalars(query.order_by(Run.priority.desc(), Run.queued_at, Run.id).with_for_update()))
    at = line.index(run)
    to = {"earlier": max(0, at - 1), "later": min(len(line) - 1, at + 1), "first": 0}[direction]
    if to == at:
        return run
    run.priority = line[to].priority
    line.insert(to, line.pop(at))
    # Runs of one priority exchange their moments; equal ones are set apart, so that the order is what was asked for.
    level = [one for one in line if one.priority == run.priority]
    last: datetime | None = None
    for one, moment in zip(level, sorted(one.queued_at for one in level), strict=True):
        last = moment if last is None else max(moment, last + _TICK)
        one.queued_at = last
    return run


def _queued(session: Session, actor: Actor, run_id: str) -> Run:
    run = service.get(session, actor, run_id, need="editor")
    if run.state != "queued":
        raise Conflict("Only a run that waits in the queue can be moved. This one no longer does.")
    return run
