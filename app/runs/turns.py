"""Whose turn it is: one rule for the claim of a run and for the places and times that pages show.

Workspaces take turns, inside a workspace its people take turns, and a person's own runs go by priority, then age. A
turn counts from the moment a run was queued: whoever has had fewer runs started since then goes first, so a flood of
one person's runs holds nobody up, with one device as with many (only fair selection helps, caps alone do not).
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from app.core.db import utcnow
from app.runs.models import LIVE_STATES, Attempt, Run


@dataclass(frozen=True, slots=True)
class Waiting:
    """A queued run. `person` is who started it, empty where that person is gone; without `devices` any one will do."""

    id: str
    workspace_id: str
    person: str
    priority: int
    queued_at: datetime
    fence: int = 0
    devices: tuple[str, ...] = ()

    def may_use(self, device: str) -> bool:
        """Whether this device is one of those that the run was given."""
        return not self.devices or device in self.devices


@dataclass(frozen=True, slots=True)
class Served:
    """A run that was given a device at `started_at`; None: only just, later than every queued run."""

    run_id: str
    workspace_id: str
    person: str
    started_at: datetime | None
    is_live: bool


@dataclass(frozen=True, slots=True)
class Turn:
    """A queued run's place, from 1, and the seconds until it is expected to start; None where nobody can say."""

    place: int
    starts_in_s: float | None


def waiting(session: Session, *, due_only: bool = False) -> list[Waiting]:
    """Every queued run; with `due_only` without those that wait for a moment after a fault."""
    query = select(Run.id, Run.workspace_id, Run.created_by, Run.priority, Run.queued_at, Run.fence, Run.recipe)
    query = query.where(Run.state == "queued")
    if due_only:
        query = query.where(or_(Run.next_attempt_at.is_(None), Run.next_attempt_at <= utcnow()))
    return [
        Waiting(
            row.id,
            row.workspace_id,
            row.created_by or "",
            row.priority,
            row.queued_at,
            row.fence,
            tuple(row.recipe.get("devices", ())),
        )
        for row in session.execute(query)
    ]


def served(session: Session, line: Sequence[Waiting]) -> list[Served]:
    """Runs that train now, and those that were started since the first of `line` was queued."""
    since = min((one.queued_at for one in line), default=utcnow())
    query = (
        select(Attempt.run_id, Run.workspace_id, Run.created_by, Attempt.started_at, Attempt.ended_at)
        .join(Run, Run.id == Attempt.run_id)
        .where(or_(Attempt.started_at >= since, Attempt.ended_at.is_(None)))
        .order_by(Attempt.started_at)
    )
    # A run that was interrupted and goes on has still had one turn only: its first attempt counts.
    found: dict[str, Served] = {}
    for row in session.execute(query):
        first = found.get(row.run_id)
        began = first.started_at if first else row.started_at
        found[row.run_id] = Served(row.run_id, row.workspace_id, row.created_by or "", began, row.ended_at is None)
    return list(found.values())


def own_order(one: Waiting) -> tuple[int, datetime, str]:
    """The order of one person's runs among themselves."""
    return -one.priority, one.queued_at, one.id


def next_of(line: Iterable[Waiting], had: Sequence[Served], workspace_cap: int) -> Waiting | None:
    """The run to take now, or None when nothing waits or every workspace has as many live runs as it may."""
    live = Counter(one.workspace_id for one in had if one.is_live)
    people: dict[tuple[str, str], Waiting] = {}
    for one in line:
        if live[one.workspace_id] < workspace_cap:
            key = one.workspace_id, one.person
            people[key] = min(people.get(key, one), one, key=own_order)
    workspaces: dict[str, Waiting] = {}
    by_person = _turn(had, lambda one: (one.workspace_id, one.person))
    for head in people.values():
        known = workspaces.get(head.workspace_id, head)
        workspaces[head.workspace_id] = min(known, head, key=by_person)
    return min(workspaces.values(), key=_turn(had, lambda one: one.workspace_id), default=None)


def _turn(
    had: Sequence[Served], group: Callable[[Waiting | Served], object]
) -> Callable[[Waiting], tuple[int, datetime, str]]:
    """Sort key: how many others of its group were started since a run was queued, then its age."""

    def key(one: Waiting) -> tuple[int, datetime, str]:
        count = sum(
            group(other) == group(one)
            and other.run_id != one.id
            and (other.is_live or other.started_at is None or other.started_at >= one.queued_at)
            for other in had
        )
        return count, one.queued_at, one.id

    return key


def forecast(
    line: Sequence[Waiting],
    had: Sequence[Served],
    lasts_s: dict[str, float | None],
    workspace_cap: int,
) -> dict[str, Turn]:
    """Place and expected start of every queued run, by playing the queue through.

    `lasts_s` are the seconds that each live or queued run still takes, None where unknown; there are as many devices
    as runs that train now, and at least one.
    """
    rest, past = list(line), list(had)
    free = [(_known(lasts_s.get(one.run_id)), one.run_id) for one in had if one.is_live] or [(0.0, "")]
    found: dict[str, Turn] = {}
    while rest and free:
        now, ended = min(free)
        free.remove((now, ended))
        past = [replace(one, is_live=False) if one.run_id == ended else one for one in past]
        taken = next_of(rest, past, workspace_cap)
        if taken is None:
            continue  # this device stays idle: every workspace that waits is at its cap until another run ends
        rest.remove(taken)
        past = [one for one in past if one.run_id != taken.id]
        past.append(Served(taken.id, taken.workspace_id, taken.person, None, True))
        free.append((now + _known(lasts_s.get(taken.id)), taken.id))
        found[taken.id] = Turn(len(found) + 1, now if math.isfinite(now) else None)
    return found


def _known(seconds: float | None) -> float:
    return math.inf if seconds is None else seconds


def places(session: Session, left_s: Callable[[Run], float | None], workspace_cap: int) -> dict[str, Turn]:
    """The forecast of the queue as it stands. It is the machine's: other workspaces' runs count, unnamed."""
    line = waiting(session)
    if not line:
        return {}
    runs = session.scalars(select(Run).where(Run.state.in_(("queued", *LIVE_STATES)))).all()
    return forecast(line, served(session, line), {run.id: left_s(run) for run in runs}, workspace_cap)
