"""The page of one row: as conversation, as the model sees it, as it was in its file; edited in place."""

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from sqlalchemy.orm import Session

from app.accounts.access import ActorDep
from app.accounts.service import Actor
from app.core.errors import Gone
from app.core.languages import LANGUAGES
from app.core.templates import render
from app.core.web import SessionDep
from app.datasets import plans, row_changes, shown, versions
from app.datasets.browsing import background, columns, index, model_view, row, scanning
from app.datasets.browsing import pages as table_pages
from app.datasets.browsing.opening import frozen_set
from app.datasets.browsing.questions import Question, question_of
from app.datasets.browsing.sets import RowSet
from app.datasets.browsing.table import SPLIT_WORDS
from app.datasets.cleaning import CODES
from app.datasets.plan import Plan
from app.projects import service as projects

router = APIRouter()
View = Annotated[Literal["conversation", "model", "raw"], Query()]


def number_of(text: str) -> int:
    """The number of a row in an address; 0 where there is none."""
    return int(text) if text.isdecimal() and len(text) < 13 else 0


def beside(
    rows: RowSet, question: Question, number: int, stamp: str = "", edits: Path | None = None
) -> tuple[int | None, int | None]:
    """The rows before and after this one, in the order and with the filters of the table it was opened from."""
    if not question.is_plain:
        folder, state = background.ensure_answer(rows, question, stamp, edits)
        found = scanning.every_number(folder) if state.is_done else np.zeros(0, np.uint32)
        at = np.flatnonzero(found == number - 1).tolist()
        if at:
            before = int(found[at[0] - 1]) + 1 if at[0] else None
            return before, int(found[at[0] + 1]) + 1 if at[0] + 1 < len(found) else None
    return (number - 1 if number > 1 else None), (number + 1 if number < rows.rows else None)


def context_of(
    request: Request, session: Session, actor: Actor, project_id: str, rows: RowSet | None, number: int, plan: Plan,
    view: str, base_url: str,
) -> dict[str, Any]:  # fmt: skip
    """What the page of a row shows. Raises Gone when there is no such row (any more)."""
    if rows is None or not 1 <= number <= rows.rows:
        raise Gone("This row is not there any more: the rows were prepared again since. Open the table to find it.")
    found = row.row_at(rows, number)
    current = None if rows.is_frozen else plans.get(session, actor, project_id)
    edit = row_changes.overlay(session, current, [found.key]).get(found.key) if found.key else None
    if edit is not None:
        found = row.row_at(rows, number, edit)
    question = question_of({k: v.strip() for k, v in request.query_params.items()})
    before, after = beside(rows, question, number, *table_pages.stamp_of(session, current, question))
    source = row.source_of(found.prepared, plan)
    model = model_view.model_of(session, actor, project_id)
    seen = None
    if view == "model" and model is not None:
        seen = model_view.view_of(model_view.reader_of(model), model_view.example_of(found.example), model.limit_tokens)
    copies, copy_count = row.copies_of(rows, found.prepared["_rid"], plan)
    return {
        "row": found, "source": source, "view": view, "model": model, "seen": seen, "question": question,
        "before": before, "after": after, "base_url": base_url, "query": question.url(),
        "steps_done": row.steps_on(source, plan), "copies": copies, "copy_count": copy_count,
        "diff": shown.diff_parts, "visible": shown.visible, "codes": CODES,
        "language": _language(rows, number), "split": SPLIT_WORDS.get(found.prepared.get("split") or "", ""),
        "seen_hash": row_changes.seen_hash(found.example), "errors": {}, "theirs": None,
        "changes": row_changes.of_row(session, project_id, found.key) if found.key else [],
    }  # fmt: skip


def _language(rows: RowSet, number: int) -> str:
    meta = index.meta_of(rows)
    if meta is None:
        return ""
    value = columns.values_at(index.folder_of(rows), "language", [number - 1])[0]
    code = next((choice.value for choice in meta.languages if choice.number == value), "")
    return LANGUAGES.get(code, code)


@router.get("/projects/{project_id}/rows/{number}")
def working_row(
    request: Request, session: SessionDep, actor: ActorDep, project_id: str, number: str, view: View = "conversation",
    edit: bool = False,
) -> Response:  # fmt: skip
    """A row of the working set."""
    context = working_context(request, session, actor, project_id, number_of(number), view)
    return render(request, "datasets/rows/row.html", **context, is_editing=edit and context["may_edit"])


def working_context(
    request: Request, session: Session, actor: Actor, project_id: str, number: int, view: str
) -> dict[str, Any]:
    """What the page of a row of the working set shows."""
    project = projects.get(session, actor, project_id)
    rows = table_pages.working(session, actor, project_id)
    plan = plans.planned(session, project_id)
    base_url = f"/projects/{project_id}/rows"
    context = context_of(request, session, actor, project_id, rows, number, plan, view, base_url)
    may_edit = actor.may(project.workspace_id, "editor")
    return {"project": project, "stage": "data", "version": None, "may_edit": may_edit, **context}


@router.get("/versions/{version_id}/rows/{number}")
def version_row(
    request: Request, session: SessionDep, actor: ActorDep, version_id: str, number: str, view: View = "conversation"
) -> Response:
    """A row of a frozen version."""
    version = versions.get(session, actor, version_id)
    project = projects.get(session, actor, version.project_id)
    rows = frozen_set(version, versions.folder(version))
    plan = Plan.model_validate(version.plan)
    base_url = f"/versions/{version_id}/rows"
    context = context_of(request, session, actor, project.id, rows, number_of(number), plan, view, base_url)
    context |= {"project": project, "stage": "clean", "version": version, "may_edit": False, "is_editing": False}
    return render(request, "datasets/rows/row.html", **context)
