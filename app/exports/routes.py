"""The export page of a project: what to take away, what is being made, and the finished files."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, RedirectResponse, Response, StreamingResponse
from sqlalchemy.orm import Session

from app.accounts.access import ActorDep
from app.accounts.service import Actor
from app.contracts.export import Check, ExportReport
from app.core.db import reading
from app.core.errors import Invalid
from app.core.flash import flash
from app.core.forms import FormValues, checked
from app.core.hub import endpoint
from app.core.templates import gettext as _
from app.core.templates import render
from app.core.web import SessionDep
from app.core.work import LIVE
from app.exports import packing, service
from app.exports.forms import ExportForm
from app.exports.models import Export
from app.inference import targets
from app.projects import service as projects

router = APIRouter()


@router.get("/projects/{project_id}/exports")
def page(request: Request, project_id: str, actor: ActorDep, session: SessionDep, model: str = "") -> Response:
    """The page; `model` is chosen in its form."""
    return _page(request, session, actor, project_id, values={"model": model[:60]})


def _page(
    request: Request,
    session: Session,
    actor: Actor,
    project_id: str,
    *,
    values: dict[str, Any],
    errors: dict[str, str] | None = None,
) -> Response:
    choices = [one for one in targets.choices(session, actor, project_id) if one.group != "bases"]
    return render(
        request,
        "exports/page.html",
        status=422 if errors else 200,
        stage="deploy",
        choices=[(one.ref, one.name) for one in choices],
        values={name: value for name, value in values.items() if name != "token"},
        errors=errors or {},
        hub=endpoint() or "https://huggingface.co",
        **_shown(session, actor, project_id),
    )


@router.get("/projects/{project_id}/exports/live")
def live(request: Request, project_id: str, actor: ActorDep, session: SessionDep) -> Response:
    """The list, which refreshes itself while something is being made."""
    return render(request, "exports/_list.html", **_shown(session, actor, project_id))


def _shown(session: Session, actor: Actor, project_id: str) -> dict[str, Any]:
    project = projects.get(session, actor, project_id)
    rows = service.listing(session, actor, project_id)
    return {
        "project": project,
        "exports": [(row, _report(row)) for row in rows],
        "is_live": any(row.state in LIVE for row in rows),
        "may_edit": actor.may(project.workspace_id, "editor"),
        "kinds": KINDS,
        "told": told,
    }


def _report(row: Export) -> ExportReport | None:
    return ExportReport.model_validate(row.report) if row.report else None


KINDS = {
    "merged": ("Whole folder", "For transformers and vLLM: everything merged into one model."),
    "adapter": ("Adapter only", "Small. For PEFT, beside the base model it was trained on."),
    "gguf_q8_0": ("GGUF, q8_0", "For Ollama and llama.cpp: half the size of f16, almost the same answers."),
    "gguf_f16": ("GGUF, f16", "For Ollama and llama.cpp: 16 bits a weight."),
    "gguf_q4_0": (
        "GGUF, q4_0",
        "For Ollama and llama.cpp: about a third of f16, for small machines. Answers differ more.",
    ),
}


def told(check: Check) -> str:
    """What a check found, in one sentence."""
    if not check.prompts:
        return _("%(tool)s: %(n)s tensors read back and equal", tool=check.tool, n=f"{check.tensors:,}")
    return _(
        "%(tool)s: %(same)s of %(all)s answers the same as your model’s, %(tokens)s of %(count)s tokens",
        tool=check.tool,
        same=check.same_prompts,
        all=check.prompts,
        tokens=f"{check.same_tokens:,}",
        count=f"{check.tokens:,}",
    )


@router.post("/projects/{project_id}/exports")
def export(request: Request, project_id: str, actor: ActorDep, session: SessionDep, values: FormValues) -> Response:
    """Queue one."""
    projects.get(session, actor, project_id, need="editor")
    form, errors = checked(ExportForm, values)
    if form is not None:
        try:
            service.export(
                session, actor, project_id,
                ref=form.model, kind=form.kind, repository=form.repository, token=form.token,
            )  # fmt: skip
            return RedirectResponse(f"/projects/{project_id}/exports", 303)
        except Invalid as error:
            errors = error.fields or {"": error.sentence}
    return _page(request, session, actor, project_id, values=values, errors=errors)


@router.post("/exports/{export_id}/cancel")
def cancel(export_id: str, actor: ActorDep, session: SessionDep) -> Response:
    return _back(service.request_cancel(session, actor, export_id))


@router.post("/exports/{export_id}/retry")
def retry(export_id: str, actor: ActorDep, session: SessionDep) -> Response:
    return _back(service.retry(session, actor, export_id))


@router.post("/exports/{export_id}/delete")
def delete(export_id: str, actor: ActorDep, session: SessionDep) -> Response:
    row = service.delete(session, actor, export_id)
    response = _back(row)
    flash(response, _("Deleted the files of “%(name)s”", name=row.model_name), _("The model itself is still here."))
    return response


def _back(row: Export) -> Response:
    return RedirectResponse(f"/projects/{row.project_id}/exports", 303)


@router.get("/exports/{export_id}/files/{name}")
def file(export_id: str, name: str, actor: ActorDep) -> Response:
    """One file; a broken download goes on where it broke."""
    with reading() as session:
        path = service.file_of(session, actor, export_id, name)
    return FileResponse(path, filename=path.name, media_type="application/octet-stream")


@router.get("/exports/{export_id}/download")
def download(export_id: str, actor: ActorDep) -> Response:
    """All files as one ZIP."""
    with reading() as session:
        row = service.finished(session, actor, export_id)
        names = [str(one["name"]) for one in row.files]
        folder, top = service.folder_of(row), f"{service.slug(row.model_name)}-{row.kind}"
    headers = {"Content-Disposition": f'attachment; filename="{top}.zip"', "Cache-Control": "no-store"}
    return StreamingResponse(packing.zipped(folder, names, top), media_type="application/zip", headers=headers)
