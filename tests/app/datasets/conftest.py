"""A workspace with a project, and the tasks run in this process."""

from dataclasses import dataclass

import pytest

from app.accounts.models import User, Workspace
from app.accounts.service import Actor
from app.core.db import new_id, transaction
from app.projects.models import Project


@dataclass(frozen=True)
class Place:
    """Ada owns the project; Bob is a stranger; Vera may only look."""

    project_id: str
    ada: Actor
    bob: Actor
    vera: Actor


@pytest.fixture
def place(database) -> Place:
    with transaction() as session:
        workspace = Workspace(id=new_id(), name="Kitchen")
        people = [User(id=new_id(), email=f"{n}@example.org", name=n, password_hash="") for n in ("ada", "bob", "vera")]
        session.add_all([workspace, *people])
        session.flush()
        project = Project(id=new_id(), workspace_id=workspace.id, name="Recipes", created_by=people[0].id)
        session.add(project)
    ada, bob, vera = (Actor(user_id=p.id, email=p.email, name=p.name) for p in people)
    return Place(
        project.id,
        Actor(ada.user_id, ada.email, ada.name, {workspace.id: "owner"}),
        bob,
        Actor(vera.user_id, vera.email, vera.name, {workspace.id: "viewer"}),
    )
