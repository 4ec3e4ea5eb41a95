"""OpenAI's fine-tuning words for the project's real runs: what clients send and get back."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.accounts.service import Actor
from app.contracts.recipe import RecipeSpec
from app.core.db import new_id
from app.core.errors import BadRequest
from app.deployments import files, names, wire
from app.deployments.models import ApiName
from app.deployments.wire import Number, Whole
from app.projects.models import Project
from app.recipes import service as recipes
from app.recipes.models import BaseModelEntry
from app.runs import service as runs
from app.runs.models import Run, RunEvent

JOB, CHECKPOINT, EVENT = "ftjob-", "ftckpt_", "ftevent-"
# Our states in OpenAI's words; the others are called the same.
_STATES = {
    "waiting": "queued",
    "starting": "running",
    "finalizing": "running",
    "pausing": "running",
    "cancelling": "running",
}
Auto = Literal["auto"]


class Hyperparameters(BaseModel):
    """OpenAI's three, and the recipe's hours; “auto” leaves the value to the recipe."""

    n_epochs: Auto | Annotated[Number, Field(gt=0, le=1000)] = "auto"
    batch_size: Auto | Annotated[Whole, Field(ge=1, le=4096)] = "auto"
    learning_rate_multiplier: Auto | Annotated[Number, Field(gt=0, le=100)] = "auto"
    max_hours: Auto | Annotated[Number, Field(gt=0, le=1000)] = "auto"


class Supervised(BaseModel):
    hyperparameters: Hyperparameters | None = None


class MethodChoice(BaseModel):
    type: Literal["supervised"] = "supervised"
    supervised: Supervised | None = None


class JobRequest(BaseModel):
    """The body of POST /v1/fine_tuning/jobs. Unknown fields are ignored, as OpenAI's clients expect."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    model: str = Field(min_length=1, max_length=200)
    training_file: str = Field(min_length=1, max_length=60)
    validation_file: str | None = None
    hyperparameters: Hyperparameters | None = None
    method: MethodChoice | None = None
    suffix: str | None = Field(None, max_length=64)
    seed: Annotated[Whole, Field(ge=0, le=2**31 - 1)] | None = None

    def chosen(self) -> Hyperparameters:
        """The hyperparameters, wherever the client wrote them."""
        inner = self.method.supervised.hyperparameters if self.method and self.method.supervised else None
        return inner or self.hyperparameters or Hyperparameters()


def start(session: Session, actor: Actor, ask: JobRequest, request_id: str = "") -> Run:
    """Start a run on a frozen version, with the recipe that its project's page would propose.

    Raises NotFound for a file that is not the key's, BadRequest for what cannot be trained.
    """
    if ask.validation_file:
        raise BadRequest(
            "Validation rows are taken from the training file by the project's split; leave validation_file out.",
            code="unsupported_parameter",
            param="validation_file",
        )
    version = files.ready(session, actor, ask.training_file)
    base = _base(session, session.get_one(Project, version.project_id).workspace_id, ask.model)
    ready = recipes.proposed(session, actor, version, base=base)
    if overrides := _overrides(ask, ready.recipe):
        ready = recipes.proposed(session, actor, version, base=base, overrides=overrides)
    return runs.start(
        session,
        actor,
        project_id=version.project_id,
        version_id=version.id,
        recipe=ready.recipe,
        client_request_id=request_id or new_id(),
        name=ask.suffix or "",
        base_model_id=ready.base_model_id,
        estimate=ready.estimate,
    )


def _overrides(ask: JobRequest, proposed: RecipeSpec) -> dict[str, Any]:
    """What the request wants otherwise than it is proposed, by field of the recipe."""
    wanted = ask.chosen()
    overrides: dict[str, Any] = {}
    if wanted.n_epochs != "auto":
        overrides["epochs"] = float(wanted.n_epochs)
    if wanted.batch_size != "auto":
        overrides["batch_size"] = wanted.batch_size
        # The largest part of the batch that fits at a time and divides it.
        fits = min(proposed.micro_batch_size, wanted.batch_size)
        overrides["micro_batch_size"] = next(n for n in range(fits, 0, -1) if wanted.batch_size % n == 0)
    if wanted.learning_rate_multiplier != "auto":
        overrides["learning_rate"] = proposed.learning_rate * wanted.learning_rate_multiplier
    if wanted.max_hours != "auto":
        overrides["max_hours"] = float(wanted.max_hours)
    if ask.seed is not None:
        overrides["seed"] = ask.seed
    return overrides


def _base(session: Session, workspace_id: str, name: str) -> dict[str, Any]:
    """What the recipe starts from: “starter”, “scratch”, or a base model of the workspace by its name or address."""
    if name in ("starter", "scratch"):
        return {"source": name}
    query = select(BaseModelEntry).where(
        BaseModelEntry.workspace_id == workspace_id,
        BaseModelEntry.state == "succeeded",
        (BaseModelEntry.name == name) | (BaseModelEntry.ref == name),
    )
    entry = session.scalars(query.order_by(BaseModelEntry.created_at.desc())).first()
    if entry is None:
        raise BadRequest(
            "There is no such base model here. Take “starter”, “scratch”, or the name of one from the recipe page.",
            code="model_not_found",
            param="model",
        )
    return {"source": "starter"} if entry.source == "starter" else {"source": entry.source, "entry_id": entry.id}


def jobs(session: Session, actor: Actor) -> list[Run]:
    """Runs of every project that the key opens, newest first."""
    query = (
        select(Run)
        .join(Project, Project.id == Run.project_id)
        .where(Project.workspace_id.in_(list(actor.roles)), Project.deleted_at.is_(None))
        .order_by(Run.created_at.desc(), Run.id)
    )
    if actor.project_id is not None:
        query = query.where(Project.id == actor.project_id)
    return list(session.scalars(query))


def job_of(session: Session, actor: Actor, job_id: str, *, need: str = "viewer") -> Run:
    """The run behind a job's id. Raises NotFound."""
    return runs.get(session, actor, job_id.removeprefix(JOB), need=need)


def job_object(session: Session, run: Run) -> dict[str, Any]:
    """A run as OpenAI's fine-tuning job."""
    recipe = run.recipe
    used = {
        "n_epochs": recipe.get("epochs", "auto"),
        "batch_size": recipe.get("batch_size", "auto"),
        "learning_rate_multiplier": 1,
    }
    if run.max_hours:
        used["max_hours"] = run.max_hours
    about = run.frozen.get("base_about") or {}
    failed = run.state == "failed"
    return {
        "id": JOB + run.id,
        "object": "fine_tuning.job",
        "created_at": wire.seconds(run.created_at),
        "finished_at": _seconds(run.ended_at),
        "model": about.get("name") or ("scratch" if recipe.get("method") == "scratch" else "starter"),
        "fine_tuned_model": model_name(session, run) if run.state == "succeeded" else None,
        "organization_id": run.workspace_id,
        "status": _STATES.get(run.state, run.state),
        "hyperparameters": used,
        "method": {"type": "supervised", "supervised": {"hyperparameters": used}},
        "training_file": files.id_of_version(session, run.version_id),
        "validation_file": None,
        "result_files": [],
        "trained_tokens": run.tokens_seen or None,
        "error": {"code": run.reason or "failed", "message": run.sentence, "param": None} if failed else None,
        "seed": recipe.get("seed", 0),
        "estimated_finish": None,
        "integrations": [],
        "metadata": {"name": run.name, "step": str(run.step), "total_steps": str(run.total_steps)},
    }


def model_name(session: Session, run: Run) -> str | None:
    """The id that the run's model answers to at this interface; None when it is gone."""
    names.give_names(session, run.workspace_id)
    name = session.get(ApiName, run.project_id)
    return f"{name.slug}-run-{run.number}" if name and runs.model_of(session, run) else None


def events(session: Session, run: Run) -> list[dict[str, Any]]:
    """The run's diary, newest first."""
    query = select(RunEvent).where(RunEvent.run_id == run.id).order_by(RunEvent.id.desc())
    return [
        {
            "id": f"{EVENT}{row.id}",
            "object": "fine_tuning.job.event",
            "created_at": wire.seconds(row.at),
            "level": {"warning": "warn"}.get(row.level, row.level),
            "message": row.sentence,
            "type": "message",
            "data": {"step": row.step} if row.step is not None else {},
        }
        for row in session.scalars(query)
    ]


def checkpoints(session: Session, run: Run) -> list[dict[str, Any]]:
    """The run's kept checkpoints, newest first; each can be asked by its name."""
    names.give_names(session, run.workspace_id)
    name = session.get(ApiName, run.project_id)
    return [
        {
            "id": CHECKPOINT + one.id,
            "object": "fine_tuning.job.checkpoint",
            "created_at": wire.seconds(one.created_at),
            "fine_tuned_model_checkpoint": f"{name.slug if name else ''}-run-{run.number}:step-{one.step}",
            "fine_tuning_job_id": JOB + run.id,
            "step_number": one.step,
            "metrics": {"step": one.step, "valid_loss": one.validation_loss},
        }
        for one in reversed(runs.checkpoints(session, run))
    ]


def page(rows: list[dict[str, Any]], after: str, limit: int) -> dict[str, Any]:
    """A page of a list as clients walk it: by the last id."""
    ids = [str(row["id"]) for row in rows]
    first = ids.index(after) + 1 if after in ids else 0
    shown = rows[first : first + limit]
    return {
        "object": "list",
        "data": shown,
        "has_more": first + limit < len(rows),
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
    }


def _seconds(at: datetime | None) -> int | None:
    return None if at is None else wire.seconds(at)
