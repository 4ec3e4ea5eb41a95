"""The source ledger: where every row comes from, what was made of it, and how a source is forgotten with it all."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from app.accounts import audit
from app.accounts.models import User
from app.accounts.service import Actor
from app.core.db import new_id, utcnow
from app.core.errors import Conflict, Invalid, NotFound
from app.core.queue import ring
from app.datasets import plans
from app.datasets.combining import made
from app.datasets.models import DatasetVersion, Finding, RowChange, SourceFile
from app.projects import service as projects
from app.runs import service as runs
from app.runs.models import OPEN_STATES, Model, Run
from app.sources.models import Forgetting

TASK = "sources.forget"


@dataclass
class Source:
    """A file and everything that came from it, directly or through other versions, models and drafts."""

    file: SourceFile
    brought_by: str = ""
    drafted: list[SourceFile] = field(default_factory=list)
    versions: list[DatasetVersion] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    models: list[Model] = field(default_factory=list)


def _files(session: Session, project_id: str) -> list[SourceFile]:
    query = select(SourceFile).where(SourceFile.project_id == project_id, SourceFile.forgotten_because == "")
    return list(session.scalars(query.order_by(SourceFile.created_at, SourceFile.id)))


def sources(session: Session, actor: Actor, project_id: str) -> list[Source]:
    """Every source of the project that was not forgotten, also those that were left out, with what came of each."""
    projects.get(session, actor, project_id)
    files = _files(session, project_id)
    versions = session.scalars(select(DatasetVersion).where(DatasetVersion.project_id == project_id)).all()
    origins = {v.id: {f["file_id"] for f in made.files_of(session, v)} for v in versions}
    all_runs = session.scalars(select(Run).where(Run.project_id == project_id).order_by(Run.number)).all()
    models = session.scalars(select(Model).where(Model.project_id == project_id, Model.deleted_at.is_(None))).all()
    keys = {file.created_by for file in files if file.created_by}
    names = {user.id: user.name for user in session.scalars(select(User).where(User.id.in_(keys)))}
    return [
        _source(file, files, versions, origins, all_runs, models, names.get(file.created_by or "", ""))
        for file in files
    ]


def _source(
    file: SourceFile, files: list[SourceFile], versions: Sequence[DatasetVersion],
    origins: dict[str, set[str]], all_runs: Sequence[Run], models: Sequence[Model], brought_by: str,
) -> Source:  # fmt: skip
    ids = {file.id}
    while more := {f.id for f in files if f.derived_from in ids} - ids:
        ids |= more
    used = [v for v in versions if origins[v.id] & ids]
    version_ids, model_ids, found = {v.id for v in used}, set[str](), list[Run]()
    # A run that goes on from a model that came from the source comes from it, too.
    while True:
        found = [r for r in all_runs if r.version_id in version_ids or r.parent_model_id in model_ids]
        run_ids = {r.id for r in found}
        grown = {m.id for m in models if m.run_id in run_ids}
        if grown == model_ids:
            break
        model_ids = grown
    return Source(
        file, brought_by, [f for f in files if f.id in ids - {file.id}], used, found,
        [m for m in models if m.id in model_ids],
    )  # fmt: skip


def source(session: Session, actor: Actor, file_id: str, *, need: str = "viewer") -> Source:
    """One source with all that came from it. Raises NotFound for strangers and for what was forgotten."""
    file = session.get(SourceFile, file_id)
    if file is None:
        raise NotFound
    projects.get(session, actor, file.project_id, need=need)
    if file.forgotten_because:
        raise NotFound(file.forgotten_because)
    return next(found for found in sources(session, actor, file.project_id) if found.file.id == file_id)


def describe(
    session: Session, actor: Actor, file_id: str, *, licence: str, consent: str, origin_url: str,
    obtained_on: date | None,
) -> SourceFile:  # fmt: skip
    """Write down what is known of a source."""
    file = source(session, actor, file_id, need="editor").file
    before = {"licence": file.licence, "consent": file.consent}
    file.licence, file.consent, file.origin_url, file.obtained_on = licence, consent, origin_url, obtained_on
    project = projects.get(session, actor, file.project_id)
    details = {"file": file.id, "changed": [k for k, v in before.items() if v != getattr(file, k)]}
    audit.record(
        session, actor, "source.described", workspace_id=project.workspace_id, subject=file.filename, details=details
    )
    session.flush()
    return file


def forgotten(session: Session, actor: Actor, project_id: str) -> list[Forgetting]:
    """The project's forgotten sources, newest first."""
    projects.get(session, actor, project_id)
    query = select(Forgetting).where(Forgetting.project_id == project_id)
    return list(session.scalars(query.order_by(Forgetting.created_at.desc())))


def forget(session: Session, actor: Actor, file_id: str, *, name: str, because: str) -> Forgetting:
    """Retire a source and everything that came from it, for good; the files go right after. Owners only.

    `name` must be the file's, typed by the person. Raises Invalid when it is not, Conflict while it is being read.
    """
    found = source(session, actor, file_id, need="owner")
    file = found.file
    if name.strip() != file.filename.strip():
        raise Invalid(fields={"name": f"Type the name exactly as it is: {file.filename}"})
    if file.state == "running":
        raise Conflict("This file is being read just now. Cancel that first, then forget it.")
    project = projects.get(session, actor, file.project_id)
    reason = f" Reason: {because.strip().rstrip('.')}." if because.strip() else ""
    told = f"The source “{file.filename}” was forgotten on {utcnow():%d %B %Y}.{reason}"
    for one in (file, *found.drafted):
        one.deleted_at, one.forgotten_because = one.deleted_at or utcnow(), told
        # What was shown of its rows goes with it.
        one.detected, one.mapping, one.is_mapping_confirmed = {}, {}, False
        if one.state == "queued":
            one.state = "cancelled"
    for version in found.versions:
        version.state, version.want = "retired", "cancel"
        version.fence, version.attempt_id = version.fence + 1, None
        version.error = f"Version {version.number} was retired. {told} Freeze a new version."
        version.statistics = {}
    for run in found.runs:
        if run.state in OPEN_STATES:
            runs.request_cancel(session, actor, run.id)
    retire_models(session, found.models, told)
    row = Forgetting(
        id=new_id(), project_id=file.project_id, file_id=file.id, filename=file.filename, because=because.strip(),
        created_by=actor.user_id, report=report_of(found),
    )  # fmt: skip
    session.add(row)
    session.execute(delete(RowChange).where(RowChange.file_id.in_(row.report["files"])))
    session.execute(delete(Finding).where(Finding.file_id.in_(row.report["files"])))
    plan = plans.change(session, file.project_id)
    plan.set_key, plan.report = "", {}
    # Working sets up to this number hold rows of the source; those of later claims do not.
    row.last_set = plan.fence
    session.flush()
    audit.record(
        session, actor, "source.forgotten", workspace_id=project.workspace_id, subject=file.filename,
        details={name: len(ids) for name, ids in row.report.items()} | {"forgetting": row.id},
    )  # fmt: skip
    ring(session, TASK, row.id)
    return row


def retire_models(session: Session, models: list[Model], told: str) -> None:
    """The models answer nothing any more and say why."""
    for model in models:
        model.deleted_at = model.deleted_at or utcnow()
        model.retired_because = f"The model “{model.name}” was retired. {told}"
    session.flush()


def report_of(found: Source) -> dict[str, list[str]]:
    """The ids of everything that goes."""
    return {
        "files": [found.file.id, *(file.id for file in found.drafted)],
        "versions": [version.id for version in found.versions],
        "runs": [run.id for run in found.runs],
        "models": [model.id for model in found.models],
    }
