"""Members of a workspace: their roles, and the links that invite people or let them set a new password."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from app.accounts import audit, sign_ins
from app.accounts.models import ROLES, Invitation, Member, User, Workspace
from app.accounts.service import Actor, owner_count
from app.core.db import utcnow
from app.core.errors import Conflict, Forbidden, Gone, Invalid, NotFound
from app.core.security import new_token, token_sha256

INVITATION_AGE = timedelta(days=7)
RESET_AGE = timedelta(hours=24)
LAST_OWNER = "A workspace needs an owner. Make somebody else an owner first."


@dataclass(frozen=True, slots=True)
class Person:
    """A member as the members page shows it."""

    member_id: str
    user_id: str
    name: str
    email: str
    role: str
    last_sign_in_at: datetime | None


def people(session: Session, actor: Actor, *, workspace_id: str) -> list[Person]:
    """Everybody in a workspace, owners first."""
    actor.require(workspace_id, "viewer")
    rows = session.execute(
        select(Member.id, User.id, User.name, User.email, Member.role, User.last_sign_in_at)
        .join(User, User.id == Member.user_id)
        .where(Member.workspace_id == workspace_id)
        .order_by(Member.created_at, Member.id)
    ).all()
    return sorted((Person(*row) for row in rows), key=lambda person: -ROLES.index(person.role))


def workspaces(session: Session, actor: Actor) -> list[Workspace]:
    """The workspaces that the actor belongs to, in the order in which they joined."""
    found = {row.id: row for row in session.scalars(select(Workspace).where(Workspace.id.in_(actor.roles)))}
    return [found[workspace_id] for workspace_id in actor.roles if workspace_id in found]


def get_member(session: Session, actor: Actor, member_id: str, *, need: str = "owner") -> Member:
    """A member row, for somebody with the role `need` in its workspace. Raises NotFound or Forbidden."""
    member = session.get(Member, member_id)
    if member is None:
        raise NotFound
    actor.require(member.workspace_id, need)
    return member


def change_role(session: Session, actor: Actor, member_id: str, *, role: str) -> Member:
    """Give a member another role. Raises Conflict for the last owner."""
    member = get_member(session, actor, member_id)
    if member.role == "owner" and role != "owner" and owner_count(session, member.workspace_id) == 1:
        raise Conflict(LAST_OWNER, code="last_owner")
    details = {"from": member.role, "to": role}
    member.role = role
    audit.record(
        session, actor, "member.role_changed", workspace_id=member.workspace_id, subject=member.user_id, details=details
    )
    return member


def remove(session: Session, actor: Actor, member_id: str) -> bool:
    """Take a member out of the workspace: everybody may leave, only owners remove others. Whether it was the actor.

    Raises Conflict for the last owner.
    """
    member = get_member(session, actor, member_id, need="viewer")
    if member.user_id != actor.user_id:
        actor.require(member.workspace_id, "owner")
    if member.role == "owner" and owner_count(session, member.workspace_id) == 1:
        raise Conflict(LAST_OWNER, code="last_owner")
    audit.record(session, actor, "member.removed", workspace_id=member.workspace_id, subject=member.user_id)
    session.delete(member)
    return member.user_id == actor.user_id


def open_invitations(session: Session, actor: Actor, *, workspace_id: str) -> list[Invitation]:
    """Invitations that can still be used, for owners."""
    actor.require(workspace_id, "owner")
    return list(
        session.scalars(
            select(Invitation)
            .where(Invitation.workspace_id == workspace_id, Invitation.kind == "join", Invitation.used_at.is_(None))
            .where(Invitation.expires_at > utcnow())
            .order_by(Invitation.created_at.desc())
        )
    )


def invite(session: Session, actor: Actor, *, workspace_id: str, role: str, email: str = "") -> str:
    """An invitation; returns the token for its link, which is shown once. With `email` only that address may use it."""
    actor.require(workspace_id, "owner")
    token = new_token()
    invitation = Invitation(
        kind="join",
        token_sha256=token_sha256(token),
        workspace_id=workspace_id,
        email=email,
        role=role,
        expires_at=utcnow() + INVITATION_AGE,
    )
    session.add(invitation)
    session.flush()
    audit.record(
        session, actor, "member.invited", workspace_id=workspace_id, subject=invitation.id, details={"role": role}
    )
    return token


def withdraw(session: Session, actor: Actor, invitation_id: str) -> str:
    """Make an invitation worthless; returns its workspace."""
    invitation = session.get(Invitation, invitation_id)
    if invitation is None or invitation.workspace_id is None:
        raise NotFound
    actor.require(invitation.workspace_id, "owner")
    session.delete(invitation)
    audit.record(session, actor, "invitation.withdrawn", workspace_id=invitation.workspace_id, subject=invitation_id)
    return invitation.workspace_id


def reset_link(session: Session, actor: Actor, member_id: str) -> str:
    """A token that lets a member set a new password, shown to an owner once.

    Whoever holds it becomes that person everywhere, so the owner must own every workspace the person belongs to.
    """
    member = get_member(session, actor, member_id)
    theirs = session.scalars(select(Member.workspace_id).where(Member.user_id == member.user_id)).all()
    if not all(actor.may(workspace_id, "owner") for workspace_id in theirs):
        raise Forbidden("This person also belongs to a workspace that is not yours. Ask its owner, too.")
    audit.record(session, actor, "password.reset_link", workspace_id=member.workspace_id, subject=member.user_id)
    return new_reset_token(session, user_id=member.user_id)


def new_reset_token(session: Session, *, user_id: str) -> str:
    """A token that lets a user set a new password; the one before is worth nothing. For owners and the console."""
    session.execute(delete(Invitation).where(Invitation.user_id == user_id, Invitation.kind == "reset"))
    token = new_token()
    session.add(
        Invitation(kind="reset", token_sha256=token_sha256(token), user_id=user_id, expires_at=utcnow() + RESET_AGE)
    )
    session.flush()
    return token


def reset_token_of(session: Session, *, email: str) -> str:
    """A reset token for an address, for whoever may run commands on the server. Raises NotFound."""
    user_id = session.scalar(select(User.id).where(User.email == email.strip().casefold()))
    if user_id is None:
        raise NotFound("Nobody signs in with this address.")
    sign_ins.note(session, user_id, "password.reset_link")
    return new_reset_token(session, user_id=user_id)


def find_link(session: Session, *, token: str, kind: str) -> Invitation:
    """The invitation behind a link. Raises Gone when it was used, withdrawn or is too old."""
    invitation = session.scalar(
        select(Invitation).where(Invitation.token_sha256 == token_sha256(token), Invitation.kind == kind)
    )
    if invitation is None or invitation.used_at is not None or invitation.expires_at < utcnow():
        raise Gone("This link was used or is too old. Ask the owner of the workspace for a new one.")
    return invitation


def _use(session: Session, invitation: Invitation) -> None:
    """Mark the link as used; of two at once only one gets through. Raises Gone."""
    used = session.execute(
        update(Invitation).where(Invitation.id == invitation.id, Invitation.used_at.is_(None)).values(used_at=utcnow())
    )
    if used.rowcount != 1:  # type: ignore[attr-defined]
        raise Gone("This link was used already.")


def join_as_new(session: Session, *, token: str, name: str, email: str, password_hash: str) -> User:
    """Use an invitation to make an account. Raises Invalid when the address is another one or has an account."""
    invitation = find_link(session, token=token, kind="join")
    if invitation.email and invitation.email != email:
        raise Invalid(fields={"email": "This invitation is for another address."})
    if session.scalar(select(User.id).where(User.email == email)) is not None:
        raise Invalid(fields={"email": "This address has an account here. Sign in first, then open the link again."})
    _use(session, invitation)
    user = User(email=email, name=name, password_hash=password_hash)
    session.add(user)
    session.flush()
    _add(session, Actor(user_id=user.id), invitation)
    return user


def join_as_known(session: Session, actor: Actor, *, token: str) -> str:
    """Use an invitation with the account that is signed in; returns the workspace."""
    invitation = find_link(session, token=token, kind="join")
    if invitation.email and invitation.email != actor.email:
        raise Invalid("This invitation is for another address.")
    if invitation.workspace_id in actor.roles:
        raise Invalid("You already belong to this workspace.")
    _use(session, invitation)
    _add(session, actor, invitation)
    return str(invitation.workspace_id)


def _add(session: Session, actor: Actor, invitation: Invitation) -> None:
    session.add(Member(workspace_id=invitation.workspace_id, user_id=actor.user_id, role=invitation.role))
    session.flush()
    audit.record(
        session, actor, "member.joined", workspace_id=invitation.workspace_id, subject=str(actor.user_id),
        details={"role": invitation.role},
    )  # fmt: skip


def set_password_by_link(session: Session, *, token: str, password_hash: str) -> str:
    """Set a new password by a reset link and end every session; returns the user's id."""
    invitation = find_link(session, token=token, kind="reset")
    _use(session, invitation)
    user_id = str(invitation.user_id)
    session.execute(update(User).where(User.id == user_id).values(password_hash=password_hash))
    sign_ins.end_all(session, user_id=user_id)
    sign_ins.note(session, user_id, "password.reset")
    return user_id


def change_password(session: Session, actor: Actor, *, password_hash: str) -> None:
    """Set a new password; every other session ends."""
    session.execute(update(User).where(User.id == actor.user_id).values(password_hash=password_hash))
    sign_ins.end_all(session, user_id=str(actor.user_id), but=actor.sign_in_sha256)
    sign_ins.note(session, str(actor.user_id), "password.changed")


def rename_self(session: Session, actor: Actor, *, name: str) -> None:
    """Change the actor's own name."""
    session.execute(update(User).where(User.id == actor.user_id).values(name=name))
