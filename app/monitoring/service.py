"""What programs asked of a project's models: counts and times, never texts."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from math import ceil
from typing import Any

from sqlalchemy import case, func, select
from sqlalchemy.orm import Session

from app.accounts.service import Actor
from app.core.db import utcnow
from app.deployments.models import ApiCall, ApiKey
from app.inference import client, targets
from app.projects import service as projects

DAYS = 14
SAMPLE = 5_000
PER_PAGE = 50
CANCELLED = 499


@dataclass(frozen=True)
class Traffic:
    """The last two weeks. Times in seconds, over the newest five thousand calls; None where nothing was measured.

    `cancelled`: the client hung up, which is no error. `cut`: answers that ended at the longest reply.
    """

    calls: int = 0
    errors: int = 0
    cancelled: int = 0
    cut: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    first_token_median_s: float | None = None
    first_token_p95_s: float | None = None
    by_day: list[tuple[date, int, int]] = field(default_factory=list)


@dataclass(frozen=True)
class Resident:
    """A model that is in memory now: its name, size in bytes, number format, and why it is not the one of the
    settings."""

    name: str
    size_bytes: int
    precision: str
    note: str


@dataclass(frozen=True)
class InMemory:
    """What the model server holds of a workspace, and what training holds of the machine's memory (bytes, and seconds
    until it is free where that is known)."""

    models: list[Resident]
    training_bytes: int
    training_left_s: float | None


def in_memory(session: Session, actor: Actor, project_id: str) -> InMemory | None:
    """What can answer at once; None while the model server is out of reach."""
    project = projects.get(session, actor, project_id)
    if (found := client.resident()) is None:
        return None
    loaded = {one["name"]: one for one in found["models"] if one["is_loaded"]}
    names = targets.names_in(session, project.workspace_id, loaded)
    own = [
        Resident(name, loaded[ref]["size_bytes"], loaded[ref]["precision"], loaded[ref]["note"])
        for ref, name in names.items()
    ]
    memory = found["memory"]
    return InMemory(own, memory["training_bytes"], memory["training_left_s"])


def traffic(session: Session, actor: Actor, project_id: str) -> Traffic:
    """Calls, errors, tokens and waiting times of the last two weeks, and both counts for each day (UTC)."""
    projects.get(session, actor, project_id)
    now = utcnow()
    since = now - timedelta(days=DAYS)
    is_error = (ApiCall.status >= 400) & (ApiCall.status != CANCELLED)
    failed = func.coalesce(func.sum(case((is_error, 1), else_=0)), 0)
    left = func.coalesce(func.sum(case((ApiCall.status == CANCELLED, 1), else_=0)), 0)
    cut = func.coalesce(func.sum(case((ApiCall.finish_reason == "length", 1), else_=0)), 0)
    recent = (ApiCall.project_id == project_id, ApiCall.at >= since)
    day = func.date(ApiCall.at)
    tokens = (func.coalesce(func.sum(ApiCall.prompt_tokens), 0), func.coalesce(func.sum(ApiCall.completion_tokens), 0))
    days = session.execute(select(day, func.count(), failed, *tokens, left, cut).where(*recent).group_by(day)).all()
    waits = session.scalars(
        select(ApiCall.first_token_s)
        .where(*recent, ApiCall.first_token_s.is_not(None))
        .order_by(ApiCall.at.desc())
        .limit(SAMPLE)
    ).all()
    counts = {str(row[0]): (row[1], int(row[2])) for row in days}
    every = [(now - timedelta(days=back)).date() for back in reversed(range(DAYS))]
    return Traffic(
        calls=sum(row[1] for row in days),
        errors=sum(int(row[2]) for row in days),
        prompt_tokens=sum(int(row[3]) for row in days),
        completion_tokens=sum(int(row[4]) for row in days),
        cancelled=sum(int(row[5]) for row in days),
        cut=sum(int(row[6]) for row in days),
        first_token_median_s=quantile([wait for wait in waits if wait is not None], 0.5),
        first_token_p95_s=quantile([wait for wait in waits if wait is not None], 0.95),
        by_day=[(at, *counts.get(at.isoformat(), (0, 0))) for at in every],
    )


def quantile(values: Sequence[float], share: float) -> float | None:
    """The least value that at least `share` of the values do not exceed (nearest rank); None for no values."""
    return sorted(values)[max(0, ceil(share * len(values)) - 1)] if values else None


def calls(session: Session, actor: Actor, project_id: str, *, page: int = 1) -> tuple[Sequence[Any], int]:
    """One page of calls, newest first, with the name of the key; and how many there are."""
    projects.get(session, actor, project_id)
    total = session.scalar(select(func.count()).select_from(ApiCall).where(ApiCall.project_id == project_id)) or 0
    query = (
        select(
            *(ApiCall.at, ApiCall.endpoint, ApiCall.model_ref, ApiCall.status, ApiCall.finish_reason),
            *(ApiCall.prompt_tokens, ApiCall.completion_tokens, ApiCall.first_token_s, ApiCall.total_s),
            ApiKey.name.label("key_name"),
        )
        .outerjoin(ApiKey, ApiKey.id == ApiCall.key_id)
        .where(ApiCall.project_id == project_id)
        .order_by(ApiCall.at.desc(), ApiCall.id)
        .limit(PER_PAGE)
        .offset((page - 1) * PER_PAGE)
    )
    return session.execute(query).all(), total
