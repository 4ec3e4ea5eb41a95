"""Statistics of the rows by the tokenizer of the chosen base model, made in the background and kept beside the set."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from sqlalchemy.orm import Session

from app.accounts.access import ActorDep
from app.accounts.service import Actor
from app.core.templates import render
from app.core.web import SessionDep
from app.datasets import versions
from app.datasets.browsing import background, counting, model_view
from app.datasets.browsing import pages as table_pages
from app.datasets.browsing.opening import frozen_set
from app.datasets.browsing.sets import RowSet
from app.datasets.browsing.table import word_of
from app.projects import service as projects

router = APIRouter()


def _context(session: Session, actor: Actor, project_id: str, rows: RowSet | None, rows_url: str) -> dict[str, Any]:
    project = projects.get(session, actor, project_id)
    model = model_view.model_of(session, actor, project_id)
    has_rows = rows is not None and rows.rows > 0
    meta = background.ensure_index(rows) if rows is not None and has_rows else None
    report = background.ensure_counts(rows, model) if rows is not None and has_rows and model else None
    is_partial = report is not None and report.counted < report.rows
    progress = counting.progress_of(rows, model) if rows is not None and model and has_rows else None
    top = max(report.lengths.counts, default=0) if report else 0
    return {
        "project": project, "model": model, "meta": meta, "report": report, "has_rows": has_rows, "rows_url": rows_url,
        "top": top, "word_of": word_of, "progress": progress, "is_partial": is_partial,
        "is_working": has_rows and (meta is None or (model is not None and (report is None or is_partial))),
    }  # fmt: skip


@router.get("/projects/{project_id}/statistics")
def working_statistics(request: Request, session: SessionDep, actor: ActorDep, project_id: str) -> Response:
    """Of the working set."""
    rows = table_pages.working(session, actor, project_id)
    context = _context(session, actor, project_id, rows, f"/projects/{project_id}/rows")
    return render(request, "datasets/rows/statistics.html", **context, stage="data", version=None)


@router.get("/versions/{version_id}/statistics")
def version_statistics(request: Request, session: SessionDep, actor: ActorDep, version_id: str) -> Response:
    """Of a frozen version."""
    version = versions.get(session, actor, version_id)
    rows = frozen_set(version, versions.folder(version))
    context = _context(session, actor, version.project_id, rows, f"/versions/{version_id}/rows")
    return render(request, "datasets/rows/statistics.html", **context, stage="clean", version=version)
