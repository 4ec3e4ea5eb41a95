"""What there is in each project, in a constant number of small queries however many projects are asked for."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, case, func, select
from sqlalchemy.orm import Session

from app.chat.models import Chat, ChatMessage, Feedback
from app.datasets.models import CleaningPlan, DatasetVersion, SourceFile
from app.deployments.models import ApiCall, ApiKey
from app.evaluations.models import Evaluation
from app.projects.models import Objective, Project
from app.recipes.models import RecipeDraft
from app.runs.models import LIVE_STATES, Model, Run

WORKING = ("queued", "running")


@dataclass
class Facts:
    """One project in numbers; `run` (one that trains first), `version`, `model`,
    `evaluation` are the newest row of each or None."""

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
    connection = session.connection()

    def rows(query: Any) -> Iterable[tuple[Facts, Any]]:
        return ((found[row[0]], row) for row in connection.execute(query, {"ids": project_ids}))

    for facts, row in rows(_OBJECTIVES):
        facts.task, facts.samples = row.task, len(row.samples)
        facts.clean_steps, facts.preset = len(row.steps or []), row.preset or ""
    for facts, row in rows(_FILES):
        facts.files, facts.rows, facts.files_reading = row.files, int(row.rows), row.reading
        facts.files_failed, facts.files_unmapped = row.failed, row.unmapped
    for facts, row in rows(_VERSIONS):
        if row.state == "succeeded":
            facts.version = row
        elif row.state in WORKING:
            facts.version_working = row
        elif row.state == "failed":
            facts.version_failed = True
    for facts, row in rows(_RUNS):
        facts.run, facts.runs = row, row.runs
    for facts, row in rows(_MODELS):
        facts.model, facts.models = row, row.models
    for facts, row in rows(_EVALUATIONS):
        facts.evaluation = row
    for facts, row in rows(_TALK):
        facts.messages, facts.thumbs, facts.thumbs_down = row.messages, row.thumbs, row.down
    for facts, row in rows(_CALLS):
        facts.keys, facts.calls = row.keys, row.calls
    return found


def is_training(facts: Facts) -> bool:
    """Whether the newest run is at work or waits for its turn."""
    return facts.run is not None and facts.run.state in (*LIVE_STATES, "queued", "waiting")


# The statements are built once: every page asks them, and building one costs more than running it. They name tables
# and not mapped classes, because their rows are only read.
def _table(model: Any) -> Any:
    return model.__table__.c


_IDS: Any = bindparam("ids", expanding=True)
_file, _version, _run, _model, _evaluation = map(_table, (SourceFile, DatasetVersion, Run, Model, Evaluation))
_chat, _message, _feedback = _table(Chat), _table(ChatMessage), _table(Feedback)
_objective, _plan, _draft = _table(Objective), _table(CleaningPlan), _table(RecipeDraft)


def _count(condition: Any) -> Any:
    return func.coalesce(func.sum(case((condition, 1), else_=0)), 0)


_OBJECTIVES = (
    select(_objective.project_id, _objective.task, _objective.samples, _plan.steps, _draft.preset)
    .select_from(Objective.__table__)
    .outerjoin(CleaningPlan.__table__, _plan.project_id == _objective.project_id)
    .outerjoin(RecipeDraft.__table__, _draft.project_id == _objective.project_id)
    .where(_objective.project_id.in_(_IDS))
)

_FILES = (
    select(
        _file.project_id,
        func.count().label("files"),
        func.coalesce(func.sum(_file.rows), 0).label("rows"),
        _count(_file.state.in_(WORKING)).label("reading"),
        _count(_file.state == "failed").label("failed"),
        _count((_file.state == "succeeded") & _file.is_mapping_confirmed.is_(False)).label("unmapped"),
    )
    .where(_file.project_id.in_(_IDS), _file.deleted_at.is_(None))
    .group_by(_file.project_id)
)

# A version of one file that a program sent tells nothing of what a person brought and cleaned: it counts where there
# is no other.
_place = _version.number + case((_version.file_id.is_(None), 1_000_000), else_=0)
_newest_version = (
    select(_version.project_id, _version.state, func.max(_place).label("place"))
    .where(_version.project_id.in_(_IDS))
    .group_by(_version.project_id, _version.state)
    .subquery()
)
_VERSIONS = select(
    *(_version.project_id, _version.id, _version.number, _version.state, _version.done, _version.total),
    *(_version.train_rows, _version.validation_rows, _version.test_rows, _version.created_at),
).join(
    _newest_version,
    (_newest_version.c.project_id == _version.project_id) & (_newest_version.c.place == _place),
)

# The run that a person wants to hear of is the one that trains, before those that were queued behind it.
_turn = _run.number + case((_run.state.in_(LIVE_STATES), 1_000_000), else_=0)
_newest_run = (
    select(_run.project_id, func.max(_turn).label("turn"), func.count().label("runs"))
    .where(_run.project_id.in_(_IDS))
    .group_by(_run.project_id)
    .subquery()
)
_RUNS = select(
    *(_run.project_id, _run.id, _run.number, _run.name, _run.state, _run.reason, _run.sentence, _run.step),
    *(_run.total_steps, _run.coach, _run.best_step, _run.created_at, _run.ended_at, _run.trained_s),
    _newest_run.c.runs,
).join(_newest_run, (_newest_run.c.project_id == _run.project_id) & (_newest_run.c.turn == _turn))

_newest_model = (
    select(_model.project_id, func.max(_model.created_at).label("at"), func.count().label("models"))
    .where(_model.project_id.in_(_IDS), _model.deleted_at.is_(None))
    .group_by(_model.project_id)
    .subquery()
)
_MODELS = select(
    _model.project_id, _model.id, _model.name, _model.step, _model.created_at, _newest_model.c.models
).join(_newest_model, (_newest_model.c.project_id == _model.project_id) & (_newest_model.c.at == _model.created_at))

_newest_evaluation = (
    select(_evaluation.project_id, func.max(_evaluation.created_at).label("at"))
    .where(_evaluation.project_id.in_(_IDS))
    .group_by(_evaluation.project_id)
    .subquery()
)
_EVALUATIONS = select(
    *(_evaluation.project_id, _evaluation.id, _evaluation.state, _evaluation.model_id, _evaluation.done),
    *(_evaluation.total, _evaluation.summary, _evaluation.created_at),
).join(
    _newest_evaluation,
    (_newest_evaluation.c.project_id == _evaluation.project_id) & (_newest_evaluation.c.at == _evaluation.created_at),
)

_TALK = (
    select(
        _chat.project_id,
        func.count(_message.id.distinct()).label("messages"),
        func.count(_feedback.thumb).label("thumbs"),
        _count(_feedback.thumb < 0).label("down"),
    )
    .select_from(Chat.__table__)
    .join(ChatMessage.__table__, (_message.chat_id == _chat.id) & (_message.role == "assistant"))
    .outerjoin(Feedback.__table__, _feedback.message_id == _message.id)
    .where(_chat.project_id.in_(_IDS), _chat.deleted_at.is_(None))
    .group_by(_chat.project_id)
)


def _number_of(model: Any, *conditions: Any) -> Any:
    """How many rows of `model` a project has, as a column."""
    project = Project.__table__.c
    rows = select(func.count()).where(model.__table__.c.project_id == project.id, *conditions)
    return rows.correlate(Project.__table__).scalar_subquery()


_CALLS = select(
    Project.__table__.c.id,
    _number_of(ApiKey, ApiKey.__table__.c.revoked_at.is_(None)).label("keys"),
    _number_of(ApiCall).label("calls"),
).where(Project.__table__.c.id.in_(_IDS))
