"""Frozen versions: begun from the plan, built by the worker, listed, opened and downloaded."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.accounts.service import Actor
from app.core import storage
from app.core.db import new_id
from app.core.errors import Conflict, NotFound, Unavailable
from app.core.queue import ring
from app.datasets import plans, service
from app.datasets.freezing import is_intact, manifest_id
from app.datasets.models import DatasetVersion, SourceFile
from app.projects import service as projects

# The origin of a file that came by the API, of which a version is frozen by itself.
BY_API = "api"


def freeze(session: Session, actor: Actor, project_id: str) -> DatasetVersion:
    """Begin a version of what the plan says now; the same plan again gives the version that is there.

    Raises Conflict while files or the working set are still being read, or when there is no row to freeze.
    """
    projects.get(session, actor, project_id, need="editor")
    current = plans.get(session, actor, project_id)
    if current is None or not current.report:
        raise Conflict("There are no rows to freeze yet. Bring a file and confirm its mapping first.")
    if current.state in ("cancelled", "failed"):
        raise Conflict("The rows were not prepared to the end. Prepare them again on the Clean page, then freeze.")
    if current.state != "succeeded" or current.prepared_revision != current.revision:
        raise Conflict("The rows are still being prepared. Freeze when they are ready.")
    if any(file.state in ("queued", "running") for file in service.list_files(session, actor, project_id)):
        raise Conflict("A file is still being read. Freeze when it is ready.")
    if not current.report.get("rows"):
        raise Conflict("No row is left after cleaning. Undo a step, then freeze.")
    plan = plans.planned(session, project_id).model_dump(mode="json")
    newest = latest(session, project_id, is_finished=False)
    if newest is not None and newest.plan == plan and newest.state in ("queued", "running", "succeeded"):
        return newest
    number = session.scalar(select(func.max(DatasetVersion.number)).where(DatasetVersion.project_id == project_id))
    version = DatasetVersion(
        id=new_id(),
        project_id=project_id,
        number=(number or 0) + 1,
        parent_id=newest.id if newest else None,
        plan=plan,
        created_by=actor.user_id,
    )
    session.add(version)
    session.flush()
    ring(session, "datasets.freeze", version.id)
    return version


def freeze_uploaded(session: Session, project_id: str) -> None:
    """Begin a version of each file that came by the API, is read and mapped, and has none yet: of that file alone, with
    the project's mapping, steps and split. No gate: for those who passed it."""
    query = select(SourceFile).where(
        SourceFile.project_id == project_id,
        SourceFile.origin == BY_API,
        SourceFile.deleted_at.is_(None),
        SourceFile.state == "succeeded",
        SourceFile.is_mapping_confirmed,
    )
    files = list(session.scalars(query.order_by(SourceFile.created_at, SourceFile.id)))
    if not files:
        return
    known = of_files(session, [file.id for file in files])
    plan = plans.planned(session, project_id)
    number = session.scalar(select(func.max(DatasetVersion.number)).where(DatasetVersion.project_id == project_id)) or 0
    for file in files:
        alone = [one for one in plan.files if one.file_id == file.id]
        if file.id in known or not alone:
            continue
        number += 1
        version = DatasetVersion(
            id=new_id(), project_id=project_id, number=number, file_id=file.id, created_by=file.created_by,
            plan=plan.model_copy(update={"files": alone, "edits": None}).model_dump(mode="json"),
        )  # fmt: skip
        session.add(version)
        session.flush()
        ring(session, "datasets.freeze", version.id)


def of_file(session: Session, file_id: str) -> DatasetVersion | None:
    """The newest version of an uploaded file alone. No gate."""
    return of_files(session, [file_id]).get(file_id)


def of_files(session: Session, ids: Sequence[str]) -> dict[str, DatasetVersion]:
    """The newest version of each uploaded file alone, by the file's id. No gate."""
    query = select(DatasetVersion).where(DatasetVersion.file_id.in_(ids)).order_by(DatasetVersion.number)
    return {str(version.file_id): version for version in session.scalars(query)}


def cancel(session: Session, actor: Actor, version_id: str) -> DatasetVersion:
    """Stop freezing; nothing of it stays. Raises Conflict when it is over."""
    version = get(session, actor, version_id, need="editor")
    if version.state == "queued":
        version.state = "cancelled"
    elif version.state == "running":
        version.want = "cancel"
    else:
        raise Conflict("This version is not being frozen.")
    return version


def latest(session: Session, project_id: str, *, is_finished: bool = True) -> DatasetVersion | None:
    """The newest (finished) version of a project. No gate: for callers that passed it."""
    query = select(DatasetVersion).where(DatasetVersion.project_id == project_id)
    if is_finished:
        query = query.where(DatasetVersion.state == "succeeded")
    return session.scalar(query.order_by(DatasetVersion.number.desc()).limit(1))


def list_versions(session: Session, actor: Actor, project_id: str) -> list[DatasetVersion]:
    """All versions, newest first."""
    projects.get(session, actor, project_id)
    query = select(DatasetVersion).where(DatasetVersion.project_id == project_id)
    return list(session.scalars(query.order_by(DatasetVersion.number.desc()).limit(200)))


def get(session: Session, actor: Actor, version_id: str, *, need: str = "viewer") -> DatasetVersion:
    """A version, by the gate of its project."""
    version = session.get(DatasetVersion, version_id)
    if version is None:
        raise NotFound
    projects.get(session, actor, version.project_id, need=need)
    return version


def record(session: Session, version: DatasetVersion, manifest: dict[str, Any]) -> None:
    """Write down what was built (called by the worker, inside its lease)."""
    splits = manifest["counts"]["splits"]
    version.manifest_sha256, version.content_hash = manifest_id(manifest), manifest["content_hash"]
    version.statistics, version.kind = manifest["statistics"], manifest["kind"]
    version.train_rows, version.validation_rows, version.test_rows = (
        splits["train"],
        splits["validation"],
        splits["test"],
    )
    session.flush()


def earlier_sides(session: Session, version: DatasetVersion) -> Path | None:
    """The sides of the newest finished version before this one, when it was split by the same settings: rows stay
    where they were, so that a model's test is never another model's training."""
    query = select(DatasetVersion).where(
        DatasetVersion.project_id == version.project_id,
        DatasetVersion.number < version.number,
        DatasetVersion.state == "succeeded",
    )
    earlier = session.scalar(query.order_by(DatasetVersion.number.desc()).limit(1))
    if earlier is None or earlier.plan.get("split") != version.plan.get("split"):
        return None
    path = storage.version_dir(earlier.id) / "sides.parquet"
    return path if path.exists() else None


def folder(version: DatasetVersion) -> Path:
    """The frozen files, fetched from the storage when they are not here. Raises NotFound before they are built."""
    if version.state == "retired":
        raise NotFound(version.error)
    if version.state != "succeeded":
        raise NotFound("This version is not finished.")
    local = storage.version_dir(version.id)
    if not local.exists():
        try:
            storage.fetch_artefact(f"versions/{version.id}", local)
        except OSError as error:
            raise Unavailable(
                "The files of this version cannot be reached. Check the storage, then try again."
            ) from error
        if not is_intact(local):
            shutil.rmtree(local)
            raise Unavailable("The stored files of this version are damaged. Freeze the same plan again.")
    return local


def manifest_of(version: DatasetVersion) -> dict[str, Any]:
    """The manifest as it was written."""
    found: dict[str, Any] = orjson.loads((folder(version) / "manifest.json").read_bytes())
    return found
