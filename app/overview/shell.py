"""What `render` adds to every page inside a project: the rail. Set up in app.main, because it looks at every slice."""

from typing import Any

from fastapi import Request

from app.core.db import reading
from app.overview import journey
from app.overview.facts import Facts
from app.projects.models import Project


def shell(request: Request, context: dict[str, Any]) -> dict[str, Any]:
    """What `render` adds to every page: the rail of `context["project"]`."""
    project, actor = context.get("project"), context.get("actor") or getattr(request.state, "actor", None)
    if not isinstance(project, Project) or actor is None:
        return {}
    with reading() as session:
        stage, facts = str(context.get("stage", "")), context.get("facts")
        return {"rail": journey.in_session(session, actor, project, stage, facts if isinstance(facts, Facts) else None)}
