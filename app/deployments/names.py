"""Ids of models at the API: readable, unique in a workspace, and the same for ever.

"support-sorter-run-3" is what run 3 of a project left behind; "support-sorter-run-3:step-120" one of its checkpoints.
"""

import re
import unicodedata
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.accounts.service import Actor
from app.core.errors import NotFound
from app.deployments.models import ApiName
from app.inference import targets
from app.inference.targets import Target
from app.projects import service as projects
from app.projects.models import Project
from app.runs.models import OPEN_STATES, Checkpoint, Model, Run

_ID = re.compile(r"^([a-z0-9-]{1,60})-run-([0-9]{1,9})(?::step-([0-9]{1,9}))?$")
_MAX_SLUG = 40


@dataclass(frozen=True)
class Published:
    """A model as `/v1/models` lists it. `parent` is the run's model for a checkpoint, once there is one."""

    id: str
    name: str
    ref: str
    project_id: str
    created_at: datetime
    digest: str
    parent: str | None = None


def slug_of(name: str) -> str:
    """The readable part: lower-case letters, digits and hyphens. Clients treat names like "o1-…" specially."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    slug = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:_MAX_SLUG].strip("-") or "model"
    return f"model-{slug}" if re.match(r"o\d", slug) else slug


def missing_names(session: Session, workspace_id: str) -> list[Project]:
    """Projects of the workspace whose models have no id yet, oldest first."""
    query = (
        select(Project)
        .outerjoin(ApiName, ApiName.project_id == Project.id)
        .where(Project.workspace_id == workspace_id, ApiName.project_id.is_(None))
        .order_by(Project.created_at, Project.id)
    )
    return list(session.scalars(query))


def give_names(session: Session, workspace_id: str) -> None:
    """Give every project of the workspace its name at the API; a taken name gets a number."""
    taken = set(session.scalars(select(ApiName.slug).where(ApiName.workspace_id == workspace_id)))
    for project in missing_names(session, workspace_id):
        wanted = slug = slug_of(project.name)
        number = 2
        while slug in taken:
            slug, number = f"{wanted}-{number}", number + 1
        taken.add(slug)
        session.add(ApiName(project_id=project.id, workspace_id=workspace_id, slug=slug))
    session.flush()


def published(
    session: Session, actor: Actor, *, project_id: str | None = None, slug: str = "", number: int = 0
) -> list[Published]:
    """Every finished model and kept checkpoint that the actor may ask, newest first; or those of one run. Runs that go
    on have checkpoints only, and come last."""
    only = project_id or actor.project_id
    query = (
        select(
            ApiName.slug,
            Run.number,
            Run.id.label("run_id"),
            Run.name.label("run"),
            Run.project_id,
            Model,
            Project.name.label("project"),
        )
        .select_from(Run)
        .join(Project, Project.id == Run.project_id)
        .join(ApiName, ApiName.project_id == Project.id)
        .outerjoin(Model, (Model.run_id == Run.id) & Model.deleted_at.is_(None))
        .where(Project.workspace_id.in_(actor.roles), Project.deleted_at.is_(None))
        .where(Model.id.is_not(None) | Run.state.in_(OPEN_STATES))
        .order_by(Model.id.is_(None), Model.created_at.desc(), Model.id, Run.created_at.desc())
    )
    if only is not None:
        query = query.where(Project.id == only)
    if slug:
        query = query.where(ApiName.slug == slug, Run.number == number)
    rows = session.execute(query).all()
    kept = select(Checkpoint).where(Checkpoint.run_id.in_([row.run_id for row in rows]), Checkpoint.state == "kept")
    checkpoints: dict[str, list[Checkpoint]] = {}
    for checkpoint in session.scalars(kept.order_by(Checkpoint.step.desc())):
        checkpoints.setdefault(checkpoint.run_id, []).append(checkpoint)
    found = []
    for row in rows:
        model: Model | None = row.Model
        name = f"{row.slug}-run-{row.number}"
        spoken = f"{row.project} · {model.name if model else row.run}"
        if model is not None:
            about = (row.project_id, model.created_at)
            found.append(Published(name, spoken, f"model:{model.id}", *about, model.digest))
        for one in checkpoints.get(row.run_id, []):
            found.append(
                Published(
                    f"{name}:step-{one.step}",
                    f"{spoken} · step {one.step:,}",
                    f"checkpoint:{one.id}",
                    row.project_id,
                    one.created_at,
                    one.manifest_sha256,
                    name if model else None,
                )
            )
    return found


def not_found() -> NotFound:
    """The answer for an id that does not exist or belongs to somebody else."""
    return NotFound(
        "There is no such model, or this key may not use it. GET /v1/models lists the ids.",
        code="model_not_found",
        param="model",
    )


def find(session: Session, actor: Actor, model_id: str) -> Published:
    """One published model by its id. Raises NotFound."""
    parts = _ID.fullmatch(model_id)
    if parts is None:
        raise not_found()
    for one in published(session, actor, slug=parts.group(1), number=int(parts.group(2))):
        if one.id == model_id:
            return one
    if sentence := _retired(session, actor, parts.group(1), int(parts.group(2))):
        raise NotFound(sentence, code="model_not_found", param="model")
    raise not_found()


def _retired(session: Session, actor: Actor, slug: str, number: int) -> str:
    """Why the model of this id is gone for good, for those who may see its project; else an empty text."""
    query = (
        select(Model)
        .join(Run, Run.id == Model.run_id)
        .join(ApiName, ApiName.project_id == Model.project_id)
        .where(ApiName.workspace_id.in_(actor.roles), ApiName.slug == slug, Run.number == number)
    )
    model = session.scalar(query)
    if model is None:
        return ""
    projects.get(session, actor, model.project_id)
    return model.retired_because


def target_of(session: Session, actor: Actor, model_id: str) -> tuple[Published, Target]:
    """What the model server needs for a model id. Raises NotFound."""
    one = find(session, actor, model_id)
    projects.get(session, actor, one.project_id)
    return one, targets.resolve(session, actor, one.project_id, one.ref)
