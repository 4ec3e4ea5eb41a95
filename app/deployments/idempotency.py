"""A request sent twice with the same Idempotency-Key is done once, and answered alike."""

import hashlib
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import delete
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.core import lives
from app.core.db import utcnow
from app.core.errors import BadRequest, Conflict
from app.deployments.keys import Caller
from app.deployments.models import IdempotentAnswer

KEEP = timedelta(hours=24)
ABANDONED_AFTER = timedelta(minutes=10)
MAX_LENGTH = 255
_RUNNING = "The first request with this Idempotency-Key is still running."


@dataclass(frozen=True)
class Slot:
    """The place of an answer. `answer` is there when the request was done before."""

    workspace_id: str
    key: str
    answer: dict[str, Any] | None = None


def reserve(session: Session, caller: Caller, *, header: str, body: bytes) -> Slot:
    """Take the key's place, or find the answer that is in it.

    Raises BadRequest for another body under the same key, and Conflict while the first request still runs.
    """
    if len(header) > MAX_LENGTH:
        raise BadRequest(f"An Idempotency-Key has at most {MAX_LENGTH} characters.", code="invalid_idempotency_key")
    # The key belongs to one API key: another one cannot fish for its answers.
    key = f"{caller.actor.key_id}:{hashlib.sha256(header.encode()).hexdigest()}"
    digest = hashlib.sha256(body).hexdigest()
    now = utcnow()
    session.execute(delete(IdempotentAnswer).where(IdempotentAnswer.created_at < now - KEEP))
    row = session.get(IdempotentAnswer, (caller.workspace_id, key), with_for_update=True)
    if row is not None and row.answer is None and _is_abandoned(row):
        session.delete(row)
        session.flush()
        row = None
    if row is None:
        place = {"workspace_id": caller.workspace_id, "key": key, "body_sha256": digest, "maker": lives.own()}
        session.add(IdempotentAnswer(**place))
        try:
            session.flush()
        except IntegrityError as error:
            raise Conflict(_RUNNING, code="in_progress") from error
        return Slot(caller.workspace_id, key)
    if row.body_sha256 != digest:
        raise BadRequest("This Idempotency-Key was used with another body.", code="idempotency_key_reused")
    if row.answer is None:
        raise Conflict(_RUNNING, code="in_progress")
    return Slot(caller.workspace_id, key, row.answer)


def _is_abandoned(row: IdempotentAnswer) -> bool:
    return row.created_at < utcnow() - ABANDONED_AFTER or lives.is_over(row.maker)


def keep(session: Session, slot: Slot, answer: dict[str, Any]) -> None:
    """Store the answer for those who ask again."""
    row = session.get(IdempotentAnswer, (slot.workspace_id, slot.key))
    if row is not None:
        row.status, row.answer = 200, answer


def release(session: Session, slot: Slot) -> None:
    """Forget a request that failed, so that it may be tried again."""
    row = session.get(IdempotentAnswer, (slot.workspace_id, slot.key))
    if row is not None and row.answer is None:
        session.delete(row)
