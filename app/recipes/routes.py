"""The recipe page and its parts. Starting the run is the runs slice's; it asks this slice for the frozen values."""

from typing import Annotated, Any

from fastapi import APIRouter, File, Form, Query, Request, UploadFile
from fastapi.responses import RedirectResponse, Response
from sqlalchemy.orm import Session

from app.accounts.access import ActorDep
from app.accounts.service import Actor
from app.core.config import get_settings
from app.core.db import new_id, reading, transaction
from app.core.errors import AppError, Invalid
from app.core.flash import flash
from app.core.forms import FormValues
from app.core.templates import gettext as _
from app.core.templates import render
from app.core.web import SessionDep
from app.projects import service as projects
from app.recipes import bases, fields, files, new_model, probes, saved_pages, service, several, tokens_preview
from app.recipes.base_facts import language_names
from app.recipes.forms import form_changes
from app.recipes.vetting import allowed_roots

router = APIRouter()
router.include_router(saved_pages.router)
# Errors of these names are shown beside their own input.
PLACED = ("ref", "revision", "folder", "file")


def show(
    request: Request,
    session: SessionDep,
    actor: ActorDep,
    project_id: str,
    *,
    error: AppError | None = None,
    typed: dict[str, Any] | None = None,
) -> Response:
    """The page; with an error, filled with what was typed."""
    page = service.page(session, actor, project_id)
    errors = dict(getattr(error, "fields", {})) or ({"": error.sentence} if error else {})
    if len(named := [fields.BY_NAME[name].label for name in errors if name in fields.BY_NAME]) > 1:
        errors.setdefault("", _("Nothing was saved. These values do not fit: %(names)s.", names=", ".join(named)))
    groups = fields.groups(page.chosen.method, page.machine.device) if page.chosen else {}
    placed = {known.name for members in groups.values() for known in members}
    if errors and not any(name in placed or name in PLACED for name in errors):
        errors.setdefault("", next(iter(errors.values())))
    return render(
        request,
        "recipes/recipe.html",
        status=422 if error else 200,
        project=page.project,
        stage="recipe",
        page=page,
        chosen=page.chosen,
        composed=page.composed,
        device_fields=groups.pop(several.GROUP, []),
        time_fields=groups.pop("Time", []),
        groups=groups,
        shown=fields.shown,
        language_names=language_names,
        bounds=fields.bounds_sentence,
        get=fields.get,
        errors=errors,
        typed=typed or {},
        labels={known.name: known.label for known in fields.FIELDS},
        request_id=new_id(),
        **_as_text(page),
        **_new_model(page),
        may_edit=actor.may(page.project.workspace_id, "editor"),
        roots=[str(root) for root in allowed_roots()],
        currency=get_settings().currency,
    )


def _as_text(page: service.RecipePage) -> dict[str, Any]:
    if page.chosen is None or page.composed is None:
        return {"command": "", "yaml": ""}
    base = page.chosen.base.files if page.chosen.base else None
    command = files.command_line(page.chosen.version.id, base, page.instruction)
    return {"command": command, "yaml": files.to_yaml(page.composed.recipe)}


def _new_model(page: service.RecipePage) -> dict[str, Any]:
    """What the card of a new GPT shows; nothing for a recipe that tunes a base."""
    if page.composed is None or page.composed.recipe.scratch is None:
        return {}
    spec, facts, known = page.composed.recipe.scratch, page.composed.facts, page.composed.estimate
    sizes = new_model.sizes(spec, facts)
    place = new_model.nearest(sizes, facts.parameters)
    text_tokens = page.composed.material.tokens
    return {
        "sizes": sizes,
        "size_place": place,
        "advice": new_model.advice(facts.parameters, text_tokens, known.tokens, is_smallest=place == 0),
        "network": new_model.drawing(spec, facts),
    }


@router.get("/projects/{project_id}/recipe/tokenizer")
def tokenizer_preview(
    request: Request, project_id: str, actor: ActorDep, try_text: Annotated[str, Query(max_length=400)] = ""
) -> Response:
    """How the new model's tokenizer cuts the project's own text, or what was typed. Holds nothing while it learns."""
    with reading() as session:
        page = service.page(session, actor, project_id)
    if page.chosen is None or page.composed is None or page.composed.recipe.scratch is None:
        raise Invalid("Only a new GPT makes a tokenizer of its own. Choose it as the base on the recipe page.")
    spec = page.composed.recipe.scratch
    found = tokens_preview.preview(page.chosen.version.id, spec.tokenizer, spec.vocabulary_size, try_text)
    return render(request, "recipes/_tokens.html", project=page.project, preview=found, try_text=try_text)


@router.get("/projects/{project_id}/recipe")
def recipe_page(request: Request, project_id: str, actor: ActorDep, session: SessionDep) -> Response:
    return show(request, session, actor, project_id)


@router.post("/projects/{project_id}/recipe")
def save(request: Request, project_id: str, actor: ActorDep, session: SessionDep, values: FormValues) -> Response:
    """Preset, method, version, base and the drawer's values; every button of the page's form posts all of them."""
    try:
        with session.begin_nested():
            service.save(session, actor, project_id, **form_changes(values))
            if base := str(values.get("base", "")):
                source, _, entry_id = base.partition(":")
                service.choose_base(session, actor, project_id, source=source, entry_id=entry_id or None)
    except Invalid as error:
        return show(request, session, actor, project_id, error=error, typed=values)
    if values.get("do") == "measure":
        service.try_out(session, actor, project_id, "cost")
        return RedirectResponse(f"/projects/{project_id}/recipe#expect", 303)
    if values.get("do") == "rates":
        service.try_out(session, actor, project_id, "rates")
        return RedirectResponse(f"/projects/{project_id}/recipe#schedule", 303)
    if values.get("do") == "start":
        # 307 keeps method and body: the same form goes on to the runs, with what was just saved.
        return RedirectResponse(f"/projects/{project_id}/runs", 307)
    return RedirectResponse(f"/projects/{project_id}/recipe", 303)


@router.get("/projects/{project_id}/recipe/costs")
def costs(request: Request, project_id: str, actor: ActorDep, session: SessionDep) -> Response:
    """What a run takes, alone: for its own refresh while it is measured."""
    return _measured(request, session, actor, project_id, "recipes/_costs.html")


@router.get("/projects/{project_id}/recipe/rates")
def rates(request: Request, project_id: str, actor: ActorDep, session: SessionDep) -> Response:
    """The range test of the learning rate, alone."""
    return _measured(request, session, actor, project_id, "recipes/_rates.html")


def _measured(request: Request, session: Session, actor: Actor, project_id: str, template: str) -> Response:
    page = service.page(session, actor, project_id)
    if page.composed is None:
        raise Invalid("Freeze a dataset version first; then a recipe can be measured.")
    return render(
        request,
        template,
        project=page.project,
        page=page,
        composed=page.composed,
        may_edit=actor.may(page.project.workspace_id, "editor"),
        currency=get_settings().currency,
    )


@router.post("/projects/{project_id}/recipe/probes/{probe_id}/stop")
def stop_probe(project_id: str, probe_id: str, actor: ActorDep, session: SessionDep) -> Response:
    projects.get(session, actor, project_id, need="editor")
    probes.stop(session, project_id, probe_id)
    return RedirectResponse(f"/projects/{project_id}/recipe#expect", 303)


@router.post("/projects/{project_id}/recipe/probes/{probe_id}/use")
def use_rate(project_id: str, probe_id: str, actor: ActorDep, session: SessionDep) -> Response:
    service.use_rate(session, actor, project_id, probe_id)
    return RedirectResponse(f"/projects/{project_id}/recipe#schedule", 303)


@router.post("/projects/{project_id}/recipe/folder")
def bring_folder(
    request: Request, project_id: str, actor: ActorDep, session: SessionDep, values: FormValues
) -> Response:
    project = projects.get(session, actor, project_id, need="editor")
    try:
        bases.bring_folder(session, project.workspace_id, str(values.get("folder", ""))[:1000])
    except Invalid as error:
        refused = error if error.fields else Invalid(fields={"folder": error.sentence})
        return show(request, session, actor, project_id, error=refused, typed=values)
    return RedirectResponse(f"/projects/{project_id}/recipe#bases", 303)


@router.post("/projects/{project_id}/recipe/hub")
def bring_from_hub(request: Request, project_id: str, actor: ActorDep, values: FormValues) -> Response:
    """Ask the hub and show licence and size; nothing is fetched before the person says so.

    No transaction is open while the hub thinks: on SQLite it would keep everybody else from writing.
    """
    with reading() as session:
        projects.get(session, actor, project_id, need="editor")
    ref, revision = str(values.get("ref", ""))[:200], str(values.get("revision", ""))[:64]
    try:
        answer = bases.look_up(ref, revision)
    except AppError as error:
        refused = error if getattr(error, "fields", None) else Invalid(fields={"ref": error.sentence})
        with reading() as session:
            return show(request, session, actor, project_id, error=refused, typed=values)
    with transaction() as session:
        project = projects.get(session, actor, project_id, need="editor")
        bases.bring_from_hub(session, project.workspace_id, answer)
    return RedirectResponse(f"/projects/{project_id}/recipe#bases", 303)


@router.get("/projects/{project_id}/recipe/bases")
def bases_fragment(request: Request, project_id: str, actor: ActorDep, session: SessionDep) -> Response:
    """The models that were brought in, with their progress."""
    page = service.page(session, actor, project_id)
    may_edit = actor.may(page.project.workspace_id, "editor")
    values: dict[str, Any] = {"project": page.project, "page": page, "chosen": page.chosen, "may_edit": may_edit}
    values["language_names"] = language_names
    return render(request, "recipes/_bases.html", **values)


@router.post("/projects/{project_id}/recipe/bases/{base_id}/download")
def download(project_id: str, base_id: str, actor: ActorDep, session: SessionDep) -> Response:
    project = projects.get(session, actor, project_id, need="editor")
    bases.confirm(session, bases.get_entry(session, project.workspace_id, base_id))
    return RedirectResponse(f"/projects/{project_id}/recipe#bases", 303)


@router.post("/projects/{project_id}/recipe/bases/{base_id}/cancel")
def cancel(project_id: str, base_id: str, actor: ActorDep, session: SessionDep) -> Response:
    project = projects.get(session, actor, project_id, need="editor")
    bases.request_cancel(session, bases.get_entry(session, project.workspace_id, base_id))
    return RedirectResponse(f"/projects/{project_id}/recipe#bases", 303)


@router.get("/projects/{project_id}/recipe.yaml")
def export(project_id: str, actor: ActorDep, session: SessionDep) -> Response:
    page = service.page(session, actor, project_id)
    if page.composed is None:
        raise Invalid("Freeze a dataset version first; then there is a recipe to download.")
    headers = {"Content-Disposition": 'attachment; filename="recipe.yaml"', "X-Content-Type-Options": "nosniff"}
    return Response(files.to_yaml(page.composed.recipe), media_type="application/yaml", headers=headers)


@router.post("/projects/{project_id}/recipe/import")
def import_recipe(
    request: Request,
    project_id: str,
    actor: ActorDep,
    session: SessionDep,
    file: Annotated[UploadFile | None, File()] = None,
    text: Annotated[str, Form(max_length=100_000)] = "",
) -> Response:
    """Values from a recipe file, or from its text."""
    projects.get(session, actor, project_id, need="editor")
    if file is not None:
        text = file.file.read(200_000).decode("utf-8", errors="replace")
    try:
        with session.begin_nested():
            service.import_recipe(session, actor, project_id, text)
    except Invalid as error:
        refused = Invalid(fields={"file": error.sentence})
        return show(request, session, actor, project_id, error=refused)
    response = RedirectResponse(f"/projects/{project_id}/recipe", 303)
    flash(response, _("This page shows the values of the file now"))
    return response
