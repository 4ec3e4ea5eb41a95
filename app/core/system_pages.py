"""The system check as a page, and the address that load balancers and the supervisor ask."""

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from app.core.db import reading
from app.core.doctor import Finding, check_all
from app.core.templates import render

router = APIRouter()
health_router = APIRouter()
_STATES = {"ok": "good", "note": "warn", "bad": "bad"}
_GROUPS = (
    ("This machine", ("Processor", "Memory", "Disk", "Privacy of the home", "GPU")),
    ("Running parts", ("Database", "Redis", "Pages", "Live events", "Model server", "Models in memory")),
)


def _rows(findings: list[Finding]) -> list[dict[str, str]]:
    return [{"state": _STATES[found.level], "title": found.name, "note": found.found} for found in findings]


@router.get("/system", include_in_schema=False)
def system_page(request: Request) -> Response:
    """What the machine and the parts are like now, each problem with its fix; to people who own no workspace only
    whether each part is well: paths, versions and sizes are the owners' business."""
    findings = check_all()
    is_owner = "owner" in request.state.actor.roles.values()
    if not is_owner:
        findings = [found.in_public for found in findings]
    named = {name for _, names in _GROUPS for name in names}
    groups = [(title, _rows([found for found in findings if found.name in names])) for title, names in _GROUPS]
    groups.append(("Software", _rows([found for found in findings if found.name not in named])))
    problems = sorted((found for found in findings if found.level != "ok" and found.fix), key=lambda f: f.level)
    return render(request, "system/page.html", groups=groups, problems=problems, stage="system", is_owner=is_owner)


@health_router.get("/health", include_in_schema=False)
def health() -> Response:
    """200 while this process and its database answer, else 503. Tells nothing else."""
    try:
        with reading() as session:
            session.execute(text("SELECT 1"))
    except SQLAlchemyError:
        return JSONResponse({"status": "unavailable"}, status_code=503)
    return JSONResponse({"status": "ok"})
