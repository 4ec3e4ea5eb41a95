"""New project, its name, its end, and the objective. The list of projects is the overview's (it shows every stage)."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from app.accounts.access import ActorDep
from app.core.errors import Invalid
from app.core.flash import flash
from app.core.forms import FormValues, checked, filled
from app.core.templates import render
from app.core.translations import gettext as _
from app.core.web import SessionDep
from app.projects import gallery, service
from app.projects.forms import NewProjectForm, ObjectiveForm, RenameForm
from app.projects.models import Project
from app.projects.service import ObjectiveText

router = APIRouter()


@router.get("/projects/new")
def new_page(request: Request, actor: ActorDep, template: str = "support") -> Response:
    return _new_page(request, {"name": "", "template": template}, {})


def _new_page(request: Request, values: dict[str, Any], errors: dict[str, str]) -> Response:
    chosen = gallery.template(str(values.get("template", "")))
    return render(
        request,
        "projects/new.html",
        status=422 if errors else 200,
        stage="new",
        values=values,
        errors=errors,
        chosen=chosen,
        templates=list(gallery.TEMPLATES.values()),
    )


@router.post("/projects/new")
def create(request: Request, actor: ActorDep, session: SessionDep, values: FormValues) -> Response:
    form, errors = checked(NewProjectForm, values)
    if form is None:
        return _new_page(request, values, errors)
    project = service.create(session, actor, name=form.name, template_key=form.template, workspace_id=form.workspace_id)
    return RedirectResponse(f"/projects/{project.id}/objective", 303)


@router.post("/projects/{project_id}/name")
def rename(project_id: str, request: Request, actor: ActorDep, session: SessionDep, values: FormValues) -> Response:
    form = filled(RenameForm, values)
    service.rename(session, actor, project_id, name=form.name)
    response = RedirectResponse(f"/projects/{project_id}", 303)
    flash(response, _("Renamed"), _("The project is now called %(name)s.", name=form.name))
    return response


@router.post("/projects/{project_id}/delete")
def delete(project_id: str, actor: ActorDep, session: SessionDep) -> Response:
    project = service.delete(session, actor, project_id)
    response = RedirectResponse("/projects", 303)
    text = _("Everything in it is kept for thirty days.")
    flash(response, _("Deleted “%(name)s”", name=project.name), text, undo_url=f"/projects/{project_id}/restore")
    return response


@router.post("/projects/{project_id}/restore")
def restore(project_id: str, actor: ActorDep, session: SessionDep) -> Response:
    project = service.restore(session, actor, project_id)
    response = RedirectResponse(f"/projects/{project.id}", 303)
    flash(response, _("“%(name)s” is back", name=project.name))
    return response


@router.get("/projects/{project_id}/objective")
def objective_page(project_id: str, request: Request, actor: ActorDep, session: SessionDep) -> Response:
    project = service.get(session, actor, project_id)
    found = service.objective(session, actor, project_id)
    text = ObjectiveText(found.task, found.audience, found.tone, list(found.must_never), list(found.samples))
    return _objective_page(request, project, text, {}, may_edit=actor.may(project.workspace_id, "editor"))


def _objective_page(
    request: Request, project: Project, text: ObjectiveText, errors: dict[str, str], *, may_edit: bool = True
) -> Response:
    return render(
        request,
        "projects/objective.html",
        status=422 if errors else 200,
        stage="objective",
        project=project,
        objective=text,
        errors=errors,
        may_edit=may_edit,
        start=gallery.template(project.template),
        instruction=service.instruction(text),
    )


@router.post("/projects/{project_id}/objective")
def save_objective(
    project_id: str, request: Request, actor: ActorDep, session: SessionDep, values: FormValues
) -> Response:
    project = service.get(session, actor, project_id, need="editor")
    form, errors = checked(ObjectiveForm, values)
    if form is None:
        # Wrong fields are shown with what was typed; rows that do not fit are cut to what a form can hold.
        return _objective_page(request, project, _as_typed(values), errors)
    if form.change:
        return _objective_page(request, project, form.changed(), {})
    try:
        service.save_objective(session, actor, project_id, text=form.text())
    except Invalid as error:
        return _objective_page(request, project, form.text(), error.fields)
    response = RedirectResponse(f"/projects/{project_id}/{form.after or 'objective'}", 303)
    flash(response, _("Objective saved"))
    return response


@router.post("/projects/{project_id}/objective/preview")
def preview(project_id: str, request: Request, actor: ActorDep, session: SessionDep, values: FormValues) -> Response:
    """The model's instruction as it follows from the form, while people write."""
    service.get(session, actor, project_id)
    form, _errors = checked(ObjectiveForm, values)
    text = form.text() if form else _as_typed(values)
    return render(request, "projects/_preview.html", objective=text, instruction=service.instruction(text))


def _as_typed(values: dict[str, Any]) -> ObjectiveText:
    def texts(name: str) -> list[str]:
        value = values.get(name, [])
        return [str(item) for item in (value if isinstance(value, list) else [value])][:50]

    pairs = zip(texts("sample_question"), texts("sample_answer"), strict=False)
    return ObjectiveText(
        task=str(values.get("task", "")),
        audience=str(values.get("audience", "")),
        tone=str(values.get("tone", "")),
        must_never=texts("must_never"),
        samples=[{"question": question, "answer": answer} for question, answer in pairs],
    )
