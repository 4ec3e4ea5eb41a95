"""Accounts: who acts, and with which role."""

from dataclasses import dataclass, field
from datetime import timedelta

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app.accounts.models import ROLES, Member, SignIn, User
from app.core.config import get_settings
from app.core.db import utcnow
from app.core.errors import Forbidden, NotFound
from app.core.security import token_sha256

SEEN_EVERY = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Actor:
    """Whoever asks: a signed-in person, or a key acting for its workspace. `roles` maps workspace id to role."""

    user_id: str | None
    email: str = ""
    name: str = ""
    roles: dict[str, str] = field(default_factory=dict)
    key_id: str | None = None
    project_id: str | None = None
    sign_in_sha256: bytes | None = None

    def role_in(self, workspace_id: str) -> str | None:
        """The role in a workspace; None for a stranger."""
        return self.roles.get(workspace_id)

    def may(self, workspace_id: str, need: str) -> bool:
        """Whether the role in the workspace is at least `need`."""
        role = self.roles.get(workspace_id)
        return role is not None and ROLES.index(role) >= ROLES.index(need)

    def require(self, workspace_id: str, need: str) -> None:
        """Raise NotFound for strangers and Forbidden below the role."""
        if workspace_id not in self.roles:
            raise NotFound
        if not self.may(workspace_id, need):
            sentence = f"This needs the role “{need}” in the workspace. Ask its owner."
            raise Forbidden(sentence, workspace_id=workspace_id)


def has_users(session: Session) -> bool:
    """Whether the first visit is over."""
    return session.scalar(select(User.id).limit(1)) is not None


def actor_of_cookie(session: Session, cookie: str) -> Actor | None:
    """Who is signed in with this cookie; None when it is unknown, ended, too old, or its user is switched off."""
    settings, now = get_settings(), utcnow()
    key = token_sha256(cookie)
    row = session.execute(
        select(User.id, User.email, User.name)
        .join(SignIn, SignIn.user_id == User.id)
        .where(SignIn.id_sha256 == key, SignIn.ended_at.is_(None), User.is_active)
        .where(SignIn.created_at > now - timedelta(seconds=settings.session_absolute_s))
        .where(SignIn.seen_at > now - timedelta(seconds=settings.session_idle_s))
    ).one_or_none()
    if row is None:
        return None
    roles = session.execute(
        select(Member.workspace_id, Member.role).where(Member.user_id == row.id).order_by(Member.created_at, Member.id)
    ).all()
    return Actor(
        user_id=row.id,
        email=row.email,
        name=row.name,
        roles={workspace_id: role for workspace_id, role in roles},
        sign_in_sha256=key,
    )


def is_due_to_be_seen(session: Session, actor: Actor) -> bool:
    """Whether the session's last-seen time is old enough to be written again."""
    seen_at = session.scalar(select(SignIn.seen_at).where(SignIn.id_sha256 == actor.sign_in_sha256))
    return seen_at is not None and seen_at < utcnow() - SEEN_EVERY


def note_seen(session: Session, actor: Actor) -> None:
    """Keep the session from idling out."""
    session.execute(update(SignIn).where(SignIn.id_sha256 == actor.sign_in_sha256).values(seen_at=utcnow()))


def owner_count(session: Session, workspace_id: str) -> int:
    """How many owners a workspace has; it never falls to zero."""
    query = select(func.count()).select_from(Member)
    return session.scalar(query.where(Member.workspace_id == workspace_id, Member.role == "owner")) or 0
