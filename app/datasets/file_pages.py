"""One file: how it is read, what was found in it, what its columns mean, its rows."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import RedirectResponse, Response
from pydantic import ValidationError
from sqlalchemy.orm import Session

from app.accounts.access import ActorDep
from app.accounts.service import Actor
from app.core.errors import Invalid, NotFound
from app.core.flash import flash
from app.core.forms import FormValues, checked, filled
from app.core.templates import gettext as _
from app.core.templates import render
from app.core.web import SessionDep
from app.datasets import ledger, service, shown
from app.datasets.detect import Detection
from app.datasets.findings import REASONS
from app.datasets.forms import MappingForm, ReadingForm, RepairForm, listed
from app.datasets.mapping import REPAIRS, Mapping, column
from app.datasets.models import SourceFile
from app.datasets.options import ReadOptions
from app.datasets.tables import parts
from app.datasets.turns import role_of, turn_parts, turns_of
from app.projects import service as projects

router = APIRouter()
SPEAKER_ROWS = 200


def _speakers(file: SourceFile, mapping: Mapping) -> list[tuple[str, str]]:
    """(speaker as written, role or empty) of the first rows."""
    names: dict[str, None] = {}
    for _row, values, _mapped in service.preview(file, mapping, SPEAKER_ROWS):
        for turn in turns_of(values.get(mapping.messages), are_texts_turns=True) or []:
            if found := turn_parts(turn):
                names.setdefault(found[0])
    return [(name, role_of(name, mapping.roles) or "") for name in list(names)[:50]]


def _context(
    session: Session, actor: Actor, file_id: str, *, mapping: Mapping | None = None, page: int = 1, term: str = ""
) -> dict[str, Any]:
    file = service.get_file(session, actor, file_id)
    project = projects.get(session, actor, file.project_id)
    mapping = mapping or Mapping.model_validate(file.mapping)
    columns = list(file.detected.get("columns", {}))
    facts = file.detected.get("facts", {})
    paths = parts(service.rows_dir(file)) if file.rows_key else []
    return {
        "project": project,
        "stage": "data",
        "file": file,
        "is_live": file.state in shown.LIVE,
        "findings": (cards := shown.finding_cards(service.findings_of(session, file), file)),
        "settled": shown.settled(cards, file),
        "detections": [Detection.model_validate(d) for d in file.detected.get("detections", [])],
        "sniffed": file.detected.get("sniffed", {}),
        "facts": facts,
        "sheet_options": [(name, name) for name in facts.get("sheets", [])],
        "speaker_options": [(name, name) for name in facts.get("speakers", [])],
        "columns": columns,
        "values": shown.mapping_values(mapping, columns),
        "speakers": _speakers(file, mapping) if mapping.messages else [],
        "preview": service.preview(file, mapping),
        "fit": service.fit_of(file, mapping),
        "repairs": REPAIRS,
        "repair_words": shown.REPAIR_WORDS,
        "reasons": REASONS,
        "rows": shown.source_rows(paths, file, page, term),
        "base_url": f"/files/{file_id}",
        "may_edit": actor.may(project.workspace_id, "editor"),
        "errors": {},
    }


@router.get("/files/{file_id}")
def file_page(
    request: Request, session: SessionDep, actor: ActorDep, file_id: str,
    page: Annotated[int, Query(ge=1, le=1_000_000)] = 1, q: Annotated[str, Query(max_length=200)] = "",
) -> Response:  # fmt: skip
    return render(request, "datasets/file.html", **_context(session, actor, file_id, page=page, term=q.strip()))


@router.get("/files/{file_id}/live")
def file_live(request: Request, session: SessionDep, actor: ActorDep, file_id: str) -> Response:
    """The state of a file while it is read; the whole page once it is done."""
    file = service.get_file(session, actor, file_id)
    if file.state not in shown.LIVE:
        return Response(status_code=204, headers={"HX-Refresh": "true"})
    return render(request, "datasets/_file_state.html", file=file, is_live=True)


def _mapping_of(values: dict[str, Any]) -> tuple[Mapping | None, dict[str, str]]:
    form, errors = checked(MappingForm, listed(values, "speaker", "role", "repair", "repair_code"))
    if form is None:
        return None, errors
    try:
        return form.mapping(), {}
    except ValidationError:
        return None, {"": _("This mapping does not fit. Choose a column for the question and one for the answer.")}


def _first_guess(file: SourceFile) -> Mapping | None:
    """Where a question and its answer were just chosen and no columns yet: the first two, to be corrected."""
    columns = list(file.detected.get("columns", {}))
    return Mapping(shape="pair", prompt=column(columns[0]), answer=column(columns[1])) if len(columns) > 1 else None


@router.post("/files/{file_id}/mapping/preview")
def mapping_preview(
    request: Request, session: SessionDep, actor: ActorDep, file_id: str, values: FormValues
) -> Response:
    """What the first rows would become: changes nothing."""
    mapping, errors = _mapping_of(values)
    if mapping is not None and mapping.shape == "pair" and not (mapping.prompt or mapping.answer):
        mapping = _first_guess(service.get_file(session, actor, file_id)) or mapping
    context = _context(session, actor, file_id, mapping=mapping) | {"errors": errors}
    is_fragment = "hx-request" in request.headers
    return render(request, "datasets/_mapping.html" if is_fragment else "datasets/file.html", **context)


@router.post("/files/{file_id}/mapping")
def set_mapping(request: Request, session: SessionDep, actor: ActorDep, file_id: str, values: FormValues) -> Response:
    mapping, errors = _mapping_of(values)
    if mapping is not None:
        try:
            file = service.set_mapping(session, actor, file_id, mapping)
        except Invalid as error:
            errors = error.fields
        else:
            response = RedirectResponse(f"/projects/{file.project_id}/data", 303)
            flash(response, _("Mapping saved."), _("The rows are being prepared."))
            return response
    context = _context(session, actor, file_id, mapping=mapping) | {"errors": errors}
    headers = {"HX-Push-Url": f"/files/{file_id}"}
    return render(request, "datasets/file.html", status=422, headers=headers, **context)


@router.post("/files/{file_id}/repairs")
def set_repair(session: SessionDep, actor: ActorDep, file_id: str, values: FormValues) -> Response:
    """A one-click fix for the rows of one check (`code`)."""
    form = filled(RepairForm, values)
    service.set_repair(session, actor, file_id, form.code, form.repair)
    return RedirectResponse(f"/files/{file_id}#mapping", 303)


@router.post("/files/{file_id}/detections")
def use_detection(session: SessionDep, actor: ActorDep, file_id: str, values: FormValues) -> Response:
    """Take one of the detected readings (`format`) as it is."""
    file = service.get_file(session, actor, file_id, need="editor")
    wanted = values.get("format")
    found = next((d for d in file.detected.get("detections", []) if d["format"] == wanted), None)
    if found is None:
        raise Invalid(_("This reading was not found in the file. Choose one of those shown."))
    if wanted == "tree":
        service.set_reading(session, actor, file_id, {"threads": "join"})
    else:
        service.set_mapping(session, actor, file_id, Mapping.model_validate(found["mapping"]))
    return RedirectResponse(f"/files/{file_id}", 303)


@router.post("/files/{file_id}/reading")
def set_reading(session: SessionDep, actor: ActorDep, file_id: str, values: FormValues) -> Response:
    """A fix, or a correction of what was detected: the file is read again."""
    form = filled(ReadingForm, values)
    try:
        service.set_reading(session, actor, file_id, form.changes(), form.password)
    except ValidationError as error:
        raise Invalid(_("This way of reading does not exist. Choose one of the options.")) from error
    return RedirectResponse(f"/files/{file_id}", 303)


@router.post("/files/{file_id}/retry")
def retry(session: SessionDep, actor: ActorDep, file_id: str) -> Response:
    service.retry_import(session, actor, file_id)
    return RedirectResponse(f"/files/{file_id}", 303)


@router.post("/files/{file_id}/cancel")
def cancel(session: SessionDep, actor: ActorDep, file_id: str) -> Response:
    file = service.cancel_import(session, actor, file_id)
    return RedirectResponse(f"/projects/{file.project_id}/data", 303)


@router.post("/files/{file_id}/delete")
def delete(session: SessionDep, actor: ActorDep, file_id: str) -> Response:
    file = service.delete_file(session, actor, file_id)
    response = RedirectResponse(f"/projects/{file.project_id}/data", 303)
    flash(response, _("%(name)s was left out.", name=file.filename), undo_url=f"/files/{file_id}/restore")
    return response


@router.post("/files/{file_id}/restore")
def restore(session: SessionDep, actor: ActorDep, file_id: str) -> Response:
    file = service.restore_file(session, actor, file_id)
    return RedirectResponse(f"/projects/{file.project_id}/data", 303)


@router.get("/files/{file_id}/findings")
def findings(
    request: Request, session: SessionDep, actor: ActorDep, file_id: str,
    code: Annotated[str, Query(max_length=40)] = "", page: Annotated[int, Query(ge=1, le=1_000_000)] = 1,
) -> Response:  # fmt: skip
    """Every line of one reason code, with its first 4 KiB as they were."""
    file = service.get_file(session, actor, file_id)
    if code not in REASONS:
        raise NotFound
    project = projects.get(session, actor, file.project_id)
    path = service.rows_dir(file) / "findings.parquet"
    lines, total = ledger.lines(path, code, (page - 1) * ledger.PER_PAGE) if file.rows_key else ([], 0)
    return render(
        request, "datasets/findings.html", project=project, stage="data", file=file, reason=REASONS[code], code=code,
        lines=lines, total=total, page=page, per_page=ledger.PER_PAGE,
        may_edit=actor.may(project.workspace_id, "editor"),
        current=ReadOptions.model_validate(file.options).model_dump(),
    )  # fmt: skip
