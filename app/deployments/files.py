"""OpenAI's files for the project's real material: what was uploaded at the API, and versions frozen in the browser.

An uploaded file is a source file of the project like any other. Once it is read, a version of it alone is frozen, with
the project's mapping, cleaning and split; that is what a fine-tuning job trains on.
"""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from app.accounts.service import Actor
from app.core import storage
from app.core.errors import BadRequest, NotFound
from app.datasets import service as datasets
from app.datasets import versions
from app.datasets.models import DatasetVersion, SourceFile
from app.deployments import wire
from app.projects import service as projects
from app.projects.models import Project

FILE = "file-"
_ASK_ABOUT = "It is not clear what the columns of this file mean. Say so on the project's page Data; then it is frozen."
_NOT_READY = "This file is still being read. Ask for it again until its status is “processed”."


@dataclass(frozen=True)
class ApiFile:
    """A file as clients see it: an uploaded one with the version made of it, or a version alone."""

    uploaded: SourceFile | None
    version: DatasetVersion | None

    @property
    def created_at(self) -> datetime:
        """When it was uploaded or frozen."""
        known = self.uploaded or self.version
        assert known is not None
        return known.created_at

    @property
    def status(self) -> tuple[str, str | None]:
        """OpenAI's word for where it stands, and what went wrong."""
        file, version = self.uploaded, self.version
        if version is not None and version.state == "succeeded":
            return ("processed", None) if version.train_rows else ("error", "No row of this file can be learned from.")
        if file is not None and file.state in ("failed", "cancelled"):
            return "error", file.error or "Reading it was stopped."
        if version is not None and version.state in ("failed", "cancelled", "retired"):
            return "error", version.error or "Freezing it was stopped."
        if file is not None and file.state == "succeeded" and not file.is_mapping_confirmed:
            return "error", _ASK_ABOUT
        return "uploaded", None


def project_for(session: Session, actor: Actor, wanted: str) -> Project:
    """The project that an upload goes to: the key's own, the one that was named, or the only one there is.

    Raises NotFound for a project that the key does not open, BadRequest where it opens several and none was named.
    """
    if actor.project_id is not None and wanted in ("", actor.project_id):
        return projects.get(session, actor, actor.project_id, need="editor")
    if wanted:
        return projects.get(session, actor, wanted, need="editor")
    query = select(Project).where(Project.workspace_id.in_(list(actor.roles)), Project.deleted_at.is_(None))
    found = list(session.scalars(query.limit(2)))
    if len(found) != 1:
        raise BadRequest(
            "This key opens several projects. Send the field project_id with the id from the project's address, or use "
            "a key of one project.",
            code="missing_project",
            param="project_id",
        )
    return projects.get(session, actor, found[0].id, need="editor")


def receive(session: Session, actor: Actor, project: Project, *, filename: str, path: Path, sha256: str) -> ApiFile:
    """Take over the bytes at `path` as a file of the project. The same bytes again give the file that is there."""
    file = datasets.receive(
        session, actor, project_id=project.id, filename=filename, path=path, sha256=sha256, origin=versions.BY_API
    )
    if file.origin not in (versions.BY_API, "upload", "paste", "sample"):
        sentence = f"These very rows are in the project already, as “{file.filename}”. Freeze a version in the browser."
        raise BadRequest(sentence, code="exists", param="file")
    if file.origin != versions.BY_API:
        # The same bytes were brought in the browser before: from now on they are asked for here, too.
        file.origin = versions.BY_API
        if file.state == "succeeded":
            versions.freeze_uploaded(session, project.id)
    session.flush()
    return ApiFile(file, versions.of_file(session, file.id))


def listing(session: Session, actor: Actor) -> list[ApiFile]:
    """Files of every project that the key opens, newest first."""
    mine: list[ColumnElement[bool]] = [Project.workspace_id.in_(list(actor.roles)), Project.deleted_at.is_(None)]
    if actor.project_id is not None:
        mine.append(Project.id == actor.project_id)
    made = (
        select(DatasetVersion)
        .join(Project, Project.id == DatasetVersion.project_id)
        .where(*mine, DatasetVersion.state == "succeeded", DatasetVersion.train_rows > 0)
        .where(DatasetVersion.file_id.is_(None))
    )
    uploaded = (
        select(SourceFile)
        .join(Project, Project.id == SourceFile.project_id)
        .where(*mine, SourceFile.origin == versions.BY_API, SourceFile.deleted_at.is_(None))
    )
    files = list(session.scalars(uploaded))
    frozen = versions.of_files(session, [file.id for file in files])
    found = [ApiFile(None, one) for one in session.scalars(made)]
    found += [ApiFile(one, frozen.get(one.id)) for one in files]
    return sorted(found, key=lambda one: (one.created_at, id_of(one)), reverse=True)


def get(session: Session, actor: Actor, file_id: str, *, need: str = "viewer") -> ApiFile:
    """A file by its id. Raises NotFound."""
    key = file_id.removeprefix(FILE)
    version = session.get(DatasetVersion, key)
    if version is None:
        file = datasets.get_file(session, actor, key, need=need)
        if file.origin != versions.BY_API:
            raise NotFound
        return ApiFile(file, versions.of_file(session, file.id))
    version = versions.get(session, actor, key, need=need)
    if version.state != "succeeded":
        raise NotFound
    return ApiFile(None, version)


def ready(session: Session, actor: Actor, file_id: str) -> DatasetVersion:
    """The frozen version that a job trains on. Raises BadRequest for a file that is not, or never will be, ready."""
    found = get(session, actor, file_id, need="editor")
    status, why = found.status
    if status != "processed":
        raise BadRequest(why or _NOT_READY, code="file_not_ready", param="training_file")
    assert found.version is not None
    return found.version


def delete(session: Session, actor: Actor, file_id: str) -> None:
    """Leave an uploaded file out of the project. Raises BadRequest for a frozen version, which runs rest on."""
    found = get(session, actor, file_id, need="editor")
    if found.uploaded is None:
        sentence = "A frozen version is kept, because runs rest on it. Files that were uploaded here can be deleted."
        raise BadRequest(sentence, code="unsupported", param="file_id")
    datasets.delete_file(session, actor, found.uploaded.id)


def id_of(found: ApiFile) -> str:
    """The id of a file at the API."""
    known = found.uploaded or found.version
    assert known is not None
    return FILE + known.id


def id_of_version(session: Session, version_id: str | None) -> str:
    """The id under which a job names its version: that of the uploaded file where it was made of one."""
    version = session.get(DatasetVersion, version_id) if version_id else None
    return FILE + str(version.file_id if version is not None and version.file_id else version_id)


def file_object(found: ApiFile) -> dict[str, Any]:
    """A file in OpenAI's shape. `bytes` are those that were uploaded, or those of a version's stored columns."""
    status, why = found.status
    if found.uploaded is not None:
        size, name = found.uploaded.size_bytes, found.uploaded.filename
    else:
        assert found.version is not None
        folder = storage.version_dir(found.version.id)
        size = sum(path.stat().st_size for path in folder.glob("data-*.parquet"))
        name = f"version-{found.version.number}.jsonl"
    return {
        "id": id_of(found),
        "object": "file",
        "bytes": size,
        "created_at": wire.seconds(found.created_at),
        "filename": name,
        "purpose": "fine-tune",
        "status": status,
        "status_details": why,
        "expires_at": None,
    }
