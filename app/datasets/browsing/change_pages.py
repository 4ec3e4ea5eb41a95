"""Changing rows by hand: one row, the ticked ones, or all rows of a filter; their history, and taking them back."""

from types import SimpleNamespace
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request
from fastapi.responses import RedirectResponse, Response
from pydantic import Field
from sqlalchemy.orm import Session

from app.accounts.access import ActorDep
from app.accounts.service import Actor
from app.contracts.conversation import Role
from app.core.errors import Conflict, Gone, Invalid
from app.core.flash import flash
from app.core.forms import FormBase, FormValues, checked
from app.core.templates import gettext as _
from app.core.templates import ngettext, render
from app.core.web import SessionDep
from app.datasets import plans, row_changes
from app.datasets.browsing import background, columns, index, row, row_pages, scanning
from app.datasets.browsing import pages as table_pages
from app.datasets.browsing.questions import Question, question_of
from app.datasets.browsing.sets import RowSet
from app.datasets.forms import listed
from app.datasets.row_changes import Kind
from app.projects import service as projects

router = APIRouter()


class ChangeForm(FormBase):
    """What to do with which rows. `scope`: one (by number and key), ticked (by keys) or all of the filter."""

    kind: Kind
    scope: str = Field("ticked", pattern="^(one|ticked|all)$")
    value: str = Field("", max_length=200)
    number: int = Field(0, ge=0)
    key: list[int] = Field(default_factory=list, max_length=1000)


class RowForm(FormBase):
    """An edited row. `seen` is what the person saw; a turn without a role is left out."""

    model_config = FormBase.model_config | {"str_strip_whitespace": False}

    key: int
    seen: str = Field(max_length=64)
    role: list[Role | str] = Field(default_factory=list, max_length=500)
    content: list[str] = Field(default_factory=list, max_length=500)
    text: str = Field("", max_length=2_000_000)
    label: str = Field("", max_length=200)


def _set(session: Session, actor: Actor, project_id: str) -> RowSet:
    rows = table_pages.working(session, actor, project_id, need="editor")
    if rows is None:
        raise Conflict(_("There are no rows yet. Bring a file first."))
    return rows


@router.post("/projects/{project_id}/rows/changes")
def change(request: Request, session: SessionDep, actor: ActorDep, project_id: str, values: FormValues) -> Response:
    """Delete, restore, keep out, tag or label rows."""
    rows = _set(session, actor, project_id)
    asked = {name: value for name, value in values.items() if name in ChangeForm.model_fields}
    form, errors = checked(ChangeForm, listed(asked, "key"))
    if form is None:
        raise Invalid(fields=errors)
    value = {"tag": form.value, "label": form.value}
    filters = {name: str(v) for name, v in values.items() if name in Question.model_fields}
    question = question_of(filters)
    if form.scope == "ticked" and not form.key:
        response = RedirectResponse(f"/projects/{project_id}/rows?{question.url()}", 303)
        flash(response, _("No row is ticked."), _("Tick rows first, or choose all rows under Act."), tone="warn")
        return response
    if form.scope == "one":
        found = _one(rows, form)
        place = (found.prepared["_file"], found.prepared["_row"])
        made = row_changes.change_row(
            session, actor, project_id, key=found.key, kind=form.kind, value=value, place=place
        )  # fmt: skip
        url = f"/projects/{project_id}/rows/{form.number}?{question.url()}"
    else:
        keys = (
            np.array(form.key, np.uint64) if form.scope == "ticked" else _all_keys(session, rows, project_id, question)
        )
        made = row_changes.change_rows(
            session, actor, project_id, keys=keys, kind=form.kind, value=value, question=question.parts()
        )  # fmt: skip
        url = f"/projects/{project_id}/rows?{question.url()}"
    response = RedirectResponse(url, 303)
    sentence = ngettext("%(n)s row: %(what)s.", "%(n)s rows: %(what)s.", made.rows, what=words_of(made))
    flash(response, sentence, undo_url=f"/projects/{project_id}/rows/changes/{made.id}/undo")
    return response


def words_of(made: Any) -> str:
    """What a change did, in words."""
    return {
        "edit": _("edited"), "delete": _("deleted"), "restore": _("restored"), "exclude": _("kept out of versions"),
        "include": _("taken in again"), "keep": _("kept whatever a step says"),
        "tag": _("tagged “%(tag)s”", tag=made.value.get("tag", "")),
        "untag": _("without the tag “%(tag)s”", tag=made.value.get("tag", "")),
        "label": _("labelled “%(label)s”", label=made.value.get("label", "")),
    }[made.kind]  # fmt: skip


def _one(rows: RowSet, form: ChangeForm) -> row.RowView:
    found = row.row_at(rows, form.number) if 1 <= form.number <= rows.rows else None
    if found is None or found.key not in form.key:
        raise Gone(_("The rows were prepared again since, and this one stands elsewhere. Open the table to find it."))
    return found


def _all_keys(session: Session, rows: RowSet, project_id: str, question: Question) -> np.ndarray:
    """The keys of all rows that fit, not of a page. Raises Conflict while that is still being found out."""
    if background.ensure_index(rows) is None:
        raise Conflict(_("The rows are still being indexed. Try again when the filters are there."))
    keys = columns.load(index.folder_of(rows), "key")
    if question.is_all:
        return np.array(keys)
    stamp, edits = table_pages.stamp_of(session, plans.find(session, project_id), question)
    folder, state = background.ensure_answer(rows, question, stamp, edits)
    if not state.is_done:
        raise Conflict(_("The search is still going on. Try again when all rows have been looked at."))
    return np.array(keys[scanning.every_number(folder)])


def _typed(form: RowForm, current: dict[str, Any]) -> dict[str, Any]:
    """The row as it was typed; what turns carry beside their text stays with them."""
    if current["kind"] == "text":
        text = form.text.replace("\r\n", "\n")
        return {"kind": "text", "messages": [], "text": text, "label": form.label.strip()}
    messages: list[dict[str, Any]] = []
    before = current.get("messages") or []
    for at, (chosen, content) in enumerate(zip(form.role, form.content, strict=False)):
        role = chosen
        if not role and at >= len(before) and content.strip():
            # The new turn has a text but nobody was chosen: whoever is next speaks, so that nothing typed is lost.
            role = "user" if messages and messages[-1]["role"] == "assistant" else "assistant"
        if role:
            kept = before[at] if at < len(before) else {"train": True}
            messages.append({**kept, "role": role, "content": content.replace("\r\n", "\n")})
    return {"kind": "chat", "messages": messages, "text": current.get("text") or "", "label": form.label.strip()}


def _wrong(typed: dict[str, Any]) -> dict[str, str]:
    if typed["kind"] == "text":
        return {} if typed["text"].strip() else {"text": _("A row needs some text. To be rid of it, delete it.")}
    if not any(m["role"] == "assistant" and m["content"].strip() for m in typed["messages"]):
        return {"": _("A conversation needs at least one answer. To be rid of the row, delete it.")}
    return {}


def _edited_again(
    request: Request, session: Session, actor: Actor, project_id: str, number: int, typed: dict[str, Any],
    errors: dict[str, str], theirs: Any,
) -> Response:  # fmt: skip
    context = row_pages.working_context(request, session, actor, project_id, number, "conversation")
    context |= {"is_editing": True, "typed": SimpleNamespace(**typed), "errors": errors, "theirs": theirs}
    # 422 also where somebody was faster: of all errors it is the one whose page is put in the place of the form.
    headers = {"HX-Push-Url": f"/projects/{project_id}/rows/{number}?edit=1"}
    return render(request, "datasets/rows/row.html", status=422, headers=headers, **context)


@router.get("/projects/{project_id}/rows/changes")
def history(
    request: Request, session: SessionDep, actor: ActorDep, project_id: str,
    page: Annotated[int, Query(ge=1, le=100_000)] = 1,
) -> Response:  # fmt: skip
    """Every change by hand: who, when, what, and taking it back."""
    project = projects.get(session, actor, project_id)
    found = row_changes.history(session, actor, project_id, page)
    names = row_changes.names_of(session, found)
    return render(
        request, "datasets/rows/changes.html", project=project, stage="data", page=page, names=names, words_of=words_of,
        changes=found[: row_changes.PER_PAGE], has_more=len(found) > row_changes.PER_PAGE,
        may_edit=actor.may(project.workspace_id, "editor"),
        is_pending=row_changes.is_pending(plans.find(session, project_id)),
    )  # fmt: skip


@router.post("/projects/{project_id}/rows/changes/{change_id}/undo")
def undo(session: SessionDep, actor: ActorDep, project_id: str, change_id: int) -> Response:
    """Take a change back."""
    made = row_changes.undo(session, actor, project_id, change_id)
    response = RedirectResponse(f"/projects/{project_id}/rows", 303)
    what = words_of(made)
    flash(
        response,
        _("Taken back: %(what)s.", what=what),
        undo_url=f"/projects/{project_id}/rows/changes/{change_id}/redo",
    )
    return response


@router.post("/projects/{project_id}/rows/changes/{change_id}/redo")
def redo(session: SessionDep, actor: ActorDep, project_id: str, change_id: int) -> Response:
    """Put a change into force again."""
    row_changes.redo(session, actor, project_id, change_id)
    return RedirectResponse(f"/projects/{project_id}/rows/changes", 303)


@router.post("/projects/{project_id}/rows/prepare")
def prepare(session: SessionDep, actor: ActorDep, project_id: str) -> Response:
    """Prepare the rows again, with the changes by hand in them."""
    projects.get(session, actor, project_id, need="editor")
    plans.change(session, project_id)
    response = RedirectResponse(f"/projects/{project_id}/data", 303)
    flash(response, _("The rows are being prepared with your changes."))
    return response


@router.post("/projects/{project_id}/rows/{number}")
def edit(
    request: Request, session: SessionDep, actor: ActorDep, project_id: str, number: str, values: FormValues
) -> Response:
    """Save an edited row, unless somebody changed it since it was shown."""
    rows = _set(session, actor, project_id)
    form, errors = checked(RowForm, listed(values, "role", "content"))
    if form is None:
        raise Invalid(fields=errors)
    at = row_pages.number_of(number)
    found = _one(rows, ChangeForm(kind="edit", number=at, key=[form.key]))
    if found.part:
        raise Conflict(
            _("This row is a part of a longer one. Undo the step “Too long for the model” to edit the whole text.")
        )
    plan = plans.find(session, project_id)
    current = row.row_at(rows, at, row_changes.overlay(session, plan, [found.key]).get(found.key))
    typed = _typed(form, current.example)
    if row_changes.seen_hash(current.example) != form.seen:
        newest = next(iter(row_changes.of_row(session, project_id, found.key)), None)
        name = row_changes.names_of(session, [newest]).get(newest.created_by or "") if newest else None
        return _edited_again(
            request, session, actor, project_id, at, typed, {}, SimpleNamespace(name=name or _("Somebody"))
        )
    if errors := _wrong(typed):
        return _edited_again(request, session, actor, project_id, at, typed, errors, None)
    place = (found.prepared["_file"], found.prepared["_row"])
    made = None
    body = {key: typed[key] for key in ("kind", "messages", "text")}
    if body != {key: current.example.get(key) for key in body}:
        made = row_changes.change_row(
            session, actor, project_id, key=found.key, kind="edit", value={"example": body}, place=place
        )  # fmt: skip
    if typed["label"] != (current.example.get("label") or ""):
        made = row_changes.change_row(
            session, actor, project_id, key=found.key, kind="label", value={"label": typed["label"]}, place=place
        )  # fmt: skip
    response = RedirectResponse(f"/projects/{project_id}/rows/{at}?{request.url.query}", 303)
    if made is not None:
        flash(response, _("Row %(n)s saved.", n=at), undo_url=f"/projects/{project_id}/rows/changes/{made.id}/undo")
    return response
