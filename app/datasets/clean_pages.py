"""The Clean page of a project: the queue of fixes, statistics, the split, freezing and the versions."""

from typing import Any, Literal, get_args, get_origin

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response
from pydantic import ValidationError
from sqlalchemy.orm import Session

from app.accounts.access import ActorDep
from app.accounts.service import Actor
from app.core.errors import Invalid, NotFound
from app.core.flash import flash
from app.core.forms import FormValues, checked
from app.core.templates import gettext as _
from app.core.templates import render
from app.core.web import SessionDep
from app.datasets import plans, service, shown, versions
from app.datasets.cleaning import CODES, STEPS
from app.datasets.forms import SplitForm, listed
from app.datasets.splitting import wanted_rows
from app.datasets.steps.catalogue import secret_params
from app.datasets.steps.contract import Step
from app.projects import service as projects

router = APIRouter()


def _kind(annotation: Any) -> str:
    """The kind of field for a parameter: of numbers, ticks, one of a few, a text, or else a list of words."""
    if get_origin(annotation) is Literal:
        return "select"
    return {bool: "checkbox", int: "number", float: "number", str: "text"}.get(annotation, "list")


def _params(plan: Any) -> dict[str, list[dict[str, Any]]]:
    """The parameters of each step as fields: made from its pydantic model, with the values in force."""
    in_force = {step.name: step.params for step in plans.chosen(plan)}
    fields: dict[str, list[dict[str, Any]]] = {}
    for name, step in STEPS.items():
        values = step.params.model_validate(in_force.get(name, {})).model_dump()
        fields[name] = [
            {
                "name": key,
                "label": info.title or key,
                "help": info.description or "",
                "value": values[key],
                "kind": _kind(info.annotation),
                "options": [(choice, str(choice).capitalize()) for choice in get_args(info.annotation)],
                "attrs": {"step": "any"} if info.annotation is float else {},
            }
            for key, info in step.params.model_fields.items()
            if key not in secret_params(step)
        ]
    return fields


def _context(session: Session, actor: Actor, project_id: str) -> dict[str, Any]:
    project = projects.get(session, actor, project_id)
    files = service.list_files(session, actor, project_id)
    plan = plans.get(session, actor, project_id)
    report = plans.report_of(plan)
    split = plans.split_of(plan)
    found = versions.list_versions(session, actor, project_id)
    return {
        "project": project,
        "stage": "clean",
        "files": files,
        "plan": plan,
        "report": report,
        "cards": shown.fix_cards(report),
        "params": _params(plan),
        "steps": STEPS,
        "codes": CODES,
        "split": split,
        "wanted": wanted_rows(report.rows, split) if report else None,
        "versions": found,
        "is_live": shown.is_live(files, plan) or any(v.state in shown.LIVE for v in found),
        "state": shown.state_of(files, plan),
        "may_edit": actor.may(project.workspace_id, "editor"),
        "shorten": shown.brief,
        "errors": {},
        "step_values": {},
        "values": split.model_dump(),
    }


def _refused(
    request: Request, session: Session, actor: Actor, project_id: str, errors: dict[str, str], **typed: dict[str, Any]
) -> Response:
    """The page again with what was typed (`values` of the split, or `step_values` of a step) and what is wrong."""
    context = _context(session, actor, project_id) | {"errors": errors} | typed
    sent = typed.get("step_values", {})
    for field in context["params"].get(sent.get("step", ""), []):
        if field["kind"] == "number":
            field["value"] = sent.get(field["name"], field["value"])
    headers = {"HX-Push-Url": f"/projects/{project_id}/clean"}
    return render(request, "datasets/clean.html", status=422, headers=headers, **context)


def _back(project_id: str) -> RedirectResponse:
    return RedirectResponse(f"/projects/{project_id}/clean", 303)


@router.get("/projects/{project_id}/clean")
def clean_page(request: Request, session: SessionDep, actor: ActorDep, project_id: str) -> Response:
    return render(request, "datasets/clean.html", **_context(session, actor, project_id))


@router.get("/projects/{project_id}/clean/live")
def clean_live(request: Request, session: SessionDep, actor: ActorDep, project_id: str) -> Response:
    return render(request, "datasets/_clean_live.html", **_context(session, actor, project_id))


@router.get("/projects/{project_id}/clean/step")
def step_page(request: Request, session: SessionDep, actor: ActorDep, project_id: str, name: str = "") -> Response:
    """Up to fifty rows that a step touched or would touch, before and after."""
    context = _context(session, actor, project_id)
    if name not in STEPS:
        raise NotFound
    found = shown.step_of(context["report"], name)
    card = next((c for c in context["cards"] if c.name == name), None)
    return render(
        request, "datasets/step.html", **context, step=STEPS[name], found=found, card=card, diff=shown.diff_parts,
        visible=shown.visible,
    )  # fmt: skip


@router.post("/projects/{project_id}/clean/steps")
def apply_step(request: Request, session: SessionDep, actor: ActorDep, project_id: str, values: FormValues) -> Response:
    """Apply the step named `step`, or change its parameters."""
    projects.get(session, actor, project_id, need="editor")
    name = str(values.get("step", ""))
    step = STEPS.get(name)
    if step is None:
        raise NotFound
    try:
        plans.apply_steps(session, actor, project_id, [name], _given(_open_fields(step), values))
    except Invalid as error:
        return _refused(request, session, actor, project_id, error.fields, step_values=values)
    response = _back(project_id)
    flash(response, _("%(title)s: being cleaned.", title=step.title), undo_url=f"/projects/{project_id}/clean/undo")
    return response


def _open_fields(step: Step) -> dict[str, Any]:
    hidden = secret_params(step)
    return {name: info for name, info in step.params.model_fields.items() if name not in hidden}


def _given(fields: Any, values: dict[str, Any]) -> dict[str, Any]:
    """The parameters that the form sent. A form with parameters says so (`is_full`): then no tick means no."""
    is_full = values.get("is_full") == "1"
    found: dict[str, Any] = {}
    for key, info in fields.items():
        if info.annotation is bool:
            if is_full:
                found[key] = key in values
        elif _kind(info.annotation) in ("number", "select") and key in values:
            found[key] = values[key] or None
        elif info.annotation is str and key in values:
            found[key] = values[key]
        elif key in values:
            text = listed(values, key)[key]
            found[key] = [word.strip() for part in text for word in part.split(",") if word.strip()]
    return found


@router.post("/projects/{project_id}/clean/all")
def apply_all(session: SessionDep, actor: ActorDep, project_id: str) -> Response:
    """Apply every suggestion that has something to do and needs no look first."""
    projects.get(session, actor, project_id, need="editor")
    report = plans.report_of(plans.get(session, actor, project_id))
    names = [card.name for card in shown.fix_cards(report) if not card.is_applied and card.default == "on"]
    if not names:
        raise Invalid(_("There is nothing to fix."))
    plans.apply_steps(session, actor, project_id, names)
    response = _back(project_id)
    flash(response, _("All suggestions are being applied."), undo_url=f"/projects/{project_id}/clean/undo")
    return response


@router.post("/projects/{project_id}/clean/remove")
def remove_step(session: SessionDep, actor: ActorDep, project_id: str, values: FormValues) -> Response:
    """Take the step named `step` back out."""
    plans.remove_step(session, actor, project_id, str(values.get("step", "")))
    return _back(project_id)


@router.post("/projects/{project_id}/clean/undo")
def undo(session: SessionDep, actor: ActorDep, project_id: str) -> Response:
    plans.undo(session, actor, project_id)
    return _back(project_id)


@router.post("/projects/{project_id}/split")
def set_split(request: Request, session: SessionDep, actor: ActorDep, project_id: str, values: FormValues) -> Response:
    projects.get(session, actor, project_id, need="editor")
    form, errors = checked(SplitForm, values)
    if form is not None:
        try:
            plans.set_split(session, actor, project_id, form.settings())
        except ValidationError as error:
            errors = {"test_percent": error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")}
        else:
            response = _back(project_id)
            flash(response, _("Split saved."))
            return response
    return _refused(request, session, actor, project_id, errors, values=values)


@router.post("/projects/{project_id}/versions")
def freeze(session: SessionDep, actor: ActorDep, project_id: str) -> Response:
    version = versions.freeze(session, actor, project_id)
    return RedirectResponse(f"/versions/{version.id}", 303)
