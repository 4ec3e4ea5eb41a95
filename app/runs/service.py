"""Runs: start, watch, steer, end. A person's request changes the row; the worker that owns the run obeys it."""

import hashlib
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import orjson
from pydantic import ValidationError
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app.accounts.service import Actor
from app.contracts.recipe import ModelFiles, RecipeSpec
from app.core import events, storage
from app.core.errors import Conflict, Invalid, NotFound
from app.core.numbers import duration
from app.core.queue import ring
from app.datasets.models import DatasetVersion
from app.projects import service as projects
from app.projects.models import Objective, Project
from app.recipes.models import BaseModelEntry
from app.runs import pace
from app.runs.finishing import files_of
from app.runs.models import END_STATES, LIVE_STATES, Checkpoint, Model, Run
from app.runs.states import move, note

TASK = "runs.train"
_LIBRARIES = ("torch", "transformers", "peft", "tokenizers", "safetensors", "numpy")
ADJUSTABLE = {
    "learning_rate": (0.0, 10.0),
    "epochs": (0.0, 1000.0),
    "evaluate_every_steps": (1.0, 1_000_000.0),
    "max_hours": (0.0, 1000.0),
}


def start(
    session: Session,
    actor: Actor,
    *,
    project_id: str,
    version_id: str,
    recipe: RecipeSpec,
    client_request_id: str,
    name: str = "",
    base_model_id: str | None = None,
    parent_model_id: str | None = None,
    estimate: dict[str, Any] | None = None,
) -> Run:
    """Freeze everything that the training depends on and queue it. The same `client_request_id` gives the same run.

    `base_model_id` names the entry of the catalogue for the sources starter, folder and hub; the source "model" takes
    `recipe.base_ref`. Raises Invalid when version or base cannot be trained on, Conflict when the id was used for
    something else.
    """
    project = projects.get(session, actor, project_id, need="editor")
    # One start at a time in a project: numbers stay without gaps and a doubled click finds the first one's run.
    session.execute(select(Project.id).where(Project.id == project.id).with_for_update())
    frozen = _freeze(session, project, version_id, recipe, base_model_id, parent_model_id)
    known = session.scalar(select(Run).where(Run.project_id == project.id, Run.client_request_id == client_request_id))
    if known is not None:
        if known.frozen.get("spec_sha256") != frozen["spec_sha256"]:
            raise Conflict("This form was already sent with other values. Reload the recipe page, then start again.")
        return known
    number = 1 + (session.scalar(select(func.max(Run.number)).where(Run.project_id == project.id)) or 0)
    run = Run(
        project_id=project.id,
        workspace_id=project.workspace_id,
        number=number,
        name=name.strip()[:100] or f"Run {number}",
        client_request_id=client_request_id,
        version_id=version_id,
        base_model_id=base_model_id,
        parent_model_id=parent_model_id or (recipe.base_ref if recipe.base_source == "model" else None),
        recipe=recipe.model_dump(mode="json"),
        frozen=frozen,
        estimate=estimate or {},
        created_by=actor.user_id,
    )
    session.add(run)
    session.flush()
    note(session, run.id, "Queued.", kind="queued")
    ring(session, TASK, run.id)
    return run


def get(session: Session, actor: Actor, run_id: str, *, need: str = "viewer") -> Run:
    """The run, for somebody who may see its project. Raises NotFound or Forbidden like the project's own gate."""
    run = session.get(Run, run_id)
    if run is None:
        raise NotFound
    projects.get(session, actor, run.project_id, need=need)
    return run


def listing(session: Session, actor: Actor, project_id: str) -> Sequence[Run]:
    """All runs of a project, newest first."""
    projects.get(session, actor, project_id)
    return session.scalars(select(Run).where(Run.project_id == project_id).order_by(Run.number.desc())).all()


def neighbours(session: Session, run: Run) -> list[tuple[str, str]]:
    """Id and name of the newest runs of the same project that have a curve to lay over this one's."""
    query = select(Run.id, Run.name).where(Run.project_id == run.project_id, Run.id != run.id, Run.step > 0)
    return [(row.id, row.name) for row in session.execute(query.order_by(Run.number.desc()).limit(5))]


def checkpoints(session: Session, run: Run) -> Sequence[Checkpoint]:
    """The run's kept checkpoints, by step."""
    query = select(Checkpoint).where(Checkpoint.run_id == run.id, Checkpoint.state == "kept")
    return session.scalars(query.order_by(Checkpoint.step)).all()


def model_of(session: Session, run: Run) -> Model | None:
    """What the run left behind, unless it was deleted."""
    return session.scalar(select(Model).where(Model.run_id == run.id, Model.deleted_at.is_(None)))


def request_cancel(session: Session, actor: Actor, run_id: str) -> Run:
    """End the run without a model. Raises Conflict when it has already ended."""
    run = get(session, actor, run_id, need="editor")
    if run.state in END_STATES:
        raise Conflict("This run has already ended.")
    if run.state == "cancelling":
        return run
    to = "cancelling" if run.state in LIVE_STATES else "cancelled"
    move(session, run.id, to, only_from=(run.state,), want="cancel", diary=_asked(actor, "Cancelled"), kind="cancel")
    return run


def request_pause(session: Session, actor: Actor, run_id: str) -> Run:
    """Finish the step, save, and let go of the machine. Raises Conflict when there is nothing to pause."""
    run = get(session, actor, run_id, need="editor")
    if run.state in ("paused", "pausing"):
        return run
    if run.state not in ("queued", "waiting", "starting", "running"):
        raise Conflict("This run can no longer be paused.")
    to = "pausing" if run.state in LIVE_STATES else "paused"
    move(session, run.id, to, only_from=(run.state,), want="pause", diary=_asked(actor, "Paused"), kind="pause")
    return run


def resume(session: Session, actor: Actor, run_id: str) -> Run:
    """Queue a paused or waiting run again; it goes on from its last checkpoint."""
    run = get(session, actor, run_id, need="editor")
    if run.state == "queued":
        return run
    if run.state not in ("paused", "waiting"):
        raise Conflict("Only a paused or waiting run can be resumed.")
    _queue_again(session, run, want="run", diary=_asked(actor, "Resumed"), kind="resume")
    return run


def request_stop_and_keep(session: Session, actor: Actor, run_id: str) -> Run:
    """End the training now and make a model of the best checkpoint. Raises Conflict when there is nothing to keep."""
    run = get(session, actor, run_id, need="editor")
    if run.state in ("starting", "running"):
        session.execute(update(Run).where(Run.id == run.id, Run.state == run.state).values(want="stop"))
        note(session, run.id, _asked(actor, "Stop and keep"), kind="stop")
        session.expire(run)
    elif run.state in ("paused", "waiting", "queued") and checkpoints(session, run):
        _queue_again(session, run, want="stop", diary=_asked(actor, "Stop and keep"), kind="stop")
    else:
        raise Conflict("There is nothing to keep yet, or the run has already ended.")
    return run


def request_restart(session: Session, actor: Actor, run_id: str) -> Run:
    """End the trainer of a run that stands still; it goes on from its last checkpoint at once. Raises Conflict."""
    run = get(session, actor, run_id, need="editor")
    if run.want == "restart":
        return run
    query = update(Run).where(Run.id == run.id, Run.state.in_(("starting", "running")), Run.want == "run")
    result: Any = session.execute(query.values(want="restart").execution_options(synchronize_session=False))
    if result.rowcount != 1:
        raise Conflict("Only a run that is training can be restarted.")
    note(session, run.id, _asked(actor, "Restart"), kind="restart")
    session.expire(run)
    return run


def adjust(session: Session, actor: Actor, run_id: str, *, name: str, value: float) -> Run:
    """Change a parameter from the next step on. Raises Invalid outside its bounds, Conflict when the run has ended."""
    run = get(session, actor, run_id, need="editor")
    if run.state in END_STATES or run.state in ("finalizing", "cancelling"):
        raise Conflict("This run has already ended.")
    if name not in ADJUSTABLE:
        raise Invalid(fields={"name": "This parameter cannot be changed while the run is going on."})
    low, high = ADJUSTABLE[name]
    if not low < value <= high and not (low == value and name == "evaluate_every_steps"):
        raise Invalid(fields={"value": f"Choose a value above {low:g} and up to {high:g}."})
    if name == "evaluate_every_steps" and value != int(value):
        raise Invalid(fields={"value": "Write a whole number of steps."})
    run.adjustments = {**run.adjustments, name: value, **(_steps_of_hours(run, value) if name == "max_hours" else {})}
    session.flush()
    events.announce(session, f"run:{run.id}", "adjusting", {"name": name, "value": value})
    return run


def _steps_of_hours(run: Run, hours: float) -> dict[str, Any]:
    """Steps planned anew for other hours, so that the learning rate has come down when they are used up."""
    if 3600 * hours <= run.spent_s:
        used = duration(run.spent_s)
        sentence = f"It has taken {used} already. Choose more, or stop and keep the best to end it now."
        raise Invalid(fields={"value": sentence})
    steps = pace.steps_in(run, hours)
    # Steps that stand beside hours were made for them; others are a person's own and stay the most.
    own = None if run.recipe.get("max_hours") else run.recipe.get("max_steps")
    return {"max_steps": min(steps, own or steps)} if steps else {}


def retry(
    session: Session, actor: Actor, run_id: str, *, client_request_id: str, changes: dict[str, Any] | None = None
) -> Run:
    """A new run like an ended one, with some values of the recipe changed."""
    run = get(session, actor, run_id, need="editor")
    if run.state not in END_STATES:
        raise Conflict("This run is still going on.")
    if run.version_id is None:
        raise Conflict("The dataset version of this run was deleted. Start a new run from the recipe page.")
    try:
        recipe = RecipeSpec.model_validate({**run.recipe, **(changes or {})})
    except ValidationError as error:
        places = {".".join(str(part) for part in one["loc"]) or "recipe": one["msg"] for one in error.errors()}
        raise Invalid(fields=places) from None
    return start(
        session,
        actor,
        project_id=run.project_id,
        version_id=run.version_id,
        recipe=recipe,
        client_request_id=client_request_id,
        name=f"{run.name[:90]}, again",
        base_model_id=run.base_model_id,
        parent_model_id=run.parent_model_id,
    )


def get_model(session: Session, actor: Actor, model_id: str, *, need: str = "viewer") -> Model:
    """A finished model, for somebody who may see its project."""
    model = session.get(Model, model_id)
    if model is None:
        raise NotFound
    projects.get(session, actor, model.project_id, need=need)
    if model.deleted_at is not None:
        raise NotFound(model.retired_because)
    return model


def models_of(session: Session, actor: Actor, project_id: str) -> Sequence[Model]:
    """The project's models, newest first."""
    projects.get(session, actor, project_id)
    query = select(Model).where(Model.project_id == project_id, Model.deleted_at.is_(None))
    return session.scalars(query.order_by(Model.created_at.desc(), Model.id)).all()


def checkpoint_files(session: Session, actor: Actor, checkpoint_id: str) -> tuple[Checkpoint, ModelFiles]:
    """A kept checkpoint and its weights, ready to be loaded by the model server."""
    checkpoint = session.get(Checkpoint, checkpoint_id)
    if checkpoint is None:
        raise NotFound
    run = get(session, actor, checkpoint.run_id)
    folder = storage.run_dir(run.id) / checkpoint.dir / "weights"
    if checkpoint.state != "kept" or not folder.is_dir():
        raise NotFound(
            _retired(session, run)
            or "This checkpoint is no longer kept: newer ones took its place, or its run's weights were deleted. "
            "Load the page again and choose another."
        )
    method = run.recipe["method"]
    kind = {"lora": "lora", "last_layers": "layers"}.get(method, "whole")
    return checkpoint, files_of(run, str(folder), kind)


def _retired(session: Session, run: Run) -> str:
    """Why nothing of this run can be used any more, or an empty text."""
    found = session.get(DatasetVersion, run.version_id) if run.version_id else None
    return found.error if found is not None and found.state == "retired" else ""


def _queue_again(session: Session, run: Run, *, want: str, diary: str, kind: str) -> None:
    if sentence := _retired(session, run):
        raise Conflict(sentence)
    changes: dict[str, Any] = {"want": want, "reason": "", "sentence": "", "next_attempt_at": None}
    if run.state == "queued":
        session.execute(update(Run).where(Run.id == run.id, Run.state == "queued").values(**changes))
        note(session, run.id, diary, kind=kind)
        session.expire(run)
    else:
        move(session, run.id, "queued", only_from=(run.state,), diary=diary, kind=kind, stalled_attempts=0, **changes)
    ring(session, TASK, run.id)


def _asked(actor: Actor, what: str) -> str:
    return f"{what} by {actor.name}." if actor.name else f"{what}."


def _freeze(
    session: Session,
    project: Project,
    version_id: str,
    recipe: RecipeSpec,
    base_model_id: str | None,
    parent_model_id: str | None,
) -> dict[str, Any]:
    chosen = session.get(DatasetVersion, version_id)
    if chosen is None or chosen.project_id != project.id:
        raise Invalid(fields={"version_id": "Choose a dataset version of this project."})
    if chosen.state == "retired":
        raise Invalid(fields={"version_id": chosen.error})
    if chosen.state != "succeeded" or not chosen.train_rows:
        raise Invalid(fields={"version_id": "This dataset version has no training rows, or is still being made."})
    base, about = _base(session, project, recipe, base_model_id, parent_model_id)
    objective = session.get(Objective, project.id)
    dataset = {
        "version": chosen.number,
        "content_hash": chosen.content_hash,
        "manifest_sha256": chosen.manifest_sha256,
        "train_rows": chosen.train_rows,
        "kind": chosen.kind,
    }
    frozen: dict[str, Any] = {
        "version_id": chosen.id,
        "dataset": dataset,
        "base": base.model_dump() if base else None,
        "base_about": about,
        "system_prompt": objective.system_prompt if objective and recipe.use_instruction else "",
    }
    parts = [recipe.model_dump(mode="json"), frozen]
    frozen["spec_sha256"] = hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()
    frozen["libraries"] = _libraries()
    return frozen


def _base(
    session: Session, project: Project, recipe: RecipeSpec, base_model_id: str | None, parent_model_id: str | None
) -> tuple[ModelFiles | None, dict[str, Any]]:
    """The base's files, and its name, revision and licence. Raises Invalid when it is not there."""
    if recipe.base_source == "scratch":
        return None, {}
    if recipe.base_source == "model":
        parent = session.get(Model, parent_model_id or recipe.base_ref)
        if parent is None or parent.project_id != project.id or parent.deleted_at is not None:
            raise Invalid(fields={"base": "Choose a finished model of this project as the base."})
        return ModelFiles.model_validate(parent.files), {"name": parent.name, "digest": parent.digest}
    entry = session.get(BaseModelEntry, base_model_id) if base_model_id else None
    if entry is None or entry.workspace_id != project.workspace_id:
        raise Invalid(fields={"base": "Choose a base model of this workspace."})
    if entry.state != "succeeded" or not entry.folder:
        raise Invalid(fields={"base": f"{entry.name} is not ready yet: wait until it is downloaded and checked."})
    about = {
        "name": entry.name,
        "source": entry.source,
        "ref": entry.ref,
        "revision": entry.revision,
        "licence": entry.licence,
        "files": entry.details.get("files", {}),
    }
    return ModelFiles(base_dir=entry.folder), about


def _libraries() -> dict[str, str]:
    """Installed versions of what the result depends on; what the trainer used is in the model's run.json."""
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
