"""The page of external models. They are tried over the network with no transaction open."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from app.accounts.access import ActorDep
from app.accounts.service import Actor
from app.core.db import reading, transaction
from app.core.errors import AppError
from app.core.flash import flash
from app.core.forms import FormValues, checked, filled
from app.core.templates import gettext as _
from app.core.templates import render
from app.core.web import SessionDep
from app.externals import asking, service
from app.externals.asking import Endpoint
from app.externals.forms import ExternalForm, KeyForm
from app.projects import service as projects

router = APIRouter()
SHOWN_REPLY = 80


@router.get("/projects/{project_id}/external-models")
def page(request: Request, project_id: str, actor: ActorDep) -> Response:
    """What is there, and a form for another one."""
    return _page(request, actor, project_id)


@router.post("/projects/{project_id}/external-models")
def add(request: Request, project_id: str, actor: ActorDep, values: FormValues) -> Response:
    """Try the model; keep it when it answers."""
    with reading() as session:
        projects.get(session, actor, project_id, need="editor")
    form, errors = checked(ExternalForm, values)
    if form is None:
        return _page(request, actor, project_id, errors=errors, values=values)
    endpoint = Endpoint(form.url, form.model, form.key)
    try:
        trial = asking.tried(endpoint)
        with transaction() as session:
            row = service.add(session, actor, project_id, endpoint=endpoint, name=form.name)
            name = row.name
    except AppError as error:
        return _page(request, actor, project_id, errors=service.sentences(error), values=values)
    response = RedirectResponse(f"/projects/{project_id}/external-models", 303)
    flash(response, _("“%(name)s” answers", name=name), _said(trial))
    return response


@router.post("/projects/{project_id}/external-models/{external_id}/try")
def try_again(project_id: str, external_id: str, actor: ActorDep) -> Response:
    """Ask it a short question."""
    with reading() as session:
        _project, row = service.get(session, actor, project_id, external_id)
        name = row.name
    return _tried(actor, project_id, external_id, name)


@router.post("/projects/{project_id}/external-models/{external_id}/key")
def change_key(project_id: str, external_id: str, actor: ActorDep, values: FormValues) -> Response:
    """Another key, tried at once."""
    form = filled(KeyForm, values)
    with transaction() as session:
        name = service.change_key(session, actor, project_id, external_id, key=form.key).name
    return _tried(actor, project_id, external_id, name)


@router.post("/projects/{project_id}/external-models/{external_id}/remove")
def remove(project_id: str, external_id: str, actor: ActorDep, session: SessionDep) -> Response:
    """Forget it and its key."""
    name = service.remove(session, actor, project_id, external_id)
    response = RedirectResponse(f"/projects/{project_id}/external-models", 303)
    flash(response, _("Removed “%(name)s”", name=name), _("Its key is deleted. What it said in chats stays."))
    return response


def _tried(actor: Actor, project_id: str, external_id: str, name: str) -> Response:
    response = RedirectResponse(f"/projects/{project_id}/external-models", 303)
    problem = ""
    try:
        trial = asking.tried(service.endpoint(f"{service.KIND}:{external_id}"))
        flash(response, _("“%(name)s” answers", name=name), _said(trial))
    except AppError as error:
        problem = error.sentence
        flash(response, _("“%(name)s” does not answer", name=name), tone="warn")
    with transaction() as session:
        service.record_trial(session, actor, project_id, external_id, problem=problem)
    return response


def _said(trial: asking.Trial) -> str:
    reply = " ".join(trial.reply.split())[:SHOWN_REPLY]
    seconds = f"{trial.total_s:.1f}"
    if not reply:
        return _("It answered after %(time)s s, without a word.", time=seconds)
    return _("It said “%(reply)s” after %(time)s s.", reply=reply, time=seconds)


def _page(
    request: Request,
    actor: Actor,
    project_id: str,
    *,
    errors: dict[str, str] | None = None,
    values: dict[str, Any] | None = None,
) -> Response:
    with reading() as session:
        project = projects.get(session, actor, project_id)
        rows = service.listing(session, actor, project_id)
        return render(
            request,
            "externals/page.html",
            status=422 if errors else 200,
            project=project,
            stage="chat",
            rows=rows,
            hosts={row.id: service.as_asked(row).host for row in rows},
            may_edit=actor.may(project.workspace_id, "editor"),
            errors=errors or {},
            values=values or {},
        )
