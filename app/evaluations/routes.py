"""The Evaluate page of a project, and one evaluation with its rows."""

from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response
from sqlalchemy.orm import Session

from app.accounts.access import ActorDep
from app.accounts.service import Actor
from app.core.errors import Invalid
from app.core.flash import flash
from app.core.forms import FormValues, checked
from app.core.templates import gettext as _
from app.core.templates import render
from app.core.web import SessionDep
from app.core.work import LIVE
from app.evaluations import confusion, outside, own, service
from app.evaluations.forms import IdealForm, StartForm
from app.evaluations.models import CaseResult, Evaluation
from app.evaluations.outside import Leaving
from app.externals import service as externals
from app.projects import service as projects
from app.runs import service as runs
from app.runs.models import Model

router = APIRouter()
ROWS = 20


@router.get("/projects/{project_id}/evaluate")
def evaluate_page(request: Request, project_id: str, actor: ActorDep, session: SessionDep, model: str = "") -> Response:
    return _page(request, session, actor, project_id, chosen=model)


def _page(
    request: Request,
    session: Session,
    actor: Actor,
    project_id: str,
    *,
    chosen: str = "",
    errors: dict[str, str] | None = None,
    typed: dict[str, Any] | None = None,
    leaving: Leaving | None = None,
) -> Response:
    project = projects.get(session, actor, project_id)
    models = runs.models_of(session, actor, project_id)
    return render(
        request,
        "evaluations/evaluate.html",
        status=422 if errors or leaving else 200,
        project=project,
        stage="evaluate",
        models=models,
        chosen=chosen,
        evaluations=service.listing(session, actor, project_id),
        errors=errors or {},
        typed=typed or {},
        outside=[externals.as_asked(row) for row in externals.listing(session, actor, project_id)],
        leaving=leaving,
        longest_answer=outside.LONGEST_ANSWER,
        may_edit=actor.may(project.workspace_id, "editor"),
        cases=own.listing(session, actor, project_id),
        may_write=actor.may(project.workspace_id, own.WRITES),
        longest=own.LONGEST,
    )


@router.post("/tests/{test_id}")
def write_ideal(test_id: str, actor: ActorDep, session: SessionDep, values: FormValues) -> Response:
    """What the model should answer to one of the project's own tests."""
    form, errors = checked(IdealForm, values)
    if form is None:
        raise Invalid(fields=errors)
    case = own.write(session, actor, test_id, ideal=form.ideal)
    response = RedirectResponse(f"/projects/{case.project_id}/evaluate#test-{case.id}", 303)
    flash(response, _("Saved"), _("The next evaluation asks it."))
    return response


@router.post("/tests/{test_id}/delete")
def delete_case(test_id: str, actor: ActorDep, session: SessionDep) -> Response:
    case = own.delete(session, actor, test_id)
    response = RedirectResponse(f"/projects/{case.project_id}/evaluate#own-tests", 303)
    flash(response, _("Test deleted"), _("Earlier evaluations keep what was answered to it."))
    return response


@router.post("/projects/{project_id}/evaluations")
def start(request: Request, project_id: str, actor: ActorDep, session: SessionDep, values: FormValues) -> Response:
    """Start it. Where questions would leave the machine, what and where to is shown first, and sent once that is
    agreed to."""
    form, errors = checked(StartForm, values)
    leaving = None
    if form is not None:
        chosen: dict[str, Any] = form.model_dump(include={"model_id", "external_id", "row_limit"})
        try:
            if form.external_id:
                projects.get(session, actor, project_id, need="editor")
                leaving = outside.leaving(session, actor, **chosen)
            if leaving is None or form.agreed == leaving.token:
                found = service.start(session, actor, project_id=project_id, **chosen)
                return RedirectResponse(f"/evaluations/{found.id}", 303)
        except Invalid as error:
            errors, leaving = error.fields or {"": error.sentence}, None
    return _page(request, session, actor, project_id, errors=errors, typed=values, leaving=leaving)


@router.get("/evaluations/{evaluation_id}")
def evaluation_page(
    request: Request,
    evaluation_id: str,
    actor: ActorDep,
    session: SessionDep,
    rows: Literal["worst", "best", "all", "own"] = "worst",
) -> Response:
    return render(request, "evaluations/evaluation.html", **_shown(session, actor, evaluation_id, rows))


@router.get("/evaluations/{evaluation_id}/progress")
def progress(request: Request, evaluation_id: str, actor: ActorDep, session: SessionDep) -> Response:
    """The changing part while it works; it refreshes itself until the end."""
    return render(request, "evaluations/_result.html", **_shown(session, actor, evaluation_id, "worst"))


def _shown(session: Session, actor: Actor, evaluation_id: str, order: str) -> dict[str, Any]:
    evaluation = service.get(session, actor, evaluation_id)
    project = projects.get(session, actor, evaluation.project_id)
    rows = list(service.results(session, evaluation))
    model = session.get(Model, evaluation.model_id)
    external = evaluation.plan.get("external")
    return {
        "evaluation": evaluation,
        "project": project,
        "stage": "evaluate",
        "model": model,
        "is_live": evaluation.state in LIVE,
        "order": order,
        "rows": _ordered(evaluation, rows, order),
        "row_count": len(rows),
        "confusion": confusion.confusion([row for row in rows if row.rid >= 0])
        if evaluation.kind == "labels"
        else None,
        "metric_names": METRICS,
        "system_names": SYSTEMS | ({"external": external["name"]} if external else {}),
        "external": external,
        "may_edit": actor.may(project.workspace_id, "editor"),
    }


METRICS = {
    "exact": ("Exact match", "share of rows answered exactly"),
    "f1": ("Words in common", "with the ideal answer, in any order (Token F1)"),
    "rouge_l": ("Words in the same order", "as in the ideal answer (ROUGE-L)"),
    "loss": ("Loss", "of the ideal answer, per token; lower is better"),
    "perplexity": ("Hesitates between", "options per token; lower is better"),
}
SYSTEMS = {
    "tuned": "Your model",
    "base": "Base model",
    "nearest": "Most similar row",
    "majority": "Most frequent answer",
}


def _ordered(evaluation: Evaluation, rows: list[CaseResult], order: str) -> list[CaseResult]:
    """Worst first: wrong before right, then by how unlikely the ideal answer was. "all" keeps the order of the set,
    "own" shows the project's own tests."""
    if order == "own":
        return [row for row in rows if row.rid < 0]
    if order != "all":
        rows = [row for row in rows if row.rid >= 0]
    if order == "all":
        return rows[:200]
    metric = {"labels": "exact", "answers": "f1"}.get(evaluation.kind, "")

    def rank(row: CaseResult) -> tuple[float, float]:
        own = row.scores.get("tuned", {})
        return own.get(metric, 0.0), -own.get("nll", 0.0) / max(1.0, own.get("tokens", 1.0))

    return sorted(rows, key=rank, reverse=order == "best")[:ROWS]


@router.post("/evaluations/{evaluation_id}/cancel")
def cancel(evaluation_id: str, actor: ActorDep, session: SessionDep) -> Response:
    service.request_cancel(session, actor, evaluation_id)
    return RedirectResponse(f"/evaluations/{evaluation_id}", 303)


@router.post("/evaluations/{evaluation_id}/retry")
def retry(evaluation_id: str, actor: ActorDep, session: SessionDep) -> Response:
    service.retry(session, actor, evaluation_id)
    return RedirectResponse(f"/evaluations/{evaluation_id}", 303)
