"""Starting, watching and steering runs. The live stream is in stream.py."""

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from app.accounts.access import ActorDep
from app.core.db import new_id
from app.core.errors import NotFound
from app.core.forms import FormValues
from app.core.templates import render
from app.core.web import SessionDep
from app.projects import service as projects
from app.recipes import service as recipes
from app.runs import parents, service

router = APIRouter()


def _to(path: str) -> Response:
    return RedirectResponse(path, 303)


@router.post("/projects/{project_id}/runs")
def start(project_id: str, actor: ActorDep, session: SessionDep, values: FormValues) -> Response:
    """Start the saved recipe. The form carries an id of its own, so a doubled click finds the first one's run."""
    ready = recipes.ready(session, actor, project_id)
    run = service.start(
        session,
        actor,
        project_id=project_id,
        version_id=ready.version_id,
        recipe=ready.recipe,
        client_request_id=str(values.get("client_request_id") or new_id())[:64],
        name=ready.name,
        base_model_id=ready.base_model_id,
        parent_model_id=ready.parent_model_id,
        estimate=ready.estimate,
    )
    return _to(f"/runs/{run.id}")


@router.get("/projects/{project_id}/recipe/models")
def earlier_models(request: Request, project_id: str, actor: ActorDep, session: SessionDep) -> Response:
    """Models of the project as bases to go on from: a part of the recipe page that only this slice can fill."""
    project = projects.get(session, actor, project_id)
    models = service.models_of(session, actor, project_id)[:12]
    return render(request, "runs/_earlier_models.html", project=project, models=models)


@router.post("/projects/{project_id}/recipe/model")
def go_on_from(project_id: str, actor: ActorDep, session: SessionDep, values: FormValues) -> Response:
    """Take a finished model of the project as the base of the recipe."""
    model = service.get_model(session, actor, str(values.get("model_id", "")), need="editor")
    if model.project_id != project_id:
        raise NotFound
    recipes.choose_base(session, actor, project_id, source="model", model=parents.described(model))
    return _to(f"/projects/{project_id}/recipe")
