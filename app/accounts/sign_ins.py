"""Signing in and out: growing waits for wrong passwords, session rows, rotation."""

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import IPv4Address, ip_address, ip_network

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from app.accounts import audit
from app.accounts.models import Member, SignIn, SignInFailure, User
from app.accounts.service import Actor
from app.core.config import get_settings
from app.core.db import utcnow
from app.core.errors import TooMany
from app.core.security import new_token, token_sha256

# Wrong tries without a wait, and the longest wait. Addresses are shared by families and offices.
FREE_TRIES = {"account": 5, "address": 20}
LONGEST_WAIT_S = {"account": 300, "address": 900}
FORGOTTEN_AFTER = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try: counted as wrong until `complete` says otherwise. `user_id` is None for an unknown address."""

    user_id: str | None
    password_hash: str | None
    subjects: dict[str, bytes]


def _subject(kind: str, value: str) -> bytes:
    return hashlib.sha256(f"{kind}:{value}".encode("utf-8", "surrogatepass")).digest()


def wait_s(kind: str, count: int) -> float:
    """Seconds until the next try after `count` wrong ones: 0, then 1, 2, 4, … up to the kind's limit."""
    over = count - FREE_TRIES[kind]
    return 0.0 if over < 0 else float(min(LONGEST_WAIT_S[kind], 2**over))


def network(address: str) -> str:
    """The address to count by: of an IPv6 one its /64, which is what one household has."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, IPv4Address):
        return str(parsed)
    return str(parsed.ipv4_mapped or ip_network((parsed, 64), strict=False))


def begin(session: Session, *, email: str | None, address: str) -> Attempt:
    """Count a try before the password is looked at, so that many at once cannot slip through.

    Raises TooMany while the account or the address has to wait. Known and unknown accounts are treated alike.
    Without `email` (first visit) only the address counts.
    """
    now = utcnow()
    subjects = {"address": _subject("address", network(address))}
    if email is not None:
        subjects["account"] = _subject("account", email)
    for kind, subject in subjects.items():
        row = session.get(SignInFailure, subject)
        if row is None:
            session.add(SignInFailure(subject_sha256=subject, count=1, last_at=now))
            continue
        if row.last_at < now - FORGOTTEN_AFTER:
            row.count = 0
        # A clock that was ahead left times in the future behind; nobody waits for those.
        opens_at = min(row.last_at, now) + timedelta(seconds=wait_s(kind, row.count))
        if opens_at > now:
            raise TooMany(_opens(opens_at, now), retry_after_s=(opens_at - now).total_seconds(), code="sign_in_wait")
        row.count, row.last_at = row.count + 1, now
    found = session.execute(
        select(User.id, User.password_hash).where(User.email == email, User.is_active)
    ).one_or_none()
    return Attempt(found.id if found else None, found.password_hash if found else None, subjects)


def _opens(opens_at: datetime, now: datetime) -> str:
    seconds = max(1, round((opens_at - now).total_seconds()))
    when = f"{seconds} s" if seconds < 90 else f"{round(seconds / 60)} min"
    return f"Too many wrong tries. Sign-in opens again in {when}."


def complete(
    session: Session, attempt: Attempt, *, password_hash: str | None = None, old_cookie: str = "", user_agent: str = ""
) -> str:
    """The password was right: forget the tries, end the browser's old session, start a new one; its cookie value."""
    if attempt.user_id is None:
        raise ValueError("an attempt without a user cannot be completed")
    session.execute(delete(SignInFailure).where(SignInFailure.subject_sha256 == attempt.subjects["account"]))
    # The address keeps what others tried; this try no longer counts.
    session.execute(
        update(SignInFailure)
        .where(SignInFailure.subject_sha256 == attempt.subjects["address"], SignInFailure.count > 0)
        .values(count=SignInFailure.count - 1)
    )
    if password_hash:
        session.execute(update(User).where(User.id == attempt.user_id).values(password_hash=password_hash))
    if old_cookie:
        end(session, cookie=old_cookie)
    return start(session, user_id=attempt.user_id, user_agent=user_agent)


def start(session: Session, *, user_id: str, user_agent: str = "") -> str:
    """A new session for a user whose right to it was just proved; returns the cookie's value."""
    cookie = new_token()
    session.execute(update(User).where(User.id == user_id).values(last_sign_in_at=utcnow()))
    session.add(SignIn(id_sha256=token_sha256(cookie), user_id=user_id, user_agent=user_agent[:200]))
    session.flush()
    note(session, user_id, "signed.in")
    _forget_old(session)
    return cookie


def end(session: Session, *, cookie: str) -> None:
    """Sign out: the cookie is worth nothing from now on."""
    session.execute(
        update(SignIn)
        .where(SignIn.id_sha256 == token_sha256(cookie), SignIn.ended_at.is_(None))
        .values(ended_at=utcnow())
    )


def end_all(session: Session, *, user_id: str, but: bytes | None = None) -> int:
    """End every session of a user, but for one; returns how many."""
    query = update(SignIn).where(SignIn.user_id == user_id, SignIn.ended_at.is_(None))
    if but is not None:
        query = query.where(SignIn.id_sha256 != but)
    return session.execute(query.values(ended_at=utcnow())).rowcount  # type: ignore[attr-defined]


def open_sign_ins(session: Session, actor: Actor) -> list[SignIn]:
    """Where the actor is signed in, newest first."""
    settings, now = get_settings(), utcnow()
    return list(
        session.scalars(
            select(SignIn)
            .where(SignIn.user_id == actor.user_id, SignIn.ended_at.is_(None))
            .where(SignIn.created_at > now - timedelta(seconds=settings.session_absolute_s))
            .where(SignIn.seen_at > now - timedelta(seconds=settings.session_idle_s))
            .order_by(SignIn.created_at.desc())
        )
    )


def note(session: Session, user_id: str, action: str) -> None:
    """An audit entry about a person, in each workspace that they belong to."""
    actor = Actor(user_id=user_id)
    for workspace_id in session.scalars(select(Member.workspace_id).where(Member.user_id == user_id)):
        audit.record(session, actor, action, workspace_id=workspace_id, subject=user_id)


def _forget_old(session: Session) -> None:
    limit = utcnow() - timedelta(seconds=get_settings().session_absolute_s)
    session.execute(delete(SignIn).where(SignIn.created_at < limit))
    session.execute(delete(SignInFailure).where(SignInFailure.last_at < utcnow() - FORGOTTEN_AFTER))
