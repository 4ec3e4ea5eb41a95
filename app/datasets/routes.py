"""The Data page of a project: files, paste, samples, what is inside; and the routers of the pages beside it."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import RedirectResponse, Response
from sqlalchemy.orm import Session

from app.accounts.access import ActorDep
from app.accounts.service import Actor
from app.core.db import utcnow
from app.core.errors import Invalid
from app.core.flash import flash
from app.core.forms import FormValues, checked
from app.core.templates import gettext as _
from app.core.templates import render
from app.core.web import SessionDep
from app.datasets import (
    clean_pages,
    contradiction_pages,
    file_pages,
    plans,
    service,
    shown,
    upload_pages,
    uploads,
    version_pages,
    versions,
)
from app.datasets.bringing import pages as bringing_pages
from app.datasets.bringing import service as bringing
from app.datasets.browsing import change_pages, row_pages, statistics_pages
from app.datasets.browsing import pages as rows_pages
from app.datasets.browsing.opening import working_set
from app.datasets.browsing.questions import Question
from app.datasets.combining import pages as combining_pages
from app.datasets.forms import PasteForm
from app.projects import service as projects

router = APIRouter()
PARTS = (
    upload_pages, bringing_pages, file_pages, clean_pages, version_pages, rows_pages, change_pages, row_pages,
    statistics_pages, combining_pages, contradiction_pages,
)  # fmt: skip
for part in PARTS:
    router.include_router(part.router)

Term = Annotated[str, Query(max_length=200)]


def page_context(session: Session, actor: Actor, project_id: str, term: str = "") -> dict[str, Any]:
    """What the Data page and its fragments show."""
    project = projects.get(session, actor, project_id)
    files = service.list_files(session, actor, project_id)
    remotes = bringing.listed(session, project_id)
    remotes_live = any(source.state in shown.LIVE for source in remotes)
    plan = plans.get(session, actor, project_id)
    report = plans.report_of(plan)
    statistics = report.statistics if report else None
    names = {file.id: file.filename for file in files}
    may_edit, base_url = actor.may(project.workspace_id, "editor"), f"/projects/{project_id}/rows"
    return {
        "project": project,
        "stage": "data",
        "files": files,
        "plan": plan,
        "report": report,
        "state": shown.state_of(files, plan),
        "is_live": shown.is_live(files, plan) or remotes_live,
        "pace": shown.pace(plan, utcnow()),
        "remotes": remotes,
        "unfinished": uploads.unfinished(session, actor, project_id) if may_edit else [],
        "remotes_live": remotes_live,
        **rows_pages.table_context(
            session, plan, working_set(plan, names), Question(q=term), 1, [], base_url, may_edit=may_edit, is_brief=True
        ),
        "cards": shown.fix_cards(report),
        "enough": shown.enough(statistics),
        "latest": versions.latest(session, project_id),
        "may_edit": may_edit,
        "shorten": shown.brief,
        "left": shown.left,
        "samples": service.SAMPLES.values(),
        "errors": {},
        "values": {},
    }


@router.get("/projects/{project_id}/data")
def data_page(request: Request, session: SessionDep, actor: ActorDep, project_id: str, q: Term = "") -> Response:
    """The page with the first rows; all of them have a page of their own."""
    return render(request, "datasets/data.html", **page_context(session, actor, project_id, q.strip()))


@router.get("/projects/{project_id}/data/live")
def live(request: Request, session: SessionDep, actor: ActorDep, project_id: str) -> Response:
    """What changed while files are read: asked for every second, and only while there is something to wait for."""
    return render(request, "datasets/_live.html", **page_context(session, actor, project_id))


@router.post("/projects/{project_id}/paste")
def paste(request: Request, session: SessionDep, actor: ActorDep, project_id: str, values: FormValues) -> Response:
    form, errors = checked(PasteForm, values)
    if form is not None:
        try:
            service.add_text(session, actor, project_id=project_id, text=form.text, name=form.name)
        except Invalid as error:
            errors = error.fields
    if errors:
        context = page_context(session, actor, project_id) | {"errors": errors, "values": values}
        # The answer to a form is this page, too: a reload must find it.
        headers = {"HX-Push-Url": f"/projects/{project_id}/data"}
        return render(request, "datasets/data.html", status=422, headers=headers, **context)
    return _arrived(project_id)


@router.post("/projects/{project_id}/remote")
def bring_remote(
    request: Request, session: SessionDep, actor: ActorDep, project_id: str, values: FormValues
) -> Response:
    """An address, a web site, a dataset of the hub, a storage: begun, or the form again with what is wrong."""
    form, errors = checked(bringing_pages.RemoteForm, values)
    if form is not None:
        try:
            source = bringing_pages.begun(session, actor, project_id, form)
        except Invalid as error:
            errors = error.fields or {"address": error.sentence}
        else:
            response = RedirectResponse(f"/projects/{project_id}/data#remote", 303)
            flash(response, _("Found. Choose what to bring.") if source.state == "found" else _("It is on its way."))
            return response
    projects.get(session, actor, project_id, need="editor")
    secrets = ("key", "secret")
    shown_values = {name: value for name, value in values.items() if name not in secrets}
    context = page_context(session, actor, project_id) | {"errors": errors, "values": shown_values}
    headers = {"HX-Push-Url": f"/projects/{project_id}/data"}
    return render(request, "datasets/data.html", status=422, headers=headers, **context)


@router.post("/projects/{project_id}/samples")
def sample(session: SessionDep, actor: ActorDep, project_id: str, values: FormValues) -> Response:
    service.add_sample(session, actor, project_id=project_id, key=str(values.get("sample", "")))
    return _arrived(project_id)


def _arrived(project_id: str) -> Response:
    response = RedirectResponse(f"/projects/{project_id}/data", 303)
    flash(response, _("Arrived. It is being read now."))
    return response
