"""Uploads: a row with the offset that is safe on disk, and a spool file. Bytes are written by `spool.py`."""

import base64
import binascii
import shutil
import time
import unicodedata
from datetime import timedelta
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.accounts.service import Actor
from app.core import storage
from app.core.config import get_settings
from app.core.db import new_id, utcnow
from app.core.errors import AppError, BadRequest, Conflict, NotFound, TooLarge
from app.datasets import service
from app.datasets.models import SourceFile, Upload
from app.projects import service as projects

ABANDONED_AFTER = timedelta(days=7)
LEFT_AFTER_S = 24 * 3600.0
RECEIVING_LIMIT = 200


def metadata_of(header: str) -> dict[str, str]:
    """tus Upload-Metadata: pairs of a key and a base64 value, by commas. Raises BadRequest."""
    found: dict[str, str] = {}
    for pair in header[:8192].split(","):
        key, _, value = pair.strip().partition(" ")
        if key:
            try:
                found[key] = base64.b64decode(value, validate=True).decode("utf-8")
            except (binascii.Error, UnicodeDecodeError) as error:
                raise BadRequest("The Upload-Metadata header cannot be read.") from error
    return found


def clean_filename(name: str) -> str:
    """The last part of a path, without control characters, at most 200 characters: for showing, never a path."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    shown = "".join(c for c in last if unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co"))
    stem, dot, extension = shown.strip().rpartition(".")
    if dot and len(shown) > 200:
        shown = f"{stem[: 200 - len(extension[:20]) - 1]}.{extension[:20]}"
    return shown.strip()[:200] or "file"


def spool_path(upload_id: str) -> Path:
    """Where the bytes of an upload wait."""
    return storage.uploads_dir() / upload_id


class FileChanged(AppError):
    """Other bytes than those whose first part was sent."""

    status, code = 422, "changed"
    default = "This file has changed since its first part was sent. Send it from its start."


def create(
    session: Session, actor: Actor, *, project_id: str, filename: str, size_bytes: int, fingerprint: str = ""
) -> Upload:
    """A new upload. Raises TooLarge, DiskFull, Conflict (200 unfinished ones in the project), and the gate's errors."""
    projects.get(session, actor, project_id, need="editor")
    limit = get_settings().upload_limit_bytes
    if size_bytes > limit:
        raise TooLarge(f"This file is over the limit of {limit / 1e9:.0f} GB. Split it, then bring the parts.")
    storage.require_space(size_bytes)
    waiting = select(Upload.id).where(Upload.project_id == project_id, Upload.state == "receiving")
    if len(session.scalars(waiting.limit(RECEIVING_LIMIT)).all()) >= RECEIVING_LIMIT:
        raise Conflict("200 uploads of this project are unfinished. Finish or remove some first.")
    upload = Upload(
        id=new_id(),
        project_id=project_id,
        user_id=actor.user_id,
        filename=clean_filename(filename),
        size_bytes=size_bytes,
        fingerprint=fingerprint[:100],
    )
    spool_path(upload.id).touch(mode=0o600)
    session.add(upload)
    session.flush()
    return upload


def get(session: Session, actor: Actor, upload_id: str) -> Upload:
    """An upload of this very person, for an editor of its project. NotFound for everybody else."""
    upload = session.get(Upload, upload_id)
    if upload is None:
        raise NotFound
    projects.get(session, actor, upload.project_id, need="editor")
    if upload.user_id != actor.user_id or upload.state == "removed":
        raise NotFound
    return upload


def require_same(upload: Upload, fingerprint: str) -> None:
    """Raises FileChanged where both sides know what the file was, and it is another now."""
    if fingerprint and upload.fingerprint and fingerprint[:100] != upload.fingerprint:
        raise FileChanged


def unfinished(session: Session, actor: Actor, project_id: str) -> list[Upload]:
    """This person's uploads of the project that stopped half-way, newest first. The caller has passed the gate."""
    query = select(Upload).where(
        Upload.project_id == project_id, Upload.user_id == actor.user_id, Upload.state == "receiving"
    )
    return list(session.scalars(query.order_by(Upload.updated_at.desc(), Upload.id).limit(50)))


def advance(session: Session, upload_id: str, offset_bytes: int) -> None:
    """Record that so many bytes are safe on disk."""
    upload = session.get(Upload, upload_id)
    if upload is not None and upload.state == "receiving":
        upload.offset_bytes = offset_bytes


def complete(session: Session, actor: Actor, upload_id: str, *, sha256: str) -> SourceFile:
    """All bytes are there: make the source file (or find the same one) and ring its import."""
    upload = get(session, actor, upload_id)
    if upload.offset_bytes != upload.size_bytes:
        raise Conflict("The upload is not finished.")
    if upload.file_id is not None and (known := session.get(SourceFile, upload.file_id)) is not None:
        return known
    file = service.receive(
        session,
        actor,
        project_id=upload.project_id,
        filename=upload.filename,
        path=spool_path(upload.id),
        sha256=sha256,
        origin="upload",
    )
    upload.state, upload.file_id = "received", file.id
    return file


def remove(session: Session, actor: Actor, upload_id: str) -> None:
    """Give an upload up and delete its bytes."""
    upload = get(session, actor, upload_id)
    upload.state = "removed"
    spool_path(upload.id).unlink(missing_ok=True)


def forget_abandoned(session: Session) -> int:
    """Delete spool files of uploads that nobody went on with for a week; how many. Called by the housekeeper."""
    old = session.scalars(
        select(Upload).where(Upload.state == "receiving", Upload.updated_at < utcnow() - ABANDONED_AFTER).limit(500)
    ).all()
    for upload in old:
        upload.state = "removed"
        spool_path(upload.id).unlink(missing_ok=True)
    return len(old)


def forget_leftovers(session: Session) -> int:
    """Delete what a cut between disk and database left: second names of received bytes, folders without a row.

    Only what is older than a day, so nothing that is on its way. Called by the housekeeper; how many.
    """
    before = time.time() - LEFT_AFTER_S
    spooled = [path for path in storage.uploads_dir().iterdir() if path.is_file() and path.stat().st_mtime < before]
    folders = [path for path in storage.sources_root().iterdir() if path.stat().st_mtime < before]
    open_ids = set(session.scalars(select(Upload.id).where(Upload.state == "receiving")))
    known = set(session.scalars(select(SourceFile.id)))
    spooled = [path for path in spooled if path.name not in open_ids]
    folders = [path for path in folders if path.name not in known]
    for path in spooled:
        path.unlink(missing_ok=True)
    for path in folders:
        shutil.rmtree(path, ignore_errors=True)
    return len(spooled) + len(folders)
