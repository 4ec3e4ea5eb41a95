"""One frozen version: what is in it, how it was made, its rows, its downloads."""

from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Query, Request
from fastapi.responses import Response, StreamingResponse

from app.accounts.access import ActorDep
from app.core.errors import Unavailable
from app.core.templates import render
from app.core.web import SessionDep
from app.datasets import shown, versions
from app.datasets.browsing import pages as rows_pages
from app.datasets.browsing.opening import frozen_set
from app.datasets.browsing.questions import Question
from app.datasets.combining import downloads, made
from app.datasets.plan import Plan
from app.projects import service as projects

router = APIRouter()


@router.get("/versions/{version_id}")
def version_page(
    request: Request, session: SessionDep, actor: ActorDep, version_id: str,
    q: Annotated[str, Query(max_length=200)] = "",
) -> Response:  # fmt: skip
    """The version with its first rows; all of them have a page of their own."""
    version = versions.get(session, actor, version_id)
    project = projects.get(session, actor, version.project_id)
    is_done = version.state == "succeeded"
    table, missing = rows_pages.table_context(session, None, None, Question(), 1, [], ""), ""
    if is_done:
        try:
            rows = frozen_set(version, versions.folder(version))
        except Unavailable as error:
            is_done, missing = False, error.sentence
        else:
            question, base_url = Question(q=q.strip()), f"/versions/{version_id}/rows"
            table = rows_pages.table_context(session, None, rows, question, 1, [], base_url, is_brief=True)
    context: dict[str, Any] = {
        "project": project,
        "stage": "clean",
        "version": version,
        **table,
        "may_edit": False,
        "manifest": versions.manifest_of(version) if is_done else {},
        "facts": made.facts(session, version) or shown.plan_facts(Plan.model_validate(version.plan)),
        "parents": made.parents(session, version),
        "children": made.children(session, version),
        "others": made.others(session, actor, version) if is_done else [],
        "may_combine": actor.may(project.workspace_id, "editor"),
        "is_live": version.state in shown.LIVE,
        "missing": missing,
    }
    return render(request, "datasets/version.html", **context)


@router.get("/versions/{version_id}/live")
def version_live(request: Request, session: SessionDep, actor: ActorDep, version_id: str) -> Response:
    version = versions.get(session, actor, version_id)
    if version.state not in shown.LIVE:
        return Response(status_code=204, headers={"HX-Refresh": "true"})
    return render(request, "datasets/_version_state.html", version=version, is_live=True)


def _attachment(name: str) -> dict[str, str]:
    return {"Content-Disposition": f'attachment; filename="{name}"', "X-Content-Type-Options": "nosniff"}


@router.get("/versions/{version_id}/manifest.json")
def manifest(session: SessionDep, actor: ActorDep, version_id: str) -> Response:
    version = versions.get(session, actor, version_id)
    body = orjson.dumps(versions.manifest_of(version), option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS)
    return Response(body, media_type="application/json", headers=_attachment(f"version-{version.number}-manifest.json"))


@router.get("/versions/{version_id}/download")
def download(
    session: SessionDep,
    actor: ActorDep,
    version_id: str,
    format: Literal["jsonl", "csv", "spreadsheet", "parquet"] = "jsonl",
) -> Response:
    """All rows. The files are immutable, so nothing of the session is needed while they stream."""
    version = versions.get(session, actor, version_id)
    versions.folder(version)
    name = f"version-{version.number}.{'csv' if format == 'spreadsheet' else format}"
    match format:
        case "jsonl":
            body, kind = downloads.jsonl(version), "application/x-ndjson"
        case "parquet":
            body, kind = downloads.parquet(version), "application/vnd.apache.parquet"
        case _:
            body, kind = downloads.csv_rows(version, is_spreadsheet=format == "spreadsheet"), "text/csv; charset=utf-8"
    return StreamingResponse(body, media_type=kind, headers=_attachment(name))
