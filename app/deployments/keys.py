"""API keys: shown once, kept as a hash, with scopes, an end and a limit."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from app.accounts import audit
from app.accounts.service import Actor
from app.core.db import new_id, utcnow
from app.core.errors import Forbidden, NotFound, Unauthenticated
from app.core.security import is_same, new_token, token_sha256
from app.deployments.models import ApiKey
from app.projects import service as projects

SCOPES = {
    "read": "List models, files and runs",
    "chat": "Ask the models",
    "train": "Read the rows, start and steer runs",
}
# Not ticked beforehand: whoever wants them says so.
STRONG = ("train",)
_KEY = re.compile(r"^sk-([a-z0-9]{20})_[A-Za-z0-9_-]{20,100}$")
_NOBODY = token_sha256("sk-nobody")
USED_EVERY = timedelta(minutes=1)


@dataclass(frozen=True)
class Caller:
    """Whoever holds a valid key: what they may do, and how often."""

    actor: Actor
    workspace_id: str
    scopes: tuple[str, ...]
    requests_per_minute: int
    tokens_per_minute: int = 0
    monthly_tokens: int = 0
    models: tuple[str, ...] = ()

    def as_editor(self) -> Actor:
        """The key's actor with the role that training needs; only behind `require("train")`."""
        self.require("train")
        return replace(self.actor, roles={self.workspace_id: "editor"})

    def may_use(self, model_id: str) -> bool:
        """Whether the key opens this model, or the model whose checkpoint it is."""
        return not self.models or model_id.partition(":")[0] in self.models

    def require(self, scope: str) -> None:
        """Raise Forbidden without the scope."""
        if scope not in self.scopes:
            raise Forbidden(f"This key lacks the scope “{scope}”. Make another key on the publish page.", code="scope")


def make(
    session: Session,
    actor: Actor,
    project_id: str,
    *,
    name: str,
    scopes: list[str],
    is_for_workspace: bool = False,
    expires_at: datetime | None = None,
    requests_per_minute: int = 120,
    tokens_per_minute: int = 0,
    monthly_tokens: int = 0,
    models: Sequence[str] = (),
) -> tuple[ApiKey, str]:
    """A new key for the project (or its whole workspace), and its text, which nobody can read again."""
    project = projects.get(session, actor, project_id, need="owner")
    key_id = new_id()
    text = f"sk-{key_id}_{new_token()}"
    key = ApiKey(
        id=key_id,
        workspace_id=project.workspace_id,
        project_id=None if is_for_workspace else project.id,
        name=name,
        secret_sha256=token_sha256(text),
        last_four=text[-4:],
        scopes=sorted(set(scopes) & set(SCOPES)),
        created_by=actor.user_id,
        expires_at=expires_at,
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        monthly_tokens=monthly_tokens,
        models=sorted(set(models)),
    )
    session.add(key)
    session.flush()
    details = {"name": name, "scopes": key.scopes, "whole_workspace": is_for_workspace}
    audit.record(session, actor, "key.made", workspace_id=project.workspace_id, subject=key_id, details=details)
    return key, text


def listing(session: Session, actor: Actor, project_id: str) -> list[ApiKey]:
    """Keys that open this project, newest first; without their texts, which nobody has."""
    project = projects.get(session, actor, project_id)
    query = select(ApiKey).where(ApiKey.workspace_id == project.workspace_id)
    query = query.where((ApiKey.project_id == project.id) | ApiKey.project_id.is_(None))
    return list(session.scalars(query.order_by(ApiKey.created_at.desc(), ApiKey.id)))


def revoke(session: Session, actor: Actor, key_id: str) -> ApiKey:
    """End a key for ever; its next request is refused."""
    key = session.get(ApiKey, key_id)
    if key is None:
        raise NotFound
    actor.require(key.workspace_id, "owner")
    if key.revoked_at is None:
        key.revoked_at = utcnow()
        audit.record(session, actor, "key.revoked", workspace_id=key.workspace_id, subject=key.id)
    return key


def caller_of(session: Session, authorization: str) -> Caller:
    """Who the header's key belongs to. Raises Unauthenticated with the same words for every reason.

    The text is hashed before anything is looked up, and compared in constant time.
    """
    scheme, _, text = authorization.partition(" ")
    text = text.strip()
    digest = token_sha256(text)
    found = _KEY.match(text)
    row = session.get(ApiKey, found.group(1)) if found else None
    is_right = is_same(row.secret_sha256 if row else _NOBODY, digest)
    now = utcnow()
    if (
        scheme.lower() != "bearer"
        or row is None
        or not is_right
        or row.revoked_at is not None
        or (row.expires_at is not None and row.expires_at <= now)
    ):
        raise Unauthenticated(
            "The API key is missing, wrong, expired or revoked. Send it as “Authorization: Bearer sk-…”.",
            code="invalid_api_key",
        )
    actor = Actor(None, roles={row.workspace_id: "viewer"}, key_id=row.id, project_id=row.project_id)
    return Caller(
        actor,
        row.workspace_id,
        tuple(row.scopes),
        row.requests_per_minute,
        row.tokens_per_minute,
        row.monthly_tokens,
        tuple(row.models),
    )


def note_used(session: Session, key_id: str) -> None:
    """Remember the last use, at most once a minute."""
    now = utcnow()
    session.execute(
        update(ApiKey)
        .where(ApiKey.id == key_id)
        .where(ApiKey.last_used_at.is_(None) | (ApiKey.last_used_at < now - USED_EVERY))
        .values(last_used_at=now)
    )
