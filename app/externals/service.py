"""The external models of a workspace: added, tried and removed by editors, asked by whoever may chat."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.accounts import audit
from app.accounts.service import Actor
from app.core import security
from app.core.db import reading, utcnow
from app.core.errors import AppError, Conflict, Invalid, NotFound
from app.externals.asking import Endpoint
from app.externals.models import ExternalModel
from app.projects import service as projects
from app.projects.models import Project

KIND = "external"
MOST = 50
GONE = "This external model was removed."


@dataclass(frozen=True)
class External:
    """An external model as something to ask, beside a project's own ones."""

    ref: str
    name: str
    host: str
    is_chat: bool = True
    system_prompt: str = ""


def listing(session: Session, actor: Actor, project_id: str) -> Sequence[ExternalModel]:
    """Those of the project's workspace, by name."""
    project = projects.get(session, actor, project_id)
    query = select(ExternalModel).where(ExternalModel.workspace_id == project.workspace_id)
    return session.scalars(query.order_by(func.lower(ExternalModel.name), ExternalModel.id)).all()


def resolve(session: Session, actor: Actor, project_id: str, ref: str) -> External:
    """The external model of "external:<id>" for a project. Raises NotFound for what is not of its workspace."""
    project = projects.get(session, actor, project_id)
    kind, _, key = ref.partition(":")
    found = session.get(ExternalModel, key) if kind == KIND else None
    if found is None or found.workspace_id != project.workspace_id:
        raise NotFound(GONE)
    return as_asked(found)


def as_asked(row: ExternalModel) -> External:
    """A row as something to ask."""
    return External(f"{KIND}:{row.id}", row.name, Endpoint(row.url, row.model).host)


def get(
    session: Session, actor: Actor, project_id: str, external_id: str, *, need: str = "editor"
) -> tuple[Project, ExternalModel]:
    """A project and an external model of its workspace. Raises NotFound, and Forbidden below the role."""
    project = projects.get(session, actor, project_id, need=need)
    row = session.get(ExternalModel, external_id)
    if row is None or row.workspace_id != project.workspace_id:
        raise NotFound(GONE)
    return project, row


def add(session: Session, actor: Actor, project_id: str, *, endpoint: Endpoint, name: str = "") -> ExternalModel:
    """Keep a model that was tried. Raises Conflict when the workspace has very many, Invalid for a name twice."""
    project = projects.get(session, actor, project_id, need="editor")
    known = listing(session, actor, project_id)
    if len(known) >= MOST:
        raise Conflict(f"A workspace keeps at most {MOST} external models. Remove one first.")
    name = name or endpoint.model[:80]
    if any(row.name == name for row in known):
        raise Invalid(fields={"name": f"“{name}” is already there. Give this one another name."})
    row = ExternalModel(
        workspace_id=project.workspace_id, name=name, url=endpoint.url, model=endpoint.model,
        sealed_key=_sealed(endpoint.key), tried_at=utcnow(), created_by=actor.user_id,
    )  # fmt: skip
    session.add(row)
    session.flush()
    _noted(session, actor, "external_model.add", row)
    return row


def change_key(session: Session, actor: Actor, project_id: str, external_id: str, *, key: str) -> ExternalModel:
    """Another key for the same address; it goes nowhere else."""
    _project, row = get(session, actor, project_id, external_id)
    row.sealed_key = _sealed(key)
    _noted(session, actor, "external_model.key", row)
    return row


def record_trial(session: Session, actor: Actor, project_id: str, external_id: str, *, problem: str) -> ExternalModel:
    """What a trial gave; an empty `problem`: it answered."""
    _project, row = get(session, actor, project_id, external_id)
    row.problem, row.tried_at = problem, utcnow()
    return row


def remove(session: Session, actor: Actor, project_id: str, external_id: str) -> str:
    """Forget a model and its key; what it said in chats stays. Returns its name."""
    _project, row = get(session, actor, project_id, external_id)
    _noted(session, actor, "external_model.remove", row)
    session.delete(row)
    return row.name


def endpoint_of(row: ExternalModel) -> Endpoint:
    """Where a row's model is asked, with its key. Raises Invalid when the installation's key file was exchanged."""
    try:
        key = security.decrypt(row.sealed_key) if row.sealed_key else ""
    except ValueError as error:
        raise Invalid("The key of this model can no longer be read. Enter it again under External models.") from error
    return Endpoint(row.url, row.model, key)


def endpoint(ref: str) -> Endpoint:
    """Where `ref` is asked, for a background thread; who may ask was checked before. Raises NotFound and Invalid."""
    with reading() as session:
        row = session.get(ExternalModel, ref.partition(":")[2])
        if row is None:
            raise NotFound(GONE)
        return endpoint_of(row)


def sentences(error: AppError) -> dict[str, str]:
    """A trial's failure as sentences of the form's fields."""
    fields = error.fields if isinstance(error, Invalid) else {}
    return fields or {"url": error.sentence}


def _sealed(key: str) -> str:
    return security.encrypt(key) if key else ""


def _noted(session: Session, actor: Actor, action: str, row: ExternalModel) -> None:
    details = {"name": row.name, "url": row.url}
    audit.record(session, actor, action, workspace_id=row.workspace_id, subject=row.id, details=details)
