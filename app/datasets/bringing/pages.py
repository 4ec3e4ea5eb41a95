"""What becomes of material that is on its way, and the grid of typed rows."""

from typing import Any, Literal

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
from app.datasets import service as files
from app.datasets.bringing import service, typed
from app.datasets.forms import listed
from app.datasets.models import RemoteSource
from app.projects import service as projects

router = APIRouter()
EMPTY_ROWS = 4


class RemoteForm(FormBase):
    """Where to fetch from."""

    kind: Literal["web", "site", "hub", "bucket"] = "web"
    address: str = Field("", max_length=2000)
    page_limit: int = Field(100, ge=1, le=service.PAGE_LIMIT)
    revision: str = Field("", max_length=100)
    endpoint: str = Field("", max_length=300)
    key: str = Field("", max_length=200)
    secret: str = Field("", max_length=200, repr=False)
    licence: str = Field("", max_length=200)
    consent: str = Field("", max_length=500)


class TypedForm(FormBase):
    """Questions and answers in the order of the grid. `add`: one more empty row, nothing is saved."""

    question: list[str] = Field(default_factory=list, max_length=2000)
    answer: list[str] = Field(default_factory=list, max_length=2000)
    name: str = Field("", max_length=100)
    add: str = ""


def begun(session: Session, actor: Actor, project_id: str, form: RemoteForm) -> RemoteSource:
    """Begin what the form says. Raises Invalid with its fields."""
    ledger = {"licence": form.licence, "consent": form.consent}
    match form.kind:
        case "hub":
            return service.find_on_hub(
                session, actor, project_id=project_id, address=form.address, revision=form.revision
            )
        case "bucket":
            return service.bring_bucket(
                session, actor, project_id=project_id, address=form.address, endpoint=form.endpoint, key=form.key,
                secret=form.secret, **ledger,
            )  # fmt: skip
        case _:
            return service.bring_web(
                session, actor, project_id=project_id, address=form.address, is_site=form.kind == "site",
                page_limit=form.page_limit, **ledger,
            )  # fmt: skip


@router.post("/remote/{source_id}/confirm")
def confirm(session: SessionDep, actor: ActorDep, source_id: str, values: FormValues) -> Response:
    names = [str(name) for name in listed(values, "file").get("file", [])]
    source = service.confirm(session, actor, source_id, names=names, consent=str(values.get("consent", "")))
    return _back(source)


@router.post("/remote/{source_id}/retry")
def retry(session: SessionDep, actor: ActorDep, source_id: str) -> Response:
    return _back(service.retry(session, actor, source_id))


@router.post("/remote/{source_id}/cancel")
def cancel(session: SessionDep, actor: ActorDep, source_id: str) -> Response:
    return _back(service.cancel(session, actor, source_id))


@router.post("/remote/{source_id}/delete")
def delete(session: SessionDep, actor: ActorDep, source_id: str) -> Response:
    return _back(service.remove(session, actor, source_id))


def _back(source: RemoteSource) -> Response:
    return RedirectResponse(f"/projects/{source.project_id}/data#remote", 303)


def _grid(request: Request, context: dict[str, Any], pairs: list[typed.Pair], status: int = 200) -> Response:
    return render(request, "datasets/typed.html", status=status, pairs=pairs, stage="data", **context)


@router.get("/projects/{project_id}/typed")
def new_rows(request: Request, session: SessionDep, actor: ActorDep, project_id: str) -> Response:
    project = projects.get(session, actor, project_id, need="editor")
    context: dict[str, Any] = {"project": project, "file": None, "errors": {}, "name": ""}
    return _grid(request, context, [("", "")] * EMPTY_ROWS)


@router.post("/projects/{project_id}/typed")
def add_rows(request: Request, session: SessionDep, actor: ActorDep, project_id: str, values: FormValues) -> Response:
    project = projects.get(session, actor, project_id, need="editor")
    form, errors = checked(TypedForm, listed(values, "question", "answer"))
    form = form or TypedForm()
    context: dict[str, Any] = {"project": project, "file": None, "errors": errors, "name": form.name}
    typed_rows = list(zip(form.question, form.answer, strict=False))
    if form.add and not errors:
        return _grid(request, context, [*typed_rows, *[("", "")] * EMPTY_ROWS])
    try:
        pairs = typed.pairs_of(form.question, form.answer)
    except Invalid as error:
        return _grid(request, context | {"errors": error.fields | errors}, typed_rows or [("", "")], 422)
    typed.add(session, actor, project_id=project_id, pairs=pairs, name=form.name)
    response = RedirectResponse(f"/projects/{project_id}/data", 303)
    flash(response, _("Arrived. It is being read now."))
    return response


@router.get("/files/{file_id}/typed")
def typed_rows(request: Request, session: SessionDep, actor: ActorDep, file_id: str) -> Response:
    file = files.get_file(session, actor, file_id, need="editor")
    project = projects.get(session, actor, file.project_id)
    context = {"project": project, "file": file, "errors": {}, "name": file.filename}
    return _grid(request, context, [*typed.rows_of(file), ("", "")])


@router.post("/files/{file_id}/typed")
def change_rows(request: Request, session: SessionDep, actor: ActorDep, file_id: str, values: FormValues) -> Response:
    file = files.get_file(session, actor, file_id, need="editor")
    project = projects.get(session, actor, file.project_id)
    form, errors = checked(TypedForm, listed(values, "question", "answer"))
    form = form or TypedForm()
    context: dict[str, Any] = {"project": project, "file": file, "errors": errors, "name": file.filename}
    rows = list(zip(form.question, form.answer, strict=False))
    if form.add and not errors:
        return _grid(request, context, [*rows, *[("", "")] * EMPTY_ROWS])
    try:
        pairs = typed.pairs_of(form.question, form.answer)
    except Invalid as error:
        return _grid(request, context | {"errors": error.fields | errors}, rows or [("", "")], 422)
    typed.change(session, actor, file_id, pairs)
    return RedirectResponse(f"/files/{file_id}", 303)
