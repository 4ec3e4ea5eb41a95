"""Evaluations: start one, read it, cancel it. The scoring itself is in running.py, called by the worker."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.accounts import audit
from app.accounts.service import Actor
from app.core.errors import Conflict, Invalid, NotFound
from app.core.queue import ring
from app.core.work import LIVE
from app.evaluations import outside, own
from app.evaluations.models import CaseResult, Evaluation
from app.evaluations.plan import stored
from app.externals import service as externals
from app.inference import targets
from app.projects import service as projects
from app.runs import service as runs
from app.runs.models import Model, Run

TASK = "evaluations.run"
MOST_ROWS = 2000
MOST_TEXTS = 20_000
BUSY = "This model is being evaluated without it. Wait for the end, or stop that evaluation, then start this one."


def start(
    session: Session, actor: Actor, *, project_id: str, model_id: str, row_limit: int = 200, external_id: str = ""
) -> Evaluation:
    """Queue the scoring of a model against its base on the rows that training never saw.

    With `external_id` the questions also go to that external model; whoever starts it has agreed to `outside.leaving`.
    One at a time for a model: a second click finds the first one. Raises NotFound for a model that is not the
    project's, Invalid for a row limit out of bounds and for an external model that cannot be asked now, Conflict when
    its dataset version was deleted.
    """
    projects.get(session, actor, project_id, need="editor")
    if not 1 <= row_limit <= MOST_ROWS:
        raise Invalid(fields={"row_limit": f"Choose 1 to {MOST_ROWS:,} rows."})
    model = runs.get_model(session, actor, model_id, need="editor")
    if model.project_id != project_id:
        raise NotFound
    open_one = session.scalar(
        select(Evaluation).where(Evaluation.model_id == model.id, Evaluation.state.in_(LIVE)).limit(1)
    )
    if open_one is not None:
        if external_id and (open_one.plan.get("external") or {}).get("ref") != f"{externals.KIND}:{external_id}":
            raise Invalid(fields={"external_id": BUSY})
        return open_one
    run = session.get_one(Run, model.run_id)
    if run.version_id is None:
        raise Conflict("The dataset version that this model learned from was deleted, and its test rows with it.")
    external = None
    if external_id:
        going = outside.leaving(session, actor, model_id=model_id, external_id=external_id, row_limit=row_limit)
        external = outside.frozen(session, actor, project_id, external_id)
        details = {"host": going.host, "name": going.name, "questions": going.questions}
        audit.record(
            session, actor, "evaluation.send", workspace_id=run.workspace_id, subject=model.name, details=details
        )
    ref = f"model:{model.id}"
    base = targets.base_of(session, actor, project_id, ref)
    plan = {
        "tuned": stored(targets.resolve(session, actor, project_id, ref)),
        "base": stored(base) if base is not None else None,
        "own": own.frozen(session, project_id),
        "external": external,
    }
    evaluation = Evaluation(
        project_id=project_id,
        model_id=model.id,
        version_id=run.version_id,
        row_limit=row_limit,
        plan=plan,
        created_by=actor.user_id,
    )
    session.add(evaluation)
    session.flush()
    ring(session, TASK, evaluation.id)
    return evaluation


def get(session: Session, actor: Actor, evaluation_id: str, *, need: str = "viewer") -> Evaluation:
    """The evaluation, for somebody who may see its project."""
    evaluation = session.get(Evaluation, evaluation_id)
    if evaluation is None:
        raise NotFound
    projects.get(session, actor, evaluation.project_id, need=need)
    return evaluation


def listing(session: Session, actor: Actor, project_id: str) -> Sequence[tuple[Evaluation, str]]:
    """The project's evaluations with their model's name, newest first."""
    projects.get(session, actor, project_id)
    query = (
        select(Evaluation, Model.name)
        .join(Model, Model.id == Evaluation.model_id)
        .where(Evaluation.project_id == project_id)
        .order_by(Evaluation.created_at.desc())
    )
    return [(evaluation, name) for evaluation, name in session.execute(query)]


def results(session: Session, evaluation: Evaluation) -> Sequence[CaseResult]:
    """Scored rows, in order."""
    query = select(CaseResult).where(CaseResult.evaluation_id == evaluation.id).order_by(CaseResult.position)
    return session.scalars(query).all()


def texts_asked(session: Session, project_id: str) -> list[str]:
    """Questions with their ideal answers that models of a project were scored on, each once; the latest 20,000. No
    gate: for the worker, which measures how much of a new version stands in them."""
    query = (
        select(CaseResult.prompt, CaseResult.ideal)
        .join(Evaluation, Evaluation.id == CaseResult.evaluation_id)
        .where(Evaluation.project_id == project_id)
        .order_by(CaseResult.id.desc())
        .limit(MOST_TEXTS)
    )
    return sorted({f"{prompt}\n{ideal}" for prompt, ideal in session.execute(query)})


def request_cancel(session: Session, actor: Actor, evaluation_id: str) -> Evaluation:
    """Stop it; what was scored is kept. Raises Conflict when it has ended."""
    evaluation = get(session, actor, evaluation_id, need="editor")
    if evaluation.state not in LIVE:
        raise Conflict("This evaluation has already ended.")
    evaluation.want = "cancel"
    if evaluation.state == "queued":
        evaluation.state = "cancelled"
    session.flush()
    return evaluation


def retry(session: Session, actor: Actor, evaluation_id: str) -> Evaluation:
    """Go on with a failed or cancelled evaluation; rows that were scored are not asked again."""
    evaluation = get(session, actor, evaluation_id, need="editor")
    if evaluation.state not in ("failed", "cancelled"):
        raise Conflict("This evaluation is going on or has ended.")
    evaluation.state, evaluation.want, evaluation.error, evaluation.attempts = "queued", "run", "", 0
    session.flush()
    ring(session, TASK, evaluation.id)
    return evaluation
