"""Whose turn it is in the queue `data`: a message only says that something waits, the database says what is next.

Workspaces take turns, and inside a workspace its projects: who has the fewest pieces of work going on is next, then who
was served longest ago; inside a project the oldest goes first. So a flood of files holds nobody else up, and since all
of it is read from the rows, a restarted worker goes on with the same order. The idea is that of app/runs/turns.py.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from celery import Task
from sqlalchemy import Select, case, func, or_, select
from sqlalchemy.orm import Session

from app.core.db import reading, utcnow
from app.projects.models import Project
from worker.long_work import LONG_WORK

# Who was served longer ago than this counts as never served.
REMEMBERED = timedelta(days=2)
_NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A queued row. `project_id` is empty for what belongs to a whole workspace."""

    task: str
    id: str
    workspace_id: str
    project_id: str
    since: datetime


@dataclass(frozen=True, slots=True)
class Served:
    """A project's (or workspace's own) work of one kind: how much goes on, and when the last of it was begun."""

    workspace_id: str
    project_id: str
    live: int
    last: datetime


def next_of(line: Sequence[Waiting], had: Sequence[Served]) -> Waiting | None:
    """The piece of work to take now, None when nothing waits."""
    if not line:
        return None
    workspace = _first(line, had, lambda one: one.workspace_id)
    inside = [one for one in line if one.workspace_id == workspace]
    project = _first(inside, [one for one in had if one.workspace_id == workspace], lambda one: one.project_id)
    return min((one for one in inside if one.project_id == project), key=lambda one: (one.since, one.id))


def _first(line: Sequence[Waiting], had: Sequence[Served], group: Callable[[Waiting | Served], str]) -> str:
    """The group with the least going on, then the one served longest ago, then the one that waits longest."""

    def standing(name: str) -> tuple[int, datetime, datetime, str]:
        own = [one for one in had if group(one) == name]
        last = max((one.last for one in own), default=_NEVER)
        return sum(one.live for one in own), last, min(one.since for one in line if group(one) == name), name

    return min({group(one) for one in line}, key=standing)


def waiting(session: Session) -> list[Waiting]:
    """Every queued row of long work."""
    found = []
    for model, task in LONG_WORK:
        since = getattr(model, "created_at", None) or model.updated_at
        query, project = _owned(model, model.id, since)
        for row_id, at, workspace_id, project_id in session.execute(query.where(model.state == "queued")):
            found.append(Waiting(task, row_id, workspace_id, project_id if project else "", at))
    return found


def served(session: Session) -> list[Served]:
    """What goes on, and who was served in the last two days."""
    found = []
    for model, _task in LONG_WORK:
        is_live = func.sum(case((model.state == "running", 1), else_=0))
        query, project = _owned(model, is_live, func.max(model.work_started_at))
        query = query.where(or_(model.state == "running", model.work_started_at >= utcnow() - REMEMBERED))
        query = query.group_by(Project.workspace_id, Project.id) if project else query.group_by(model.workspace_id)
        for live, last, workspace_id, project_id in session.execute(query):
            found.append(Served(workspace_id, project_id if project else "", int(live), last or _NEVER))
    return found


def _owned(model: type[Any], *columns: Any) -> tuple[Select[Any], bool]:
    """`columns` with workspace and project behind them, and whether the rows belong to projects."""
    if hasattr(model, "project_id"):
        return select(*columns, Project.workspace_id, Project.id).join(Project, Project.id == model.project_id), True
    return select(*columns, model.workspace_id, model.workspace_id), False


def next_turn(besides: frozenset[str] = frozenset()) -> Waiting | None:
    """The piece of work that this worker takes now, of all tasks `besides` these. Who waits alone is not compared with
    anybody."""
    with reading() as session:
        line = [one for one in waiting(session) if one.task not in besides]
        return next_of(line, served(session) if _differ(line) else ())


def _differ(line: Iterable[Waiting]) -> bool:
    return len({(one.workspace_id, one.project_id) for one in line}) > 1


class TurnTask(Task):
    """A task of long work does, for a message of the queue, what is next; called by name, what it was asked for.

    Such a task answers whether it had the row: somebody may have been quicker, then the next one is looked for.
    """

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if self.request.called_directly or self.name not in {task for _model, task in LONG_WORK}:
            return super().__call__(*arguments, **named)
        while (turn := next_turn()) is not None:
            if self.app.tasks[turn.task].run(turn.id):
                return True
        return self.run(*arguments, **named)
