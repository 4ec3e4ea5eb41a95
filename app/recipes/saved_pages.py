"""The page of saved recipes and its forms."""

from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import RedirectResponse, Response
from sqlalchemy import select

from app.accounts.access import ActorDep
from app.core.errors import Conflict, Invalid
from app.core.flash import flash
from app.core.templates import gettext as _
from app.core.templates import render
from app.core.web import SessionDep
from app.projects.models import Project
from app.recipes import saved, service

router = APIRouter()
Name = Annotated[str, Form(max_length=1000)]


def _show(
    request: Request,
    session: SessionDep,
    actor: ActorDep,
    project_id: str,
    *,
    errors: dict[str, str] | None = None,
    typed: str = "",
) -> Response:
    kept = saved.listing(session, actor, project_id)
    page = service.page(session, actor, project_id)
    ids = {one.project_id for one in kept if one.project_id}
    names = {row.id: row.name for row in session.execute(select(Project.id, Project.name).where(Project.id.in_(ids)))}
    return render(
        request,
        "recipes/saved.html",
        status=422 if errors else 200,
        project=page.project,
        stage="recipe",
        kept=kept,
        origins=names,
        composed=page.composed,
        chosen=page.chosen,
        may_edit=actor.may(page.project.workspace_id, "editor"),
        errors=errors or {},
        typed=typed,
    )


def _back(project_id: str) -> Response:
    return RedirectResponse(f"/projects/{project_id}/recipes", 303)


@router.get("/projects/{project_id}/recipes")
def saved_recipes(request: Request, project_id: str, actor: ActorDep, session: SessionDep) -> Response:
    return _show(request, session, actor, project_id)


@router.post("/projects/{project_id}/recipes")
def keep(request: Request, project_id: str, actor: ActorDep, session: SessionDep, name: Name = "") -> Response:
    """Save what stands on the recipe page under a name."""
    try:
        kept = saved.keep(session, actor, project_id, name=name)
    except Invalid as error:
        return _show(request, session, actor, project_id, errors=error.fields, typed=name)
    response = _back(project_id)
    flash(response, _("Saved “%(name)s”", name=kept.name), _("Every project of this workspace can use it."))
    return response


@router.post("/projects/{project_id}/recipes/{saved_id}/use")
def use(request: Request, project_id: str, saved_id: str, actor: ActorDep, session: SessionDep) -> Response:
    """Show the saved recipe on this project's recipe page."""
    try:
        with session.begin_nested():
            left_out = saved.use(session, actor, project_id, saved_id)
    except Invalid as error:
        sentence = _("It does not fit here. %(why)s", why=" ".join(error.fields.values()) or error.sentence)
        return _show(request, session, actor, project_id, errors={"": sentence})
    response = RedirectResponse(f"/projects/{project_id}/recipe", 303)
    name = saved.get(session, actor, project_id, saved_id).name
    flash(response, _("This page shows “%(name)s” now", name=name), left_out, tone="warn" if left_out else "good")
    return response


@router.post("/projects/{project_id}/recipes/{saved_id}/name")
def rename(
    request: Request, project_id: str, saved_id: str, actor: ActorDep, session: SessionDep, name: Name = ""
) -> Response:
    try:
        saved.rename(session, actor, project_id, saved_id, name=name)
    except Invalid as error:
        return _show(request, session, actor, project_id, errors={"": next(iter(error.fields.values()))})
    return _back(project_id)


@router.post("/projects/{project_id}/recipes/{saved_id}/delete")
def delete(project_id: str, saved_id: str, actor: ActorDep, session: SessionDep) -> Response:
    gone = saved.delete(session, actor, project_id, saved_id)
    response = _back(project_id)
    undo = f"/projects/{project_id}/recipes/{saved_id}/restore"
    flash(response, _("Deleted “%(name)s”", name=gone.name), _("What used it keeps its values."), undo_url=undo)
    return response


@router.post("/projects/{project_id}/recipes/{saved_id}/restore")
def restore(project_id: str, saved_id: str, actor: ActorDep, session: SessionDep) -> Response:
    try:
        saved.restore(session, actor, project_id, saved_id)
    except Invalid as error:
        raise Conflict(next(iter(error.fields.values()))) from error
    return _back(project_id)
