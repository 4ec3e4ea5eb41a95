"""A document's pages: how it is cut, who drafts questions and answers, and the review of what was drafted."""

from itertools import islice
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import RedirectResponse, Response
from pydantic import Field
from sqlalchemy.orm import Session

from app.accounts.access import ActorDep
from app.accounts.service import Actor
from app.core.errors import AppError, Invalid
from app.core.flash import flash
from app.core.forms import FormBase, FormValues, checked, filled
from app.core.templates import gettext as _
from app.core.templates import ngettext, render
from app.core.web import SessionDep
from app.datasets import service as datasets
from app.datasets.findings import Refused
from app.drafting import service
from app.inference import targets
from app.projects import service as projects

router = APIRouter()
LIVE = ("queued", "running")
SHOWN_CHUNKS = 8
Size = Annotated[int, Query(ge=32, le=8192)]
Overlap = Annotated[int, Query(ge=0, le=2048)]


class ChunkForm(FormBase):
    """How a document is cut."""

    size: int = Field(512, ge=32, le=8192)
    overlap: int = Field(64, ge=0, le=2048)


class DraftForm(ChunkForm):
    """Whom to ask for how many questions a chunk."""

    target: str = Field("", max_length=60)
    pairs: int = Field(3, ge=1, le=10)


class EndpointForm(FormBase):
    """An OpenAI-compatible endpoint."""

    url: str = Field("", max_length=500)
    model: str = Field("", max_length=200)
    key: str = Field("", max_length=500)


class ReviewForm(FormBase):
    """What becomes of one draft; the texts where they were edited. `shown`: the list it was reviewed in."""

    draft_id: int = Field(ge=1)
    state: Literal["approved", "rejected", "open"]
    question: str | None = Field(None, max_length=20_000)
    answer: str | None = Field(None, max_length=100_000)
    shown: Literal["open", "unusable", "approved", "rejected"] = "open"


def _page(
    request: Request, session: Session, actor: Actor, file_id: str, size: int, overlap: int, errors: dict[str, str]
) -> Response:
    file = datasets.get_file(session, actor, file_id)
    project = projects.get(session, actor, file.project_id)
    sentence, shown = "", []
    try:
        shown = list(islice(service.chunks_of(file, size, min(overlap, size - 1)), SHOWN_CHUNKS))
    except (AppError, Refused) as error:
        sentence = error.sentence
    context: dict[str, Any] = {
        "project": project, "stage": "data", "file": file, "chunks": shown, "sentence": sentence, "size": size,
        "overlap": overlap, "endpoint": service.get_endpoint(session, project.workspace_id),
        "choices": [c for c in targets.choices(session, actor, project.id) if c.group not in ("checkpoints", "ended")],
        "draftings": service.of_file(session, file), "may_edit": actor.may(project.workspace_id, "editor"),
        "may_own": actor.may(project.workspace_id, "owner"), "errors": errors,
    }  # fmt: skip
    return render(request, "drafting/page.html", status=422 if errors else 200, **context)


@router.get("/files/{file_id}/drafting")
def page(
    request: Request, session: SessionDep, actor: ActorDep, file_id: str, size: Size = 512, overlap: Overlap = 64
) -> Response:
    return _page(request, session, actor, file_id, size, overlap, {})


@router.post("/files/{file_id}/endpoint")
def set_endpoint(request: Request, session: SessionDep, actor: ActorDep, file_id: str, values: FormValues) -> Response:
    file = datasets.get_file(session, actor, file_id)
    form, errors = checked(EndpointForm, values)
    if form is not None:
        try:
            service.set_endpoint(session, actor, file.project_id, url=form.url, model=form.model, key=form.key)
            return RedirectResponse(f"/files/{file_id}/drafting", 303)
        except Invalid as error:
            errors = error.fields
    return _page(request, session, actor, file_id, 512, 64, errors)


@router.post("/files/{file_id}/chunks")
def as_text(session: SessionDep, actor: ActorDep, file_id: str, values: FormValues) -> Response:
    """The chunks become a file of plain text."""
    form = filled(ChunkForm, values)
    file = service.as_text(session, actor, file_id, size=form.size, overlap=form.overlap)
    response = RedirectResponse(f"/projects/{file.project_id}/data", 303)
    flash(response, _("The chunks are a file of their own now."), _("It is being read."))
    return response


@router.post("/files/{file_id}/draftings")
def start(session: SessionDep, actor: ActorDep, file_id: str, values: FormValues) -> Response:
    form = filled(DraftForm, values)
    drafting = service.start(
        session, actor, file_id, target=form.target, size=form.size, overlap=form.overlap, pairs=form.pairs
    )
    return RedirectResponse(f"/draftings/{drafting.id}", 303)


@router.get("/draftings/{drafting_id}")
def review_page(
    request: Request, session: SessionDep, actor: ActorDep, drafting_id: str,
    state: Literal["open", "unusable", "approved", "rejected"] = "open",
    page: Annotated[int, Query(ge=1, le=100_000)] = 1,
) -> Response:  # fmt: skip
    drafting = service.get(session, actor, drafting_id)
    project = projects.get(session, actor, drafting.project_id)
    file = datasets.get_file(session, actor, drafting.file_id)
    context: dict[str, Any] = {
        "project": project, "stage": "data", "file": file, "drafting": drafting, "is_live": drafting.state in LIVE,
        "counts": service.counts(session, drafting), "drafts": service.drafts(session, drafting, state, page),
        "state": state, "page": page, "per_page": service.PER_PAGE,
        "may_review": actor.may(project.workspace_id, "annotator"),
        "may_edit": actor.may(project.workspace_id, "editor"),
    }  # fmt: skip
    return render(request, "drafting/review.html", **context)


@router.get("/draftings/{drafting_id}/live")
def live(request: Request, session: SessionDep, actor: ActorDep, drafting_id: str) -> Response:
    drafting = service.get(session, actor, drafting_id)
    if drafting.state not in LIVE:
        return Response(status_code=204, headers={"HX-Refresh": "true"})
    counts = service.counts(session, drafting)
    return render(request, "drafting/_state.html", drafting=drafting, is_live=True, counts=counts)


@router.post("/draftings/{drafting_id}/cancel")
def cancel(session: SessionDep, actor: ActorDep, drafting_id: str) -> Response:
    service.cancel(session, actor, drafting_id)
    return RedirectResponse(f"/draftings/{drafting_id}", 303)


@router.post("/draftings/{drafting_id}/resume")
def resume(session: SessionDep, actor: ActorDep, drafting_id: str) -> Response:
    service.resume(session, actor, drafting_id)
    return RedirectResponse(f"/draftings/{drafting_id}", 303)


@router.post("/draftings/{drafting_id}/drafts")
def review(session: SessionDep, actor: ActorDep, drafting_id: str, values: FormValues) -> Response:
    """Approve (with what was edited), reject, or open one draft again."""
    form = filled(ReviewForm, values)
    before = service.review(
        session, actor, drafting_id, draft_id=form.draft_id, state=form.state, question=form.question,
        answer=form.answer,
    )  # fmt: skip
    return RedirectResponse(f"/draftings/{drafting_id}?state={form.shown}#d-{before.id + 1}", 303)


@router.post("/draftings/{drafting_id}/documents")
def approve_document(session: SessionDep, actor: ActorDep, drafting_id: str, values: FormValues) -> Response:
    number = service.approve_document(session, actor, drafting_id, str(values.get("document", "")))
    response = RedirectResponse(f"/draftings/{drafting_id}", 303)
    flash(response, ngettext("%(n)s draft approved.", "%(n)s drafts approved.", number))
    return response


@router.post("/draftings/{drafting_id}/finish")
def finish(session: SessionDep, actor: ActorDep, drafting_id: str) -> Response:
    file = service.finish(session, actor, drafting_id)
    response = RedirectResponse(f"/projects/{file.project_id}/data", 303)
    flash(response, _("The approved drafts are a file now."), _("It is being read."))
    return response
