"""What there is in each project, in a constant number of small queries however many projects are asked for."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from sqlalchemy import case, func, select
from sqlalchemy.orm import Session

from app.chat.models import Chat, ChatMessage, Feedback
from app.datasets.models import CleaningPlan, DatasetVersion, SourceFile
from app.deployments.models import ApiCall, ApiKey
from app.evaluations.models import Evaluation
from app.projects.models import Objective
from app.recipes.models import RecipeDraft
from app.runs.models import LIVE_STATES, Model, Run

WORKING = ("queued", "running")


@dataclass
class Facts:
    """One project in numbers; `run`, `version`, `model`, `evaluation` are the newest row of each or None."""

    task: str = ""
    samples: int = 0
    files: int = 0
    rows: int = 0
    files_reading: int = 0
    files_failed: int = 0
    files_unmapped: int = 0
    clean_steps: int = 0
    version: Any = None
    version_working: Any = None
    version_failed: bool = False
    preset: str = ""
    runs: int = 0
    run: Any = None
    models: int = 0
    model: Any = None
    evaluation: Any = None
    messages: int = 0
    thumbs_down: int = 0
    thumbs: int = 0
    keys: int = 0
    calls: int = 0


def of_projects(session: Session, project_ids: list[str]) -> dict[str, Facts]:
    """Facts by project id; the caller has checked that the actor may see them all."""
    found: dict[str, Facts] = defaultdict(Facts, {project_id: Facts() for project_id in project_ids})
    _objectives(session, project_ids, found)
    _material(session, project_ids, found)
    _versions(session, project_ids, found)
    _training(session, project_ids, found)
    _use(session, project_ids, found)
    return found


def _objectives(session: Session, ids: list[str], found: dict[str, Facts]) -> None:
    query = (
        select(Objective.project_id, Objective.task, Objective.samples, CleaningPlan.steps, RecipeDraft.preset)
        .outerjoin(CleaningPlan, CleaningPlan.project_id == Objective.project_id)
        .outerjoin(RecipeDraft, RecipeDraft.project_id == Objective.project_id)
        .where(Objective.project_id.in_(ids))
    )
    for row in session.execute(query):
        facts = found[row.project_id]
        facts.task, facts.samples = row.task, len(row.samples)
        facts.clean_steps, facts.preset = len(row.steps or []), row.preset or ""


def _count(condition: Any) -> Any:
    return func.coalesce(func.sum(case((condition, 1), else_=0)), 0)


def _material(session: Session, ids: list[str], found: dict[str, Facts]) -> None:
    query = (
        select(
            SourceFile.project_id,
            func.count().label("files"),
            func.coalesce(func.sum(SourceFile.rows), 0).label("rows"),
            _count(SourceFile.state.in_(WORKING)).label("reading"),
            _count(SourceFile.state == "failed").label("failed"),
            _count((SourceFile.state == "succeeded") & SourceFile.is_mapping_confirmed.is_(False)).label("unmapped"),
        )
        .where(SourceFile.project_id.in_(ids), SourceFile.deleted_at.is_(None))
        .group_by(SourceFile.project_id)
    )
    for row in session.execute(query):
        facts = found[row.project_id]
        facts.files, facts.rows, facts.files_reading = row.files, int(row.rows), row.reading
        facts.files_failed, facts.files_unmapped = row.failed, row.unmapped


def _versions(session: Session, ids: list[str], found: dict[str, Facts]) -> None:
    columns = (
        DatasetVersion.project_id,
        DatasetVersion.id,
        DatasetVersion.number,
        DatasetVersion.state,
        DatasetVersion.done,
        DatasetVersion.total,
        DatasetVersion.train_rows,
        DatasetVersion.validation_rows,
        DatasetVersion.test_rows,
        DatasetVersion.created_at,
    )
    newest = (
        select(DatasetVersion.project_id, DatasetVersion.state, func.max(DatasetVersion.number).label("number"))
        .where(DatasetVersion.project_id.in_(ids))
        .group_by(DatasetVersion.project_id, DatasetVersion.state)
        .subquery()
    )
    query = select(*columns).join(
        newest, (newest.c.project_id == DatasetVersion.project_id) & (newest.c.number == DatasetVersion.number)
    )
    for row in session.execute(query):
        facts = found[row.project_id]
        if row.state == "succeeded":
            facts.version = row
        elif row.state in WORKING:
            facts.version_working = row
        elif row.state == "failed":
            facts.version_failed = True


def _training(session: Session, ids: list[str], found: dict[str, Facts]) -> None:
    newest = (
        select(Run.project_id, func.max(Run.number).label("number"), func.count().label("runs"))
        .where(Run.project_id.in_(ids))
        .group_by(Run.project_id)
        .subquery()
    )
    query = select(
        *(Run.project_id, Run.id, Run.number, Run.name, Run.state, Run.reason, Run.sentence, Run.step),
        *(Run.total_steps, Run.coach, Run.best_step, Run.created_at, Run.ended_at, Run.trained_s, newest.c.runs),
    ).join(newest, (newest.c.project_id == Run.project_id) & (newest.c.number == Run.number))
    for row in session.execute(query):
        found[row.project_id].run, found[row.project_id].runs = row, row.runs
    newest_model = (
        select(Model.project_id, func.max(Model.created_at).label("at"), func.count().label("models"))
        .where(Model.project_id.in_(ids), Model.deleted_at.is_(None))
        .group_by(Model.project_id)
        .subquery()
    )
    models = select(Model.project_id, Model.id, Model.name, Model.step, Model.created_at, newest_model.c.models).join(
        newest_model, (newest_model.c.project_id == Model.project_id) & (newest_model.c.at == Model.created_at)
    )
    for row in session.execute(models):
        found[row.project_id].model, found[row.project_id].models = row, row.models


def _use(session: Session, ids: list[str], found: dict[str, Facts]) -> None:
    evaluations = (
        select(Evaluation.project_id, func.max(Evaluation.created_at).label("at"))
        .where(Evaluation.project_id.in_(ids))
        .group_by(Evaluation.project_id)
        .subquery()
    )
    query = select(
        *(Evaluation.project_id, Evaluation.id, Evaluation.state, Evaluation.model_id, Evaluation.done),
        *(Evaluation.total, Evaluation.summary, Evaluation.created_at),
    ).join(
        evaluations,
        (evaluations.c.project_id == Evaluation.project_id) & (evaluations.c.at == Evaluation.created_at),
    )
    for row in session.execute(query):
        found[row.project_id].evaluation = row
    talk = (
        select(
            Chat.project_id,
            func.count(ChatMessage.id.distinct()).label("messages"),
            func.count(Feedback.thumb).label("thumbs"),
            _count(Feedback.thumb < 0).label("down"),
        )
        .join(ChatMessage, (ChatMessage.chat_id == Chat.id) & (ChatMessage.role == "assistant"))
        .outerjoin(Feedback, Feedback.message_id == ChatMessage.id)
        .where(Chat.project_id.in_(ids), Chat.deleted_at.is_(None))
        .group_by(Chat.project_id)
    )
    for row in session.execute(talk):
        facts = found[row.project_id]
        facts.messages, facts.thumbs, facts.thumbs_down = row.messages, row.thumbs, row.down
    keys = (
        select(ApiKey.project_id, func.count())
        .where(ApiKey.project_id.in_(ids), ApiKey.revoked_at.is_(None))
        .group_by(ApiKey.project_id)
    )
    for project_id, count in session.execute(keys):
        found[str(project_id)].keys = count
    calls = select(ApiCall.project_id, func.count()).where(ApiCall.project_id.in_(ids)).group_by(ApiCall.project_id)
    for called_id, count in session.execute(calls):
        found[str(called_id)].calls = count


def is_training(facts: Facts) -> bool:
    """Whether the newest run is at work or waits for its turn."""
    return facts.run is not None and facts.run.state in (*LIVE_STATES, "queued", "waiting")
