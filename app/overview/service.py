"""What the overview pages show: runs with their curves, what happened lately, feedback to learn from."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, select
from sqlalchemy.orm import Session

from app.accounts.service import Actor
from app.chat.models import Chat, ChatMessage, Feedback
from app.core.translations import gettext as _
from app.core.translations import ngettext
from app.datasets.models import DatasetVersion, SourceFile
from app.evaluations.models import Evaluation
from app.projects import service as projects
from app.runs.models import MetricPoint, Run, RunEvent

RUNS_SHOWN, RECENT_SHOWN, FEEDBACK_SHOWN, RUN_EVENTS_READ = 8, 8, 100, 100
TOLD_KINDS = ("checkpoint", "started", "state", "stop", "queued")


def runs_of(session: Session, actor: Actor, project_id: str) -> tuple[Sequence[Run], dict[str, list[float]]]:
    """The newest runs of a project, and each one's validation losses by step."""
    projects.get(session, actor, project_id)
    query = select(Run).where(Run.project_id == project_id).order_by(Run.number.desc()).limit(RUNS_SHOWN)
    runs = session.scalars(query).all()
    points = (
        select(MetricPoint.run_id, MetricPoint.value)
        .where(MetricPoint.run_id.in_([run.id for run in runs]), MetricPoint.name == "validation_loss")
        .order_by(MetricPoint.run_id, MetricPoint.step)
    )
    curves: dict[str, list[float]] = defaultdict(list)
    for run_id, value in session.execute(points):
        curves[run_id].append(value)
    return runs, curves


@dataclass(frozen=True)
class Happening:
    """One line of the recent activity."""

    at: datetime
    icon: str
    title: str
    note: str = ""
    tone: str = ""
    url: str = ""


def recently(session: Session, actor: Actor, project_id: str) -> list[Happening]:
    """The newest things that happened in a project, newest first."""
    projects.get(session, actor, project_id)
    found = [*_run_events(session, project_id), *_files(session, project_id)]
    found += [*_versions(session, project_id), *_evaluations(session, project_id)]
    return sorted(found, key=lambda item: item.at, reverse=True)[:RECENT_SHOWN]


def _run_events(session: Session, project_id: str) -> list[Happening]:
    query = (
        select(RunEvent.at, RunEvent.sentence, RunEvent.kind, RunEvent.level, Run.id, Run.number, Run.name)
        .join(Run, Run.id == RunEvent.run_id)
        .where(Run.project_id == project_id, RunEvent.kind.in_(TOLD_KINDS) | (RunEvent.level != "info"))
        .order_by(RunEvent.id.desc())
        .limit(RUN_EVENTS_READ)
    )
    icons = {"checkpoint": "bookmark-plus", "started": "play", "queued": "clock", "stop": "flag"}
    tones = {"warning": "warn", "error": "bad"}
    found, saved = [], set()
    for row in session.execute(query):
        # One checkpoint a run is news; a hundred of them would hide everything else.
        if row.kind == "checkpoint" and row.level not in tones:
            if row.id in saved:
                continue
            saved.add(row.id)
        named = _("Run %(number)s", number=row.number)
        found.append(
            Happening(
                at=row.at,
                icon="triangle-alert" if row.level in tones else icons.get(row.kind, "activity"),
                title=row.sentence,
                note=named if row.name == named else f"{named}, {row.name}",
                tone=tones.get(row.level, ""),
                url=f"/runs/{row.id}",
            )
        )
    return found[:RECENT_SHOWN]


def _files(session: Session, project_id: str) -> list[Happening]:
    query = (
        select(SourceFile.filename, SourceFile.rows, SourceFile.created_at)
        .where(SourceFile.project_id == project_id, SourceFile.deleted_at.is_(None))
        .order_by(SourceFile.created_at.desc())
        .limit(RECENT_SHOWN)
    )
    return [
        Happening(
            at=row.created_at,
            icon="file-text",
            title=_("Brought %(name)s", name=row.filename),
            note=ngettext("%(n)s row", "%(n)s rows", row.rows) if row.rows else "",
            url=f"/projects/{project_id}/data",
        )
        for row in session.execute(query)
    ]


def _versions(session: Session, project_id: str) -> list[Happening]:
    query = (
        select(DatasetVersion.number, DatasetVersion.train_rows, DatasetVersion.created_at)
        .where(DatasetVersion.project_id == project_id, DatasetVersion.state == "succeeded")
        .order_by(DatasetVersion.created_at.desc())
        .limit(RECENT_SHOWN)
    )
    return [
        Happening(
            at=row.created_at,
            icon="snowflake",
            title=_("Froze version %(number)s", number=row.number),
            note=ngettext("%(n)s training row", "%(n)s training rows", row.train_rows),
            tone="accent",
            url=f"/projects/{project_id}/clean",
        )
        for row in session.execute(query)
    ]


def _evaluations(session: Session, project_id: str) -> list[Happening]:
    query = (
        select(Evaluation.id, Evaluation.state, Evaluation.created_at)
        .where(Evaluation.project_id == project_id, Evaluation.state.in_(("succeeded", "failed")))
        .order_by(Evaluation.created_at.desc())
        .limit(RECENT_SHOWN)
    )
    return [
        Happening(
            at=row.created_at,
            icon="clipboard-check",
            title=_("Evaluated a model") if row.state == "succeeded" else _("An evaluation failed"),
            tone="good" if row.state == "succeeded" else "bad",
            url=f"/evaluations/{row.id}",
        )
        for row in session.execute(query)
    ]


def rated_answers(session: Session, actor: Actor, project_id: str) -> Sequence[Row[Any]]:
    """Answers that people rated or commented, bad ones first, with the question before each."""
    projects.get(session, actor, project_id)
    query = (
        select(
            _answer.c.id,
            _answer.c.content,
            Feedback.thumb,
            Feedback.note,
            Feedback.tags,
            Feedback.correction,
            Feedback.created_at,
            Chat.id.label("chat_id"),
        )
        .add_columns(_asked.c.content.label("question"))
        .outerjoin(_asked, _asked.c.id == _answer.c.parent_id)
        .join(Feedback, Feedback.message_id == _answer.c.id)
        .join(Chat, Chat.id == _answer.c.chat_id)
        .where(Chat.project_id == project_id, Chat.deleted_at.is_(None))
        .order_by(Feedback.thumb, Feedback.created_at.desc())
        .limit(FEEDBACK_SHOWN)
    )
    return session.execute(query).all()


_answer, _asked = ChatMessage.__table__.alias("answer"), ChatMessage.__table__.alias("asked")
