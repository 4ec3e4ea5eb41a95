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
from app.datasets.preparing import Plan
from app.datasets.statistics import Statistics
from app.datasets.tables import parts
from app.projects import service as projects

router = APIRouter()


@router.get("/versions/{version_id}")
def version_page(
    request: Request, session: SessionDep, actor: ActorDep, version_id: str,
    page: Annotated[int, Query(ge=1, le=1_000_000)] = 1, q: Annotated[str, Query(max_length=200)] = "",
) -> Response:  # fmt: skip
    version = versions.get(session, actor, version_id)
    project = projects.get(session, actor, version.project_id)
    is_done = version.state == "succeeded"
    rows, missing = shown.Rows(), ""
    if is_done:
        try:
            versions.folder(version)
        except Unavailable as error:
            is_done, missing = False, error.sentence
    if is_done:
        statistics = Statistics.model_validate(version.statistics)
        rows = shown.example_rows(parts(versions.folder(version), "data-"), statistics, page, q.strip())
    context: dict[str, Any] = {
        "project": project,
        "stage": "clean",
        "version": version,
        "rows": rows,
        "base_url": f"/versions/{version_id}",
        "manifest": versions.manifest_of(version) if is_done else {},
        "facts": shown.plan_facts(Plan.model_validate(version.plan)),
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
    session: SessionDep, actor: ActorDep, version_id: str, format: Literal["jsonl", "csv", "spreadsheet"] = "jsonl"
) -> Response:
    """All rows. The files are immutable, so nothing of the session is needed while they stream."""
    version = versions.get(session, actor, version_id)
    versions.folder(version)
    headers = _attachment(f"version-{version.number}.{'jsonl' if format == 'jsonl' else 'csv'}")
    if format == "jsonl":
        return StreamingResponse(versions.jsonl(version), media_type="application/x-ndjson", headers=headers)
    body = versions.csv_rows(version, is_spreadsheet=format == "spreadsheet")
    return StreamingResponse(body, media_type="text/csv; charset=utf-8", headers=headers)
