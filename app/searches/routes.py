"""Searches: the form, the page of one, and the part of the runs page that lists them."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from app.accounts.access import ActorDep
from app.core.db import new_id
from app.core.errors import Conflict, Invalid
from app.core.forms import FormValues, checked
from app.core.templates import render
from app.core.web import SessionDep
from app.projects import service as projects
from app.recipes import fields
from app.recipes import service as recipes
from app.recipes.machine import this_machine
from app.searches import service, space
from app.searches.forms import SearchForm
from app.searches.view import view

router = APIRouter()


@router.get("/projects/{project_id}/searches")
def searches_list(request: Request, project_id: str, actor: ActorDep, session: SessionDep) -> Response:
    """The searches of a project: a part of the runs page that only this slice can fill."""
    project = projects.get(session, actor, project_id)
    found = service.listing(session, actor, project_id)
    return render(request, "searches/_list.html", project=project, searches=found)


@router.get("/projects/{project_id}/searches/new")
def search_form(request: Request, project_id: str, actor: ActorDep, session: SessionDep) -> Response:
    projects.get(session, actor, project_id, need="editor")
    return _form(request, session, actor, project_id)


def _form(
    request: Request,
    session: SessionDep,
    actor: ActorDep,
    project_id: str,
    errors: dict[str, str] | None = None,
    typed: dict[str, Any] | None = None,
) -> Response:
    project = projects.get(session, actor, project_id, need="editor")
    try:
        ready = recipes.ready(session, actor, project_id)
    except (Conflict, Invalid) as error:
        return render(request, "searches/new.html", project=project, stage="recipe", missing=error.sentence)
    offered = space.offered(ready.recipe, this_machine().device)
    return render(
        request,
        "searches/new.html",
        status=422 if errors else 200,
        project=project,
        stage="recipe",
        missing="",
        recipe=ready.recipe,
        estimate=ready.estimate,
        offered=offered,
        fields=fields.BY_NAME,
        now={one.name: _now(ready.recipe.model_dump(mode="json"), one.name) for one in offered},
        shown=fields.shown,
        errors=errors or {},
        typed=typed or {},
        request_id=new_id(),
    )


def _now(values: dict[str, Any], name: str) -> str:
    known = fields.BY_NAME[name]
    text = fields.shown(known, fields.get(values, name))
    return dict(known.options).get(text, text).partition(":")[0]


@router.post("/projects/{project_id}/searches")
def start(request: Request, project_id: str, actor: ActorDep, session: SessionDep, values: FormValues) -> Response:
    """Begin a search over the recipe as the recipe page shows it."""
    projects.get(session, actor, project_id, need="editor")
    own = {key: value for key, value in values.items() if "." not in key and key != "vary"}
    form, errors = checked(SearchForm, own)
    if form is not None:
        try:
            ready = recipes.ready(session, actor, project_id)
            search = service.start(
                session,
                actor,
                project_id=project_id,
                ready=ready,
                space=space.read(ready.recipe, values, this_machine().device),
                way=form.way,
                points=form.points,
                budget_runs=form.budget_runs,
                budget_hours=form.budget_hours,
                keeps_all=form.keeps_all,
                client_request_id=form.client_request_id or new_id(),
            )
            return RedirectResponse(f"/searches/{search.id}", 303)
        except Invalid as error:
            errors = error.fields
    return _form(request, session, actor, project_id, errors, values)


@router.get("/searches/{search_id}")
def search_page(request: Request, search_id: str, actor: ActorDep, session: SessionDep) -> Response:
    return render(request, "searches/search.html", **_seen(session, actor, search_id))


@router.get("/searches/{search_id}/body")
def search_body(request: Request, search_id: str, actor: ActorDep, session: SessionDep) -> Response:
    """The moving part of the page, for its own refresh."""
    return render(request, "searches/_body.html", **_seen(session, actor, search_id))


def _seen(session: SessionDep, actor: ActorDep, search_id: str) -> dict[str, Any]:
    search = service.get(session, actor, search_id)
    seen = view(session, search)
    return {
        "seen": seen,
        "search": search,
        "project": seen.project,
        "stage": "train",
        "may_edit": actor.may(search.workspace_id, "editor"),
    }


@router.post("/searches/{search_id}/stop")
def stop(search_id: str, actor: ActorDep, session: SessionDep) -> Response:
    service.request_stop(session, actor, search_id)
    return RedirectResponse(f"/searches/{search_id}", 303)
