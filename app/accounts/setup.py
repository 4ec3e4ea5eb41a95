"""First visit: a one-time token from the console, and the owner account that it makes."""

import hmac
import re
import secrets

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from app.accounts import audit, passwords
from app.accounts.models import Member, Setting, User, Workspace
from app.accounts.service import Actor, has_users
from app.core.errors import Invalid
from app.core.security import token_sha256

_NAME = "setup_token_sha256"
_LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"


def setup_token(session: Session) -> str | None:
    """A new one-time token for the first visit, for the console only; None once an account exists.

    Only its hash is stored, so each start makes a new one and the one before is worth nothing any more.
    """
    if has_users(session):
        return None
    token = "-".join("".join(secrets.choice(_LETTERS) for _ in range(5)) for _ in range(4))
    session.merge(Setting(name=_NAME, value=token_sha256(_plain(token)).hex()))
    session.flush()
    return token


def token_problem(session: Session, token: str) -> str:
    """What is wrong with a token as somebody typed it; empty where it is the right one. It is not used up."""
    stored = session.get(Setting, _NAME)
    is_right = stored is not None and hmac.compare_digest(str(stored.value), token_sha256(_plain(token)).hex())
    return "" if is_right else "This is not the token. The console prints a new one at each start."


def _plain(token: str) -> str:
    return re.sub(r"[^a-z0-9]", "", token.casefold())


def create_owner(
    session: Session, *, token: str, name: str, email: str, password_hash: str, workspace_name: str
) -> User:
    """Use up the token and make the first user with a workspace. Raises Invalid for a wrong token or a second visit."""
    if has_users(session):
        raise Invalid("This installation already has its owner. Sign in instead.", code="already_set_up")
    problem = token_problem(session, token)
    used = session.execute(
        delete(Setting).where(Setting.name == _NAME, Setting.value == token_sha256(_plain(token)).hex())
    )
    if used.rowcount != 1:  # type: ignore[attr-defined]
        raise Invalid(fields={"token": problem or "This token was used a moment ago."})
    return add_user(
        session,
        name=name,
        email=email,
        password_hash=password_hash,
        workspace_name=workspace_name,
        action="owner.created",
    )


def create_user(session: Session, *, name: str, email: str, password: str, workspace_name: str) -> User:
    """A user with a workspace of their own, for the command line. Raises Invalid for a weak password."""
    if sentence := passwords.problem(password, email=email, name=name):
        raise Invalid(fields={"password": sentence})
    return add_user(
        session,
        name=name,
        email=email.strip().casefold(),
        password_hash=passwords.hashed(password),
        workspace_name=workspace_name,
        action="user.created",
    )


def add_user(session: Session, *, name: str, email: str, password_hash: str, workspace_name: str, action: str) -> User:
    """The rows of a user who owns a new workspace."""
    if session.scalar(select(User.id).where(User.email == email)) is not None:
        raise Invalid(fields={"email": "This address has an account already."})
    user = User(email=email, name=name, password_hash=password_hash)
    workspace = Workspace(name=workspace_name)
    session.add_all([user, workspace])
    session.flush()
    session.add(Member(workspace_id=workspace.id, user_id=user.id, role="owner"))
    session.flush()
    audit.record(session, Actor(user_id=user.id), action, workspace_id=workspace.id, subject=user.id)
    return user
