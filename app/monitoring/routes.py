"""The page that shows how a project's models are used."""

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from app.accounts.access import ActorDep
from app.core.templates import render
from app.core.web import SessionDep
from app.monitoring import service
from app.projects import service as projects

router = APIRouter()


@router.get("/projects/{project_id}/monitor")
def monitor(
    project_id: str,
    request: Request,
    actor: ActorDep,
    session: SessionDep,
    page: Annotated[int, Query(ge=1, le=1_000_000)] = 1,
) -> Response:
    """Requests, errors, waiting times and the calls one by one."""
    project = projects.get(session, actor, project_id)
    traffic = service.traffic(session, actor, project_id)
    rows, total = service.calls(session, actor, project_id, page=page)
    return render(
        request, "monitoring/monitor.html", stage="monitor", project=project, traffic=traffic, rows=rows,
        memory=service.in_memory(session, actor, project_id), total=total, page=page, per_page=service.PER_PAGE,
        most=max((n for _, n, _ in traffic.by_day), default=0),
    )  # fmt: skip
