"""The Clean page of a project: the queue of fixes, statistics, the split, freezing and the versions."""

from typing import Any, Literal, get_args, get_origin

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response
from pydantic import ValidationError
from sqlalchemy.orm import Session

from app.accounts.access import ActorDep
from app.accounts.service import Actor
from app.core.db import utcnow
from app.core.errors import Conflict, Invalid, NotFound
from app.core.flash import flash
from app.core.forms import FormValues, checked
from app.core.templates import gettext as _
from app.core.templates import render
from app.core.web import SessionDep
from app.datasets import clean_shown, plans, service, shown, sparing, trying, versions
from app.datasets.browsing import model_view
from app.datasets.cleaning import CODES, STEPS, ChosenStep
from app.datasets.findings import Refused
from app.datasets.forms import SplitForm, listed
from app.datasets.looking import SAMPLE_ROWS
from app.datasets.reports import StepReport
from app.datasets.splitting import wanted_rows
from app.datasets.steps.catalogue import PRESETS, hidden_params
from app.datasets.steps.contract import Step
from app.datasets.steps.near import EDGES_FILE
from app.datasets.steps.near import counts as near_counts
from app.datasets.steps.personal import ACTIONS as PERSONAL_CHOICES
from app.datasets.steps.personal import NOT_COVERED
from app.datasets.steps.tokens import CHOICES as TOKEN_CHOICES
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
        choices = TOKEN_CHOICES if name == "tokens" else PERSONAL_CHOICES
        fields[name] = [
            {
                "name": key,
                "label": info.title or key,
                "help": info.description or "",
                "value": values[key],
                "kind": _kind(info.annotation),
                "options": [
                    (choice, choices.get(str(choice)) or str(choice).capitalize())
                    for choice in get_args(info.annotation)
                ],
                "attrs": {"step": "any"} if info.annotation is float else {},
            }
            for key, info in step.params.model_fields.items()
            if key not in hidden_params(step)
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
        "falls": clean_shown.waterfall(report, plans.chosen(plan)),
        "presets": PRESETS,
        "modes": {step.name: step.mode for step in plans.chosen(plan)},
        "split": split,
        "columns": (columns := plans.spare_columns(files)),
        "column_options": [(name, name) for name in columns],
        "wanted": wanted_rows(report.rows, split) if report else None,
        "versions": found,
        "pace": shown.pace(plan, utcnow()),
        "is_live": shown.is_live(files, plan) or any(v.state in shown.LIVE for v in found),
        "state": shown.state_of(files, plan),
        "may_edit": actor.may(project.workspace_id, "editor"),
        "shorten": shown.brief,
        "errors": {},
        "values": split.model_dump(),
    }


def _refused(
    request: Request, session: Session, actor: Actor, project_id: str, errors: dict[str, str], values: dict[str, Any]
) -> Response:
    """The page again with what was typed and what is wrong: a step's page for its settings, else the Clean page."""
    context = _context(session, actor, project_id) | {"errors": errors}
    name = values.get("step", "")
    if name not in STEPS:
        context["values"] = values
        headers = {"HX-Push-Url": f"/projects/{project_id}/clean"}
        return render(request, "datasets/clean.html", status=422, headers=headers, **context)
    for field in context["params"][name]:
        if field["kind"] in ("number", "text", "select"):
            field["value"] = values.get(field["name"], field["value"])
    response = _step_page(request, context, name, "", shown.step_of(context["report"], name), errors=errors)
    response.headers["HX-Push-Url"] = f"/projects/{project_id}/clean/step?name={name}"
    return response


def _back(project_id: str) -> RedirectResponse:
    return RedirectResponse(f"/projects/{project_id}/clean", 303)


@router.get("/projects/{project_id}/clean")
def clean_page(request: Request, session: SessionDep, actor: ActorDep, project_id: str) -> Response:
    return render(request, "datasets/clean.html", **_context(session, actor, project_id))


@router.get("/projects/{project_id}/clean/live")
def clean_live(request: Request, session: SessionDep, actor: ActorDep, project_id: str) -> Response:
    return render(request, "datasets/_clean_live.html", **_context(session, actor, project_id))


@router.get("/projects/{project_id}/clean/step")
def step_page(
    request: Request, session: SessionDep, actor: ActorDep, project_id: str, name: str = "", code: str = "",
    waited: bool = False,
) -> Response:  # fmt: skip
    """Up to fifty rows that a step touched or would touch, before and after; its settings, and a preview of others.

    `waited`: asked for by the page itself, which waits for the rows to be prepared.
    """
    context = _context(session, actor, project_id) | {"waited": waited}
    model = model_view.model_of(session, actor, project_id) if name == "tokens" else None
    return _step_page(request, context, name, code, shown.step_of(context["report"], name), model=model)


def _thresholds(plan: Any, name: str) -> dict[str, Any]:
    """Near copies at other thresholds, from the pairs kept with the working set."""
    kept = next(iter(plans.set_dir(plan).glob(f"steps/*/{EDGES_FILE}")), None) if name == "near" and plan else None
    thresholds, crowded = near_counts(kept) if kept else ({}, [])
    return {"thresholds": thresholds, "crowded": crowded}


def _step_page(
    request: Request, context: dict[str, Any], name: str, code: str, found: StepReport | None, **more: Any
) -> Response:
    step = STEPS.get(name)
    if step is None:
        raise NotFound
    chosen = next((s for s in plans.chosen(context["plan"]) if s.name == name), None)
    is_measured = name == "personal"
    base = f"/projects/{context['project'].id}/clean/step?name={name}"
    context |= {
        "step": step,
        "found": found,
        "chosen": chosen,
        "code": code,
        "card": next((c for c in context["cards"] if c.name == name), None),
        "reasons": clean_shown.reasons(found),
        "tabs": [
            {"label": _(r.words), "url": f"{base}&code={r.code}", "current": r.code == code, "count": r.rows}
            for r in clean_shown.reasons(found)
        ],
        "estimate": clean_shown.estimate(found),
        "pairs": clean_shown.pairs(found, code, chosen),
        "shown_of": sum(r.rows for r in clean_shown.reasons(found) if not code or r.code == code),
        "measured": clean_shown.measured() if is_measured else [],
        "not_covered": NOT_COVERED if is_measured else "",
        "spared": [(_(sparing.SCOPES[s]), n) for s, n in sparing.counts(context["plan"], name).items()],
        "is_preview": False,
        "waited": context.get("waited", False),
        **_thresholds(context["plan"], name if chosen else ""),
    }
    status = 422 if more.get("errors") else 200
    return render(request, "datasets/step.html", status=status, **(context | more))


@router.post("/projects/{project_id}/clean/steps")
def apply_step(request: Request, session: SessionDep, actor: ActorDep, project_id: str, values: FormValues) -> Response:
    """Apply the step named `step` (`mode` mark: only mark its rows), or change its parameters."""
    projects.get(session, actor, project_id, need="editor")
    name = str(values.get("step", ""))
    step = STEPS.get(name)
    if step is None:
        raise NotFound
    mode: Literal["on", "mark"] = "mark" if values.get("mode") == "mark" else "on"
    given = _given(_open_fields(step), values)
    try:
        plans.apply_steps(session, actor, project_id, [name], given, mode)
    except Invalid as error:
        return _refused(request, session, actor, project_id, error.fields, values)
    response = _back(project_id)
    flash(response, _("%(title)s: being cleaned.", title=step.title), undo_url=f"/projects/{project_id}/clean/undo")
    return response


@router.post("/projects/{project_id}/clean/preview")
def preview_step(
    request: Request, session: SessionDep, actor: ActorDep, project_id: str, values: FormValues
) -> Response:
    """What a step would do with the settings sent, on the sampled rows; nothing is changed."""
    projects.get(session, actor, project_id, need="editor")
    context = _context(session, actor, project_id)
    name, plan, report = str(values.get("step", "")), context["plan"], context["report"]
    step = STEPS.get(name)
    if step is None:
        raise NotFound
    if report is None or plan is None or not plan.set_key:
        raise Conflict(sparing.NOTHING)
    try:
        given = plans.read_by(session, actor, project_id, step, _given(_open_fields(step), values))
        params = plans.checked_params(step, given)
    except Invalid as error:
        return _refused(request, session, actor, project_id, error.fields, values)
    chosen = ChosenStep(name=name, version=step.version, params=params)
    planned = plans.planned(session, project_id)
    try:
        found = trying.preview(
            planned, plans.set_dir(plan), report.rows, chosen, is_all_sampled=report.rows_in <= SAMPLE_ROWS
        )
    except Refused as refusal:
        raise Conflict(refusal.sentence) from refusal
    for field in context["params"][name]:
        field["value"] = params[field["name"]]
    return _step_page(request, context, name, "", found, is_preview=True, pairs=clean_shown.pairs(found, "", chosen))


@router.post("/projects/{project_id}/clean/preset")
def apply_preset(session: SessionDep, actor: ActorDep, project_id: str, values: FormValues) -> Response:
    """Replace the steps by those of the preset `name`."""
    plans.apply_preset(session, actor, project_id, str(values.get("name", "")))
    response = _back(project_id)
    flash(response, _("The steps are being applied."), undo_url=f"/projects/{project_id}/clean/undo")
    return response


@router.post("/projects/{project_id}/clean/spare")
def spare(session: SessionDep, actor: ActorDep, project_id: str, values: FormValues) -> Response:
    """Tell `step` to leave a row (`rid`), rows like it, or all rows of a reason (`code`) alone: `scope`."""
    name, rid = str(values.get("step", "")), str(values.get("rid", ""))
    sparing.spare(
        session, actor, project_id, step=name, scope=str(values.get("scope", "")), code=str(values.get("code", "")),
        rid=int(rid) if rid.isascii() and rid.isdigit() and len(rid) < 16 else -1,
    )  # fmt: skip
    response = RedirectResponse(f"/projects/{project_id}/clean/step?name={name}", 303)
    flash(response, _("Noted. It holds for every new preparation, too."))
    return response


@router.post("/projects/{project_id}/clean/forget")
def forget(session: SessionDep, actor: ActorDep, project_id: str, values: FormValues) -> Response:
    """Take every exception of `step` back."""
    name = str(values.get("step", ""))
    if name not in STEPS:
        raise NotFound
    sparing.forget(session, actor, project_id, name)
    response = RedirectResponse(f"/projects/{project_id}/clean/step?name={name}", 303)
    flash(response, _("The exceptions are taken back."))
    return response


def _open_fields(step: Step) -> dict[str, Any]:
    hidden = hidden_params(step)
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


@router.post("/projects/{project_id}/clean/cancel")
def cancel(session: SessionDep, actor: ActorDep, project_id: str) -> Response:
    plans.cancel(session, actor, project_id)
    return _back(project_id)


@router.post("/projects/{project_id}/clean/again")
def again(session: SessionDep, actor: ActorDep, project_id: str) -> Response:
    plans.again(session, actor, project_id)
    return _back(project_id)


@router.post("/versions/{version_id}/cancel")
def cancel_version(session: SessionDep, actor: ActorDep, version_id: str) -> Response:
    version = versions.cancel(session, actor, version_id)
    return RedirectResponse(f"/versions/{version.id}", 303)


@router.post("/projects/{project_id}/split")
def set_split(request: Request, session: SessionDep, actor: ActorDep, project_id: str, values: FormValues) -> Response:
    projects.get(session, actor, project_id, need="editor")
    values = listed(values, "group_columns")
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
    return _refused(request, session, actor, project_id, errors, values)


@router.post("/projects/{project_id}/versions")
def freeze(session: SessionDep, actor: ActorDep, project_id: str) -> Response:
    version = versions.freeze(session, actor, project_id)
    return RedirectResponse(f"/versions/{version.id}", 303)
