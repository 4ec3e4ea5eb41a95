"""Projects: the one gate through which everything that belongs to a project is reached, and their objective."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.accounts import audit
from app.accounts.service import Actor
from app.core.db import utcnow
from app.core.errors import Gone, Invalid, NotFound
from app.projects import gallery
from app.projects.models import Objective, Project

RESTORABLE = timedelta(days=30)


def get(session: Session, actor: Actor, project_id: str, *, need: str = "viewer") -> Project:
    """The project, for somebody whose role in its workspace is at least `need`.

    Raises NotFound for strangers, exactly as for an id that does not exist, and Forbidden below the role.
    """
    project = session.get(Project, project_id)
    if project is None or project.deleted_at is not None:
        raise NotFound
    if actor.project_id is not None and actor.project_id != project.id:  # a key for one project only
        raise NotFound
    actor.require(project.workspace_id, need)
    return project


def visible(session: Session, actor: Actor, *, search: str = "") -> Sequence[Project]:
    """Every project of the actor's workspaces whose name holds `search`, the last changed first."""
    query = select(Project).where(Project.workspace_id.in_(list(actor.roles)), Project.deleted_at.is_(None))
    if search:
        query = query.where(Project.name.icontains(search, autoescape=True))
    return session.scalars(query.order_by(Project.updated_at.desc(), Project.id)).all()


def workspaces_for(actor: Actor, *, need: str = "editor") -> list[str]:
    """The workspaces in which the actor may create projects, the first joined first."""
    return [workspace_id for workspace_id in actor.roles if actor.may(workspace_id, need)]


def create(
    session: Session, actor: Actor, *, name: str, template_key: str, workspace_id: str = "", demo: str = ""
) -> Project:
    """A project with the objective of its template. Raises Forbidden without a workspace to write in."""
    home = workspace_id or next(iter(workspaces_for(actor)), "") or next(iter(actor.roles), "")
    actor.require(home, "editor")
    start = gallery.template(template_key)
    project = Project(workspace_id=home, name=name, template=start.key, created_by=actor.user_id, demo=demo)
    session.add(project)
    session.flush()
    objective = Objective(
        project_id=project.id,
        task=start.task,
        audience=start.audience,
        tone=start.tone,
        must_never=list(start.must_never),
        samples=[dict(sample) for sample in start.samples],
    )
    objective.system_prompt = instruction(objective)
    session.add(objective)
    audit.record(
        session, actor, "project.create", workspace_id=home, subject=project.id, details={"template": start.key}
    )
    return project


def rename(session: Session, actor: Actor, project_id: str, *, name: str) -> Project:
    """Give a project another name."""
    project = get(session, actor, project_id, need="editor")
    project.name = name
    audit.record(session, actor, "project.rename", workspace_id=project.workspace_id, subject=project.id)
    return project


def delete(session: Session, actor: Actor, project_id: str) -> Project:
    """Take a project out of sight. It can be restored for thirty days."""
    project = get(session, actor, project_id, need="owner")
    project.deleted_at = utcnow()
    audit.record(session, actor, "project.delete", workspace_id=project.workspace_id, subject=project.id)
    return project


def restore(session: Session, actor: Actor, project_id: str) -> Project:
    """Undo a deletion. Raises Gone after thirty days."""
    project = session.get(Project, project_id)
    if project is None:
        raise NotFound
    actor.require(project.workspace_id, "owner")
    if project.deleted_at is not None and utcnow() - project.deleted_at > RESTORABLE:
        raise Gone("This project was deleted more than thirty days ago and cannot be brought back.")
    project.deleted_at = None
    audit.record(session, actor, "project.restore", workspace_id=project.workspace_id, subject=project.id)
    return project


@dataclass(frozen=True)
class ObjectiveText:
    """An objective as people write it; empty rows are already gone."""

    task: str = ""
    audience: str = ""
    tone: str = ""
    must_never: list[str] = field(default_factory=list)
    samples: list[dict[str, str]] = field(default_factory=list)


def objective(session: Session, actor: Actor, project_id: str) -> Objective:
    """The project's objective; an empty one where none was written."""
    project = get(session, actor, project_id)
    return session.get(Objective, project.id) or Objective(
        project_id=project.id, task="", audience="", tone="", must_never=[], samples=[], system_prompt=""
    )


def save_objective(session: Session, actor: Actor, project_id: str, *, text: ObjectiveText) -> Objective:
    """Write the objective and the instruction that follows from it. Raises Invalid for a sample without a question."""
    project = get(session, actor, project_id, need="editor")
    if any(not sample["question"] for sample in text.samples):
        raise Invalid(fields={"samples": "One ideal answer has no question. Write the question, or remove the row."})
    found = session.get(Objective, project.id)
    if found is None:
        found = Objective(project_id=project.id)
        session.add(found)
    found.task, found.audience, found.tone = text.task, text.audience, text.tone
    found.must_never, found.samples = text.must_never, text.samples
    found.system_prompt = instruction(found)
    project.updated_at = utcnow()
    audit.record(session, actor, "objective.save", workspace_id=project.workspace_id, subject=project.id)
    return found


def instruction(objective: Objective | ObjectiveText) -> str:
    """The system prompt that says the objective to a model: task, reader, tone, limits."""
    parts = [objective.task.strip()]
    if objective.audience.strip():
        parts.append(f"You write for: {objective.audience.strip()}")
    if objective.tone.strip():
        parts.append(f"Tone: {objective.tone.strip()}")
    if objective.must_never:
        parts.append("Never:\n" + "\n".join(f"- {rule}" for rule in objective.must_never))
    return "\n\n".join(part for part in parts if part)
