"""The queue of contradictions: a question with its answers, and a person who decides."""

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import RedirectResponse, Response

from app.accounts.access import ActorDep
from app.core.errors import Invalid
from app.core.flash import flash
from app.core.forms import FormValues
from app.core.templates import gettext as _
from app.core.templates import render
from app.core.web import SessionDep
from app.datasets import contradictions, plans
from app.datasets.forms import listed
from app.projects import service as projects

router = APIRouter()
ROWS_LIMIT = 200


@router.get("/projects/{project_id}/contradictions")
def contradictions_page(
    request: Request, session: SessionDep, actor: ActorDep, project_id: str,
    page: Annotated[int, Query(ge=1, le=1_000_000)] = 1,
) -> Response:  # fmt: skip
    project = projects.get(session, actor, project_id)
    plan = plans.get(session, actor, project_id)
    return render(
        request, "datasets/contradictions.html", project=project, stage="clean", plan=plan,
        queue=contradictions.queue(session, actor, project_id, page), per_page=contradictions.PER_PAGE,
        may_edit=actor.may(project.workspace_id, "editor"),
    )  # fmt: skip


@router.post("/projects/{project_id}/contradictions")
def decide(session: SessionDep, actor: ActorDep, project_id: str, values: FormValues) -> Response:
    """`verb` keep: the row `kept` stays, the other `rid`s are deleted; all: every `rid` stays as it is."""
    projects.get(session, actor, project_id, need="editor")
    given = listed(values, "rid").get("rid", [])
    try:
        rids = [int(rid) for rid in given][:ROWS_LIMIT]
        kept = int(str(values.get("kept", -1)))
    except ValueError as error:
        raise Invalid(_("These rows are not known. Load the page again.")) from error
    if values.get("verb") == "all":
        contradictions.keep_all(session, actor, project_id, rids)
        words = _("All stay. You will not be asked again.")
    else:
        contradictions.keep_one(session, actor, project_id, rids, kept)
        words = _("One stays. The others are deleted; undo it among the changes.")
    response = RedirectResponse(f"/projects/{project_id}/contradictions", 303)
    flash(response, words)
    return response
