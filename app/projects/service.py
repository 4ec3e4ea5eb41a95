"""Projects: the one gate through which everything that belongs to a project is reached."""

from sqlalchemy.orm import Session

from app.accounts.service import Actor
from app.core.errors import Forbidden, NotFound
from app.projects.models import Project


def get(session: Session, actor: Actor, project_id: str, *, need: str = "viewer") -> Project:
    """The project, for somebody whose role in its workspace is at least `need`.

    Raises NotFound for strangers, exactly as for an id that does not exist, and Forbidden below the role.
    """
    project = session.get(Project, project_id)
    if project is None or project.deleted_at is not None or actor.role_in(project.workspace_id) is None:
        raise NotFound
    if not actor.may(project.workspace_id, need):
        sentence = f"This needs the role “{need}” in the workspace. Ask its owner."
        raise Forbidden(sentence, workspace_id=project.workspace_id)
    return project
