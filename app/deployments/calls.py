"""What was asked at the API: counts and times, never texts."""

from dataclasses import dataclass
from datetime import date, timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.accounts.service import Actor
from app.core.db import utcnow
from app.deployments import keys
from app.deployments.keys import Caller
from app.deployments.models import ApiCall
from app.projects import service as projects

DAYS = 30


@dataclass
class Facts:
    """One call on its way; filled in as the answer comes."""

    endpoint: str
    model: str = ""
    project_id: str | None = None
    status: int = 200
    finish_reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    first_token_s: float | None = None
    total_s: float | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Calls of one model on one day, or of one model in all."""

    model: str
    day: date | None
    calls: int
    errors: int
    prompt_tokens: int
    completion_tokens: int
    mean_total_s: float | None


def record(session: Session, caller: Caller, facts: Facts) -> None:
    """Write a call down and remember that its key was used."""
    session.add(
        ApiCall(
            workspace_id=caller.workspace_id,
            key_id=caller.actor.key_id,
            project_id=facts.project_id,
            model_ref=facts.model[:120],
            endpoint=facts.endpoint,
            status=facts.status,
            finish_reason=facts.finish_reason[:20],
            prompt_tokens=facts.prompt_tokens,
            completion_tokens=facts.completion_tokens,
            first_token_s=facts.first_token_s,
            total_s=facts.total_s,
        )
    )
    if caller.actor.key_id:
        keys.note_used(session, caller.actor.key_id)


def usage(session: Session, actor: Actor, project_id: str) -> list[Usage]:
    """Calls to the project's models in the last 30 days, by model, busiest first."""
    projects.get(session, actor, project_id)
    query = (
        select(
            ApiCall.model_ref,
            func.count().label("calls"),
            func.count().filter(ApiCall.status >= 400).label("errors"),
            func.sum(ApiCall.prompt_tokens).label("prompt_tokens"),
            func.sum(ApiCall.completion_tokens).label("completion_tokens"),
            func.avg(ApiCall.total_s).label("mean_total_s"),
        )
        .where(ApiCall.project_id == project_id, ApiCall.at > utcnow() - timedelta(days=DAYS))
        .group_by(ApiCall.model_ref)
        .order_by(func.count().desc(), ApiCall.model_ref)
    )
    return [
        Usage(
            row.model_ref,
            None,
            row.calls,
            row.errors,
            int(row.prompt_tokens or 0),
            int(row.completion_tokens or 0),
            row.mean_total_s,
        )
        for row in session.execute(query)
    ]


def recent(session: Session, actor: Actor, project_id: str, limit: int = 20) -> list[ApiCall]:
    """The newest calls to the project's models."""
    projects.get(session, actor, project_id)
    query = select(ApiCall).where(ApiCall.project_id == project_id).order_by(ApiCall.at.desc(), ApiCall.id)
    return list(session.scalars(query.limit(limit)))
