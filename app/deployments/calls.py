"""What was asked at the API: counts and times, never texts."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any

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
    """Calls of one model in the last 30 days; `days`: how many on each, oldest first."""

    model: str
    calls: int
    errors: int
    cancelled: int
    prompt_tokens: int
    completion_tokens: int
    mean_first_token_s: float | None
    tokens_per_s: float | None
    days: list[int]


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


_TOKENS = ApiCall.prompt_tokens + ApiCall.completion_tokens
# A client that hangs up has got what it wanted, or lost patience: no error of the model's.
_IS_ERROR = (ApiCall.status >= 400) & (ApiCall.status != 499)
_COUNTS = (
    func.count().label("calls"),
    func.count().filter(_IS_ERROR).label("errors"),
    func.count().filter(ApiCall.status == 499).label("cancelled"),
    func.avg(ApiCall.first_token_s).label("first"),
    func.sum(ApiCall.completion_tokens).filter(ApiCall.total_s > 0).label("written"),
    func.sum(ApiCall.total_s).filter(ApiCall.total_s > 0).label("time"),
)


def usage(session: Session, actor: Actor, project_id: str) -> list[Usage]:
    """Calls to the project's models in the last 30 days, by model, busiest first."""
    projects.get(session, actor, project_id)
    is_recent = (ApiCall.project_id == project_id, ApiCall.at > utcnow() - timedelta(days=DAYS))
    read, written = func.sum(ApiCall.prompt_tokens).label("read"), func.sum(ApiCall.completion_tokens).label("said")
    query = select(ApiCall.model_ref, read, written, *_COUNTS).where(*is_recent).group_by(ApiCall.model_ref)
    days = _by_day(session, ApiCall.model_ref, *is_recent)
    return [
        Usage(
            row.model_ref,
            row.calls,
            row.errors,
            row.cancelled,
            int(row.read or 0),
            int(row.said or 0),
            row.first,
            row.written / row.time if row.time else None,
            days[row.model_ref],
        )
        for row in session.execute(query.order_by(func.count().desc(), ApiCall.model_ref))
    ]


@dataclass(frozen=True, slots=True)
class KeyUse:
    """What one key was used for in the last 30 days, and its tokens of this month."""

    calls: int = 0
    errors: int = 0
    cancelled: int = 0
    tokens: int = 0
    month_tokens: int = 0
    mean_first_token_s: float | None = None
    tokens_per_s: float | None = None
    days: list[int] = field(default_factory=list)


def by_key(session: Session, ids: Sequence[str]) -> dict[str, KeyUse]:
    """Use of each key."""
    is_recent = (ApiCall.key_id.in_(ids), ApiCall.at > utcnow() - timedelta(days=DAYS))
    query = select(ApiCall.key_id, func.sum(_TOKENS).label("tokens"), *_COUNTS).where(*is_recent)
    days = _by_day(session, ApiCall.key_id, *is_recent)
    # A month may be longer than the days that are shown.
    month = select(ApiCall.key_id, func.sum(_TOKENS)).where(ApiCall.key_id.in_(ids), ApiCall.at >= _month_start())
    this_month = {key_id: int(tokens or 0) for key_id, tokens in session.execute(month.group_by(ApiCall.key_id))}
    found = {
        row.key_id: KeyUse(
            row.calls,
            row.errors,
            row.cancelled,
            int(row.tokens or 0),
            this_month.pop(row.key_id, 0),
            row.first,
            row.written / row.time if row.time else None,
            days.get(row.key_id, []),
        )
        for row in session.execute(query.group_by(ApiCall.key_id))
    }
    return found | {key_id: KeyUse(month_tokens=tokens) for key_id, tokens in this_month.items()}


def _by_day(session: Session, group: Any, *where: Any) -> dict[str, list[int]]:
    """Calls on each of the last 30 days (UTC), oldest first, by what `group` names."""
    day = func.date(ApiCall.at)
    today = utcnow().date()
    found: dict[str, list[int]] = {}
    for name, on, count in session.execute(select(group, day, func.count()).where(*where).group_by(group, day)):
        place = DAYS - 1 - (today - date.fromisoformat(str(on))).days
        counts = found.setdefault(name, [0] * DAYS)
        counts[max(0, place)] += count
    return found


def by_day(session: Session, actor: Actor, project_id: str) -> list[tuple[date, int, int]]:
    """(day, calls, tokens) of the last 30 days, oldest first, days without calls included."""
    projects.get(session, actor, project_id)
    today, day = utcnow().date(), func.date(ApiCall.at)
    query = (
        select(day, func.count(), func.sum(_TOKENS))
        .where(ApiCall.project_id == project_id, ApiCall.at > utcnow() - timedelta(days=DAYS))
        .group_by(day)
    )
    found = {str(on): (count, int(tokens or 0)) for on, count, tokens in session.execute(query)}
    days = [today - timedelta(days=back) for back in range(DAYS - 1, -1, -1)]
    return [(one, *found.get(one.isoformat(), (0, 0))) for one in days]


def _month_start() -> datetime:
    return utcnow().replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def until_next_month_s() -> float:
    """Seconds until budgets begin anew."""
    start = _month_start()
    following = (start + timedelta(days=32)).replace(day=1)
    return (following - utcnow()).total_seconds()


def tokens_this_month(session: Session, key_id: str) -> int:
    """Tokens that a key has read and written since the first of the month (UTC)."""
    query = select(func.sum(_TOKENS)).where(ApiCall.key_id == key_id, ApiCall.at >= _month_start())
    return int(session.scalar(query) or 0)


def recent(session: Session, actor: Actor, project_id: str, limit: int = 20) -> list[ApiCall]:
    """The newest calls to the project's models."""
    projects.get(session, actor, project_id)
    query = select(ApiCall).where(ApiCall.project_id == project_id).order_by(ApiCall.at.desc(), ApiCall.id)
    return list(session.scalars(query.limit(limit)))
