"""Starting, watching and steering runs. The live stream is in stream.py."""

from typing import Annotated, Any, Literal, cast

import orjson
from fastapi import APIRouter, Query, Request
from fastapi.responses import RedirectResponse, Response
from sqlalchemy.orm import Session

from app.accounts.access import ActorDep
from app.accounts.service import Actor
from app.contracts.recipe import RecipeSpec
from app.core import events
from app.core.db import new_id, reading, transaction
from app.core.errors import Invalid, NotFound
from app.core.flash import flash
from app.core.forms import FormValues, checked, filled
from app.core.numbers import size
from app.core.templates import gettext as _
from app.core.templates import render
from app.core.web import SessionDep
from app.projects import service as projects
from app.recipes import service as recipes
from app.recipes.files import to_yaml
from app.runs import (
    charts,
    comparison,
    continuing,
    curves,
    discarding,
    fragments,
    notices,
    ordering,
    parents,
    recipe_pairs,
    service,
    stream,
    verdicts,
)
from app.runs.forms import AdjustForm, NoticeForm, QueueForm
from app.runs.models import END_STATES
from app.runs.view import RunView, listed, log_text, view

router = APIRouter()
router.include_router(stream.router)


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
    recipes.forget_name(session, actor, project_id)
    return _to(f"/runs/{run.id}")


@router.get("/projects/{project_id}/recipe/models")
def earlier_models(request: Request, project_id: str, actor: ActorDep, session: SessionDep) -> Response:
    """Models of the project as bases to go on from: a part of the recipe page that only this slice can fill."""
    project = projects.get(session, actor, project_id)
    models = service.models_of(session, actor, project_id)[:12]
    may_edit = actor.may(project.workspace_id, "editor")
    return render(request, "runs/_earlier_models.html", project=project, models=models, may_edit=may_edit)


@router.post("/projects/{project_id}/recipe/model")
def go_on_from(project_id: str, actor: ActorDep, session: SessionDep, values: FormValues) -> Response:
    """Take a finished model of the project as the base of the recipe."""
    model = service.get_model(session, actor, str(values.get("model_id", "")), need="editor")
    if model.project_id != project_id:
        raise NotFound
    recipes.choose_base(session, actor, project_id, source="model", model=parents.described(model))
    return _to(f"/projects/{project_id}/recipe")


@router.get("/projects/{project_id}/runs")
def runs_page(request: Request, project_id: str, actor: ActorDep, session: SessionDep) -> Response:
    return render(request, "runs/runs.html", **_listed(session, actor, project_id))


@router.get("/projects/{project_id}/runs/list")
def runs_list(request: Request, project_id: str, actor: ActorDep, session: SessionDep) -> Response:
    """The rows alone, for the list's own refresh."""
    return render(request, "runs/_list.html", **_listed(session, actor, project_id))


@router.get("/projects/{project_id}/runs/compare")
def compare_page(
    request: Request,
    project_id: str,
    actor: ActorDep,
    session: SessionDep,
    run: Annotated[list[str] | None, Query(max_length=20)] = None,
    everything: Annotated[bool, Query(alias="all")] = False,
) -> Response:
    """Runs that were ticked in the list, side by side; with fewer than two it says how to choose."""
    project = projects.get(session, actor, project_id)
    found = comparison.compare(session, actor, project_id, run or [])
    return render(
        request,
        "runs/compare.html",
        project=project,
        stage="train",
        compared=found,
        groups=found.shown(everything),
        everything=everything,
        query="&".join(f"run={one.id}" for one in found.runs),
        left_out=max(0, len(set(run or [])) - comparison.MOST),
    )


@router.get("/projects/{project_id}/recipes/compare")
def compare_recipes(
    request: Request,
    project_id: str,
    actor: ActorDep,
    session: SessionDep,
    one: Annotated[str, Query(max_length=40)] = "",
    two: Annotated[str, Query(max_length=40)] = "",
    everything: Annotated[bool, Query(alias="all")] = False,
) -> Response:
    """Two recipes side by side: saved ones, runs', or the one on the recipe page."""
    project = projects.get(session, actor, project_id)
    pair = recipe_pairs.compare(session, actor, project_id, one, two) if one and two else None
    return render(
        request,
        "runs/compare_recipes.html",
        project=project,
        stage="recipe",
        choices=recipe_pairs.choices(session, actor, project_id),
        one=one,
        two=two,
        pair=pair,
        groups=pair.shown(everything) if pair else {},
        everything=everything,
    )


def _listed(session: Session, actor: Actor, project_id: str) -> dict[str, Any]:
    project = projects.get(session, actor, project_id)
    rows = listed(session, list(service.listing(session, actor, project_id)))
    return {
        "project": project,
        "stage": "train",
        "runs": rows,
        "is_live": any(row.run.state not in (*END_STATES, "paused") for row in rows),
        "may_edit": actor.may(project.workspace_id, "editor"),
    }


@router.get("/runs/{run_id}")
def run_page(
    request: Request,
    run_id: str,
    actor: ActorDep,
    session: SessionDep,
    sample: int | Literal["all"] | None = None,
    log: Literal["", "warning"] = "",
) -> Response:
    return _page(request, session, actor, run_id, sample=sample, level=log)


def _page(
    request: Request,
    session: Session,
    actor: Actor,
    run_id: str,
    *,
    sample: int | Literal["all"] | None = None,
    level: str = "",
    errors: dict[str, str] | None = None,
    notice_errors: dict[str, str] | None = None,
    typed: dict[str, Any] | None = None,
) -> Response:
    # The stream's position is read before the row: whatever happens in between is sent again, nothing is missed.
    after = events.last_id(f"run:{run_id}")
    run = service.get(session, actor, run_id)
    step = sample if isinstance(sample, int) else None
    seen = view(session, run, sample_step=step, all_looks=sample == "all", level=level)
    skip = [name for name, chosen in (("samples", sample is not None), ("log", bool(level))) if chosen]
    return render(
        request,
        "runs/run.html",
        status=422 if errors or notice_errors else 200,
        **fragments.context(seen, may_edit=actor.may(run.workspace_id, "editor"), level=level),
        project=seen.project,
        stage="train",
        rail_is_told=seen.is_live,
        painted=curves.first_paint(seen.curves),
        summary=_summary(seen),
        after=after,
        skip=f"&skip={','.join(skip)}" if skip else "",
        compare=[(f"/runs/{other}/metrics.json", name) for other, name in service.neighbours(session, run)],
        errors=errors or {},
        notice_errors=notice_errors or {},
        notices=notices.of_run(session, run) if actor.may(run.workspace_id, "editor") else [],
        has_mail=notices.has_mail(),
        typed=typed or {},
    )


def _summary(seen: RunView) -> str:
    """The curve in a sentence, for those who do not see it."""
    if not seen.curves.train:
        return ""
    last = seen.curves.train[-1]
    words = f"Learning curve until step {last[0]:,}: training loss {last[1]:.2f}"
    if seen.curves.best:
        words += f", lowest validation loss {seen.curves.best[1]:.2f} at step {seen.curves.best[0]:,}"
    return f"{words}. Arrow keys read the values."


@router.get("/runs/{run_id}/metrics.json")
def metrics(
    run_id: str,
    actor: ActorDep,
    session: SessionDep,
    first: Annotated[int, Query(alias="from", ge=0, le=2**31 - 1)] = 0,
    last: Annotated[int, Query(alias="to", ge=0, le=2**31 - 1)] = 2**31 - 1,
    name: Annotated[str, Query(max_length=40)] = "",
) -> Response:
    """The whole curve (or a part of it) for the chart: steps, training loss, validation points, memorising zone.

    With the `name` of a small chart its own points instead: steps, and the values as words.
    """
    run = service.get(session, actor, run_id)
    if name:
        if name not in charts.KNOWN:
            raise NotFound
        small = orjson.dumps(charts.side_values(session, run.id, name, run.step))
        return Response(small, media_type="application/json", headers={"Cache-Control": "no-cache"})
    series = curves.history(session, run.id, ("loss", "validation_loss"), first=first, last=last)
    train, val = series["loss"], series["validation_loss"]
    zone = verdicts.zone(run, curves.load(session, run.id, run.step))
    body = {"step": [s for s, _ in train], "loss": [v for _, v in train], "val": val, "zone": zone}
    return Response(orjson.dumps(body), media_type="application/json", headers={"Cache-Control": "no-cache"})


@router.get("/runs/{run_id}/log.txt")
def log_file(run_id: str, actor: ActorDep, session: SessionDep) -> Response:
    run = service.get(session, actor, run_id)
    return _download(log_text(session, run), f"run-{run.number}-log.txt", "text/plain")


@router.get("/runs/{run_id}/values.csv")
def values_file(run_id: str, actor: ActorDep, session: SessionDep) -> Response:
    """Every number of the run by step, for a spreadsheet."""
    run = service.get(session, actor, run_id)
    return _download(curves.as_csv(session, run.id), f"run-{run.number}-values.csv", "text/csv")


@router.get("/runs/{run_id}/recipe.yaml")
def recipe_file(run_id: str, actor: ActorDep, session: SessionDep) -> Response:
    run = service.get(session, actor, run_id)
    return _download(to_yaml(RecipeSpec.model_construct(**run.recipe)), f"run-{run.number}.yaml", "application/yaml")


def _download(text: str, name: str, media_type: str) -> Response:
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "X-Content-Type-Options": "nosniff"}
    return Response(text, media_type=media_type, headers=headers)


@router.post("/runs/{run_id}/pause")
def pause(run_id: str, actor: ActorDep, session: SessionDep) -> Response:
    service.request_pause(session, actor, run_id)
    return _to(f"/runs/{run_id}")


@router.post("/runs/{run_id}/resume")
def resume(run_id: str, actor: ActorDep, session: SessionDep) -> Response:
    service.resume(session, actor, run_id)
    return _to(f"/runs/{run_id}")


@router.post("/runs/{run_id}/stop")
def stop_and_keep(run_id: str, actor: ActorDep, session: SessionDep) -> Response:
    service.request_stop_and_keep(session, actor, run_id)
    return _to(f"/runs/{run_id}")


@router.post("/runs/{run_id}/cancel")
def cancel(run_id: str, actor: ActorDep, session: SessionDep) -> Response:
    service.request_cancel(session, actor, run_id)
    return _to(f"/runs/{run_id}")


@router.post("/runs/{run_id}/discard")
def discard(run_id: str, actor: ActorDep, session: SessionDep) -> Response:
    """Delete an ended run's weights for good; its curve, log and recipe stay."""
    freed = discarding.request(session, actor, run_id)
    response = _to(f"/runs/{run_id}")
    flash(response, _("Weights deleted"), _("%(size)s are free again.", size=size(freed)))
    return response


@router.post("/runs/{run_id}/restart")
def restart(run_id: str, actor: ActorDep, session: SessionDep) -> Response:
    service.request_restart(session, actor, run_id)
    return _to(f"/runs/{run_id}")


@router.post("/runs/{run_id}/adjust")
def adjust(request: Request, run_id: str, actor: ActorDep, session: SessionDep, values: FormValues) -> Response:
    """Change one parameter of a running training; a value that does not fit opens the dialog again."""
    form, errors = checked(AdjustForm, values)
    if form is not None:
        try:
            service.adjust(session, actor, run_id, name=form.name, value=form.value)
            response = _to(f"/runs/{run_id}")
            flash(response, _("Changed"), _("It holds from the run's next step on."))
            return response
        except Invalid as error:
            errors = error.fields
    return _page(request, session, actor, run_id, errors=errors, typed=values)


@router.post("/runs/{run_id}/clone")
def clone(run_id: str, actor: ActorDep, session: SessionDep) -> Response:
    """Make the recipe page show this run's recipe, base and version, ready to be changed and started."""
    run = service.get(session, actor, run_id, need="editor")
    recipe = RecipeSpec.model_validate(run.recipe)
    base: dict[str, Any] = {"source": recipe.base_source}
    if recipe.base_source == "model":
        parent = service.get_model(session, actor, run.parent_model_id or "")
        base |= parents.described(parent)
    elif recipe.base_source in ("folder", "hub"):
        base["entry_id"] = run.base_model_id
    recipes.adopt(session, actor, run.project_id, recipe, base=base, version_id=run.version_id)
    response = _to(f"/projects/{run.project_id}/recipe")
    flash(response, _("This page shows the recipe of “%(name)s” now", name=run.name))
    return response


@router.post("/runs/{run_id}/notices")
def add_notice(request: Request, run_id: str, actor: ActorDep, values: FormValues) -> Response:
    """Be told when the run ends. No transaction is open while the address is looked up."""
    with reading() as session:
        service.get(session, actor, run_id, need="editor")
    form, errors = checked(NoticeForm, values)
    try:
        if form is not None:
            if form.channel == "webhook":
                notices.check_address(form.target)
            with transaction() as session:
                notices.ask_for(session, actor, run_id, channel=form.channel, target=form.target)
            return _to(f"/runs/{run_id}#run-notices")
    except Invalid as error:
        errors = error.fields
    with reading() as session:
        return _page(request, session, actor, run_id, notice_errors=errors, typed=values)


@router.post("/runs/{run_id}/notices/{notice_id}/remove")
def remove_notice(run_id: str, notice_id: str, actor: ActorDep, session: SessionDep) -> Response:
    notices.forget(session, actor, run_id, notice_id)
    return _to(f"/runs/{run_id}#run-notices")


@router.post("/runs/{run_id}/queue")
def move_in_queue(run_id: str, actor: ActorDep, session: SessionDep, values: FormValues) -> Response:
    """Another place or another priority for a run that waits; back to the list, where the order is seen."""
    form = filled(QueueForm, values)
    if form.do in ordering.PRIORITIES:
        run = ordering.set_priority(session, actor, run_id, priority=form.do)
    else:
        run = ordering.reorder(session, actor, run_id, direction=cast(ordering.Direction, form.do))
    return _to(f"/projects/{run.project_id}/runs")


@router.post("/runs/{run_id}/again")
def again(run_id: str, actor: ActorDep, session: SessionDep, values: FormValues) -> Response:
    """A new run like this one; `change` is the one repair that the coach proposes. A doubled click is one run."""
    old = service.get(session, actor, run_id, need="editor")
    request_id = str(values.get("client_request_id") or new_id())[:64]
    if values.get("change") == "continue":
        return _to(f"/runs/{continuing.go_on_slower(session, actor, run_id, client_request_id=request_id).id}")
    changes: dict[str, Any] = {}
    if values.get("change") == "slower":
        changes["learning_rate"] = old.recipe["learning_rate"] / 3
    elif values.get("change") == "smaller":
        changes["micro_batch_size"] = verdicts.smaller_part(old.recipe["batch_size"], old.recipe["micro_batch_size"])
    run = service.retry(session, actor, run_id, client_request_id=request_id, changes=changes)
    return _to(f"/runs/{run.id}")
