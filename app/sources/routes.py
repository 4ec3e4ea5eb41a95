"""The page of a project's sources, and the page that asks before one is forgotten."""

from datetime import date

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response
from pydantic import Field
from sqlalchemy.orm import Session

from app.accounts.access import ActorDep
from app.accounts.service import Actor
from app.core.errors import Invalid
from app.core.flash import flash
from app.core.forms import FormBase, FormValues, checked
from app.core.templates import gettext as _
from app.core.templates import render
from app.core.web import SessionDep
from app.projects import service as projects
from app.sources import service

router = APIRouter()
LIVE = ("queued", "running")


class SourceForm(FormBase):
    """What is known of a source."""

    licence: str = Field("", max_length=200)
    consent: str = Field("", max_length=500)
    origin_url: str = Field("", max_length=2000)
    obtained_on: date | None = None


class ForgetForm(FormBase):
    """The file's name, typed, and why."""

    name: str = Field("", max_length=255)
    because: str = Field("", max_length=500)


@router.get("/projects/{project_id}/sources")
def page(request: Request, session: SessionDep, actor: ActorDep, project_id: str) -> Response:
    project = projects.get(session, actor, project_id)
    gone = service.forgotten(session, actor, project_id)
    return render(
        request, "sources/page.html", project=project, stage="data",
        sources=service.sources(session, actor, project_id), forgotten=gone,
        is_live=any(row.state in LIVE for row in gone),
    )  # fmt: skip


def _source_page(
    request: Request, session: Session, actor: Actor, file_id: str, *, errors: dict[str, str], values: FormValues
) -> Response:
    found = service.source(session, actor, file_id)
    project = projects.get(session, actor, found.file.project_id)
    context = {
        "project": project, "stage": "data", "source": found, "file": found.file, "errors": errors, "values": values,
        "may_edit": actor.may(project.workspace_id, "editor"), "may_forget": actor.may(project.workspace_id, "owner"),
    }  # fmt: skip
    status = 422 if errors else 200
    headers = {"HX-Push-Url": f"/sources/{file_id}"} if errors else None
    return render(request, "sources/source.html", status=status, headers=headers, **context)


@router.get("/sources/{file_id}")
def source_page(request: Request, session: SessionDep, actor: ActorDep, file_id: str) -> Response:
    return _source_page(request, session, actor, file_id, errors={}, values={})


@router.post("/sources/{file_id}")
def describe(request: Request, session: SessionDep, actor: ActorDep, file_id: str, values: FormValues) -> Response:
    form, errors = checked(SourceForm, {**values, "obtained_on": values.get("obtained_on") or None})
    if form is None:
        return _source_page(request, session, actor, file_id, errors=errors, values=values)
    file = service.describe(
        session, actor, file_id, licence=form.licence, consent=form.consent, origin_url=form.origin_url,
        obtained_on=form.obtained_on,
    )  # fmt: skip
    response = RedirectResponse(f"/projects/{file.project_id}/sources", 303)
    flash(response, _("Written down."))
    return response


@router.post("/sources/{file_id}/forget")
def forget(request: Request, session: SessionDep, actor: ActorDep, file_id: str, values: FormValues) -> Response:
    form, errors = checked(ForgetForm, values)
    if form is not None:
        try:
            row = service.forget(session, actor, file_id, name=form.name, because=form.because)
        except Invalid as error:
            errors = error.fields
        else:
            response = RedirectResponse(f"/projects/{row.project_id}/sources", 303)
            flash(response, _("%(name)s was forgotten.", name=row.filename), _("Its files are being deleted."))
            return response
    return _source_page(request, session, actor, file_id, errors=errors, values=values)
