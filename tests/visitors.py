"""Readable sample people for tests, and browsers that are signed in as them; real rows, made without the pages."""

import re
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from fastapi.testclient import TestClient

from app.accounts import passwords, sign_ins
from app.accounts.models import Member, User, Workspace
from app.accounts.service import Actor
from app.core.db import new_id, transaction
from app.core.security import csrf_token
from app.projects.models import Objective, Project

PASSWORD = "plum lantern river 9"


@dataclass(frozen=True)
class Person:
    """A signed-in user: `cookie` is the value of the session cookie."""

    user_id: str
    name: str
    email: str
    workspace_id: str
    role: str
    cookie: str

    @property
    def actor(self) -> Actor:
        """The person as services see them."""
        return Actor(self.user_id, self.email, self.name, {self.workspace_id: self.role})


def make_workspace(name: str = "Grandma's kitchen") -> str:
    """A workspace; returns its id."""
    with transaction() as session:
        workspace = Workspace(name=name)
        session.add(workspace)
        session.flush()
        return workspace.id


def make_person(
    name: str = "Ana", role: str = "owner", workspace_id: str | None = None, password_hash: str = ""
) -> Person:
    """A user with a role in a workspace (a new one by default), signed in."""
    workspace_id = workspace_id or make_workspace()
    hashed = password_hash or passwords.unknown_hash()
    with transaction() as session:
        user = User(email=f"{name.lower()}.{new_id()[:6]}@example.org", name=name, password_hash=hashed)
        session.add(user)
        session.flush()
        session.add(Member(workspace_id=workspace_id, user_id=user.id, role=role))
        session.flush()
        cookie = sign_ins.start(session, user_id=user.id, user_agent="a test")
        return Person(user.id, name, user.email, workspace_id, role, cookie)


def make_project(workspace_id: str, name: str = "Recipes in her voice", **values: Any) -> str:
    """A project with its objective; returns its id."""
    with transaction() as session:
        project = Project(workspace_id=workspace_id, name=name, **values)
        session.add(project)
        session.flush()
        session.add(Objective(project_id=project.id, task="Answer questions about cooking."))
        return project.id


def browser_of(app: FastAPI, person: Person | None = None) -> TestClient:
    """A client with the session cookie of the person (or a visitor's) and the token that the pages carry.

    It follows no redirect.
    """
    name, cookie = ("sid", person.cookie) if person else ("visit", "somebody")
    headers, cookies = {"accept": "text/html", "x-csrf-token": csrf_token(cookie)}, {name: cookie}
    return TestClient(app, base_url="http://localhost", follow_redirects=False, headers=headers, cookies=cookies)


def token_in(page: str) -> str:
    """The hidden CSRF field of a page."""
    found = re.search(r'name="csrf_token" value="([^"]+)"', page)
    assert found, "the page has no form with a token"
    return found.group(1)
