"""Routes of the members page and the audit log."""

import re
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from app.accounts import audit, members
from app.accounts.access import ActorDep
from app.accounts.forms import InviteForm, RoleForm
from app.accounts.models import Workspace
from app.accounts.service import Actor
from app.core.config import get_settings
from app.core.errors import NotFound
from app.core.flash import flash
from app.core.forms import FormValues, checked, filled
from app.core.templates import gettext as _
from app.core.templates import render
from app.core.web import SessionDep

router = APIRouter()
_WORKSPACE_ID = re.compile(r"^[a-z0-9]{20}$")


def _workspace(session: Any, actor: Actor, workspace_id: str) -> Workspace:
    """The asked-for workspace, or the first one. Raises NotFound for one that is not the actor's."""
    mine = members.workspaces(session, actor)
    for workspace in mine:
        if workspace_id in ("", workspace.id):
            return workspace
    raise NotFound


def _page(
    request: Request, session: Any, actor: Actor, workspace: Workspace, *, status: int = 200, **more: Any
) -> Response:
    is_owner = actor.may(workspace.id, "owner")
    context = {"errors": {}, "values": {}, "link": "", "link_for": ""} | more
    return render(
        request,
        "accounts/members.html",
        status=status,
        # The answer to a form is this page, too: a reload must find it.
        headers={"HX-Push-Url": f"/members?workspace={workspace.id}"} if request.method == "POST" else None,
        stage="members",
        workspace=workspace,
        workspaces=members.workspaces(session, actor),
        people=members.people(session, actor, workspace_id=workspace.id),
        invitations=members.open_invitations(session, actor, workspace_id=workspace.id) if is_owner else [],
        is_owner=is_owner,
        **context,
    )


def _link(request: Request, path: str, token: str) -> str:
    scheme = "https" if get_settings().is_https else request.url.scheme
    return f"{scheme}://{request.headers['host']}{path}?token={token}"


@router.get("/members")
def member_page(request: Request, actor: ActorDep, session: SessionDep, workspace: str = "") -> Response:
    return _page(request, session, actor, _workspace(session, actor, workspace))


@router.post("/members/invitations")
def invite(request: Request, actor: ActorDep, session: SessionDep, values: FormValues) -> Response:
    """The link is in the answer to this one request and nowhere else."""
    workspace_id = str(values.get("workspace_id", ""))
    if not _WORKSPACE_ID.match(workspace_id):
        raise NotFound
    workspace = _workspace(session, actor, workspace_id)
    actor.require(workspace.id, "owner")
    form, errors = checked(InviteForm, values)
    if form is None:
        return _page(request, session, actor, workspace, status=422, errors=errors, values=values)
    token = members.invite(session, actor, workspace_id=workspace.id, role=form.role, email=form.email)
    return _page(request, session, actor, workspace, link=_link(request, "/join", token), link_for="join")


@router.post("/invitations/{invitation_id}/withdraw")
def withdraw(request: Request, actor: ActorDep, session: SessionDep, invitation_id: str) -> Response:
    workspace_id = members.withdraw(session, actor, invitation_id)
    return RedirectResponse(f"/members?workspace={workspace_id}", 303)


@router.post("/members/{member_id}/role")
def change_role(request: Request, actor: ActorDep, session: SessionDep, member_id: str, values: FormValues) -> Response:
    member = members.get_member(session, actor, member_id)
    form = filled(RoleForm, values)
    members.change_role(session, actor, member_id, role=form.role)
    return RedirectResponse(f"/members?workspace={member.workspace_id}", 303)


@router.post("/members/{member_id}/remove")
def remove(request: Request, actor: ActorDep, session: SessionDep, member_id: str) -> Response:
    workspace_id = members.get_member(session, actor, member_id, need="viewer").workspace_id
    is_self = members.remove(session, actor, member_id)
    response = RedirectResponse("/projects" if is_self else f"/members?workspace={workspace_id}", 303)
    flash(response, _("You left the workspace") if is_self else _("Removed from the workspace"))
    return response


@router.post("/members/{member_id}/reset-link")
def reset_link(request: Request, actor: ActorDep, session: SessionDep, member_id: str) -> Response:
    member = members.get_member(session, actor, member_id)
    token = members.reset_link(session, actor, member_id)
    workspace = _workspace(session, actor, member.workspace_id)
    return _page(request, session, actor, workspace, link=_link(request, "/reset", token), link_for="reset")


@router.get("/audit")
def audit_page(
    request: Request,
    actor: ActorDep,
    session: SessionDep,
    workspace: str = "",
    action: str = "",
    before: int | None = None,
    check: bool = False,
) -> Response:
    """The audit log of a workspace, newest first, a hundred entries a page; `check` reads the whole chain."""
    chosen = _workspace(session, actor, workspace)
    entries = audit.entries(session, actor, workspace_id=chosen.id, action=action, before=before)
    names = {person.user_id: person.name for person in members.people(session, actor, workspace_id=chosen.id)}
    return render(
        request,
        "accounts/audit.html",
        stage="members",
        workspace=chosen,
        entries=entries,
        names=names,
        action=action,
        actions=audit.actions(session, chosen.id),
        next_before=entries[-1].id if len(entries) == audit.PAGE else None,
        is_checked=check,
        broken_at=audit.first_broken(session) if check else None,
    )
