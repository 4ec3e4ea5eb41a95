"""The audit log: who did what, append-only, each entry carrying the hash of the one before."""

import hashlib
from typing import Any

import orjson
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.accounts.models import AuditEntry
from app.accounts.service import Actor
from app.core.db import utcnow
from app.core.logging import client_address, one_line

_LOCK = 7_321_009
PAGE = 100


def record(
    session: Session,
    actor: Actor | None,
    action: str,
    *,
    workspace_id: str | None = None,
    subject: str = "",
    details: dict[str, Any] | None = None,
) -> AuditEntry:
    """Append an entry in the caller's transaction. `action` is "thing.verb"; details hold no secrets and no texts."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(select(func.pg_advisory_xact_lock(_LOCK)))
    newest = session.scalar(select(AuditEntry.sha256).order_by(AuditEntry.id.desc()).limit(1))
    entry = AuditEntry(
        workspace_id=workspace_id,
        user_id=actor.user_id if actor else None,
        action=action,
        subject=one_line(subject)[:80],
        details=details or {},
        address=client_address.get()[:60],
        at=utcnow(),
        previous_sha256=newest or "",
    )
    entry.sha256 = _sha256(entry)
    session.add(entry)
    session.flush()
    return entry


def _sha256(entry: AuditEntry) -> str:
    values = [
        entry.previous_sha256,
        entry.workspace_id,
        entry.user_id,
        entry.action,
        entry.subject,
        entry.details,
        entry.address,
        entry.at.isoformat(),
    ]
    return hashlib.sha256(orjson.dumps(values, option=orjson.OPT_SORT_KEYS)).hexdigest()


def first_broken(session: Session) -> int | None:
    """The id of the first entry that was changed or whose predecessor is missing; None when the chain holds."""
    previous = ""
    for entry in session.scalars(select(AuditEntry).order_by(AuditEntry.id).execution_options(yield_per=500)):
        if entry.previous_sha256 != previous or entry.sha256 != _sha256(entry):
            return entry.id
        previous = entry.sha256
    return None


def entries(
    session: Session, actor: Actor, *, workspace_id: str, action: str = "", before: int | None = None
) -> list[AuditEntry]:
    """The newest entries of a workspace, at most `PAGE`, for its owners."""
    actor.require(workspace_id, "owner")
    query = select(AuditEntry).where(AuditEntry.workspace_id == workspace_id).order_by(AuditEntry.id.desc())
    if action:
        query = query.where(AuditEntry.action == action)
    if before is not None:
        query = query.where(AuditEntry.id < before)
    return list(session.scalars(query.limit(PAGE)))


def actions(session: Session, workspace_id: str) -> list[str]:
    """The kinds of entries that a workspace has, for the filter."""
    query = select(AuditEntry.action).where(AuditEntry.workspace_id == workspace_id).distinct()
    return sorted(session.scalars(query))
