"""The rows table of the working set and of a version: a page of it, and what changed while an answer is being made."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import RedirectResponse, Response
from sqlalchemy.orm import Session

from app.accounts.access import ActorDep
from app.accounts.service import Actor
from app.core.errors import NotFound
from app.core.templates import render
from app.core.web import SessionDep
from app.datasets import plans, row_changes, service, versions
from app.datasets.browsing import drawing
from app.datasets.browsing import table as tables
from app.datasets.browsing.opening import frozen_set, working_set
from app.datasets.browsing.questions import Question, question_of
from app.datasets.browsing.sets import RowSet
from app.datasets.models import CleaningPlan
from app.projects import service as projects

router = APIRouter()
Page = Annotated[int, Query(ge=1, le=1_000_000)]
Columns = Annotated[list[str], Query(max_length=20)]
NOBODY: list[str] = []


def working(session: Session, actor: Actor, project_id: str, *, need: str = "viewer") -> RowSet | None:
    """The project's working set, by its gate; None before there is one."""
    projects.get(session, actor, project_id, need=need)
    return _working(session, project_id, plans.find(session, project_id))


def _working(session: Session, project_id: str, plan: CleaningPlan | None) -> RowSet | None:
    return working_set(plan, service.names_of_files(session, project_id))


def table_context(
    session: Session, plan: CleaningPlan | None, rows: RowSet | None, question: Question, page: int,
    columns: list[str], base_url: str, *, may_edit: bool = False, is_brief: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """What the fragment `_table.html` shows; `rows` None is an empty table. `plan` is None for a frozen version."""
    if rows is None:
        return {"table": tables.Table(question=question, base_url=base_url)}
    stamp, edits = stamp_of(session, plan, question)
    made = tables.table_of(rows, question, page, columns, base_url, stamp=stamp, edits=edits, is_brief=is_brief)
    found = row_changes.overlay(session, plan, [row.key for row in made.rows if row.key])
    shown = [
        replace(row, edit=found[row.key], cells=tables.edited_cells(row.cells, found[row.key]))
        if row.key in found
        else row
        for row in made.rows
    ]
    made = replace(made, rows=shown, is_pending=row_changes.is_pending(plan))
    if not made.rows_in_set:
        return {"table": made}
    fixed = drawing.fixed_of(made)
    can_tick = may_edit and plan is not None and made.meta is not None
    body = drawing.rows_html(made, fixed.heads, can_tick=can_tick)
    return {"table": made, "head_html": fixed.head_html, "tools_html": fixed.tools_html, "rows_html": body}


def stamp_of(session: Session, plan: CleaningPlan | None, question: Question) -> tuple[str, Path | None]:
    """(the part of an answer's name that edits change, the file of the edits).

    Only answers about edits are made again with every edit: a search stays, so that rows do not slip away while a
    person works through them.
    """
    if question.is_plain or plan is None:
        return "", None
    is_about_edits = bool(question.tag or question.state)
    return (str(plan.edits_revision) if is_about_edits else ""), row_changes.layer_path(session, plan)


def _values(request: Request) -> dict[str, str]:
    return {name: value.strip() for name, value in request.query_params.items()}


@router.get("/projects/{project_id}/rows")
def rows_page(
    request: Request, session: SessionDep, actor: ActorDep, project_id: str, page: Page = 1, col: Columns = NOBODY,
    row: Annotated[int, Query(ge=0, le=2**40)] = 0,
) -> Response:  # fmt: skip
    """The working set. `row` goes to that row's own page."""
    if row:
        return RedirectResponse(f"/projects/{project_id}/rows/{row}", 303)
    context = _working_context(request, session, actor, project_id, page, col)
    return render(request, "datasets/rows/page.html", **context)


@router.get("/projects/{project_id}/rows/live")
def rows_live(
    request: Request, session: SessionDep, actor: ActorDep, project_id: str, page: Page = 1, col: Columns = NOBODY,
    brief: bool = False,
) -> Response:  # fmt: skip
    """The table again, asked for while an index or an answer is being made."""
    context = _working_context(request, session, actor, project_id, page, col, brief)
    return render(request, "datasets/rows/_table.html", **context)


def _working_context(
    request: Request, session: Session, actor: Actor, project_id: str, page: int, col: list[str], is_brief: bool = False
) -> dict[str, Any]:
    project = projects.get(session, actor, project_id)
    plan = plans.find(session, project_id)
    rows, base_url = _working(session, project_id, plan), f"/projects/{project_id}/rows"
    may_edit = actor.may(project.workspace_id, "editor")
    context = table_context(
        session, plan, rows, question_of(_values(request)), page, col, base_url, may_edit=may_edit, is_brief=is_brief
    )
    return {"project": project, "stage": "data", "version": None, "may_edit": may_edit, **context}


@router.get("/versions/{version_id}/rows")
def version_rows(
    request: Request, session: SessionDep, actor: ActorDep, version_id: str, page: Page = 1, col: Columns = NOBODY,
    row: Annotated[int, Query(ge=0, le=2**40)] = 0,
) -> Response:  # fmt: skip
    """The rows of a frozen version."""
    if row:
        return RedirectResponse(f"/versions/{version_id}/rows/{row}", 303)
    context = _version_context(request, session, actor, version_id, page, col)
    return render(request, "datasets/rows/page.html", **context)


@router.get("/versions/{version_id}/rows/live")
def version_rows_live(
    request: Request, session: SessionDep, actor: ActorDep, version_id: str, page: Page = 1, col: Columns = NOBODY,
    brief: bool = False,
) -> Response:  # fmt: skip
    """The table of a version again."""
    context = _version_context(request, session, actor, version_id, page, col, brief)
    return render(request, "datasets/rows/_table.html", **context)


def _version_context(
    request: Request, session: Session, actor: Actor, version_id: str, page: int, col: list[str], is_brief: bool = False
) -> dict[str, Any]:
    version = versions.get(session, actor, version_id)
    project = projects.get(session, actor, version.project_id)
    if version.state != "succeeded":
        raise NotFound
    rows = frozen_set(version, versions.folder(version))
    question = question_of(_values(request))
    base_url = f"/versions/{version_id}/rows"
    context = table_context(session, None, rows, question, page, col, base_url, is_brief=is_brief)
    return {"project": project, "stage": "clean", "version": version, "may_edit": False, **context}
