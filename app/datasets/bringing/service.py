"""Remote sources of a project: begun, confirmed, stopped, and turned into source files when they have arrived."""

import re
import shutil
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.accounts.service import Actor
from app.core import security, storage
from app.core.db import new_id
from app.core.errors import Conflict, Invalid, NotFound
from app.core.queue import ring
from app.datasets.bringing import hub
from app.datasets.bringing.web import checked_address
from app.datasets.models import RemoteSource
from app.projects import service as projects

TASK = "datasets.bring"
PAGE_LIMIT = 1900
LIVE_LIMIT = 20
_HUB_REF = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")
_REVISION = re.compile(r"[\w./-]{1,100}")
_BUCKET = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,62}(/[^\x00-\x1f]{0,900})?")


def folder_of(source: RemoteSource) -> Path:
    """Where it arrives. It goes away when everything has become source files."""
    path = storage.uploads_dir() / f"remote-{source.id}"
    path.mkdir(exist_ok=True)
    return path


def listed(session: Session, project_id: str) -> list[RemoteSource]:
    """What is on its way, waits for a choice, or went wrong; newest first. The caller has passed the gate."""
    query = select(RemoteSource).where(
        RemoteSource.project_id == project_id, RemoteSource.state.not_in(("succeeded", "removed"))
    )
    return list(session.scalars(query.order_by(RemoteSource.created_at.desc()).limit(50)))


def get(session: Session, actor: Actor, source_id: str, *, need: str = "editor") -> RemoteSource:
    """A remote source, by the gate of its project."""
    source = session.get(RemoteSource, source_id)
    if source is None or source.state == "removed":
        raise NotFound
    projects.get(session, actor, source.project_id, need=need)
    return source


def bring_web(
    session: Session, actor: Actor, *, project_id: str, address: str, is_site: bool = False, page_limit: int = 100,
    licence: str = "", consent: str = "",
) -> RemoteSource:  # fmt: skip
    """Queue one address, or the site below it. Raises Invalid for what is no address."""
    kind = "site" if is_site else "web"
    limit = max(1, min(page_limit, PAGE_LIMIT))
    return _queued(session, actor, project_id, kind, checked_address(address), {"page_limit": limit}, licence, consent)


def bring_bucket(
    session: Session, actor: Actor, *, project_id: str, address: str, endpoint: str = "", key: str = "",
    secret: str = "", licence: str = "", consent: str = "",
) -> RemoteSource:  # fmt: skip
    """Queue the files below s3://bucket/path. Keys are kept encrypted until everything has arrived."""
    address = address.strip()
    if not _BUCKET.fullmatch(address):
        raise Invalid(fields={"address": "Write it as s3://bucket/path, as your storage shows it."})
    if bool(key) != bool(secret):
        raise Invalid(fields={"key": "Give both the key and its secret, or neither for a public bucket."})
    details = {"endpoint": checked_address(endpoint) if endpoint.strip() else ""}
    source = _queued(session, actor, project_id, "bucket", address, details, licence, consent)
    source.sealed_keys = security.encrypt(f"{key}\n{secret}") if key else ""
    return source


def find_on_hub(session: Session, actor: Actor, *, project_id: str, address: str, revision: str = "") -> RemoteSource:
    """Ask the hub about a dataset and keep the answer for a person to choose from. Raises Invalid, Unavailable."""
    projects.get(session, actor, project_id, need="editor")
    ref = re.sub(r"^https?://[^/]+/datasets/", "", address.strip()).strip("/")
    if not _HUB_REF.fullmatch(ref) or ".." in ref:
        raise Invalid(fields={"address": "Write the dataset as owner/name, for example databricks/dolly."})
    revision = revision.strip()
    if revision and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise Invalid(fields={"revision": "A revision is a branch, a tag or a commit, for example main."})
    found = hub.look_up(ref, revision or "main")
    source = RemoteSource(
        id=new_id(), project_id=project_id, kind="hub", address=ref, state="found", licence=found.licence,
        created_by=actor.user_id,
        details={"commit": found.commit, "files": [list(f) for f in found.files], "has_script": found.has_script},
    )  # fmt: skip
    session.add(source)
    session.flush()
    return source


def confirm(session: Session, actor: Actor, source_id: str, *, names: list[str], consent: str = "") -> RemoteSource:
    """Fetch the chosen files of a dataset of the hub. Raises Conflict, Invalid."""
    source = get(session, actor, source_id)
    if source.state != "found":
        raise Conflict("This dataset is on its way already.")
    chosen = [f for f in source.details["files"] if f[0] in set(names)]
    if not chosen:
        raise Invalid("Choose at least one file.")
    storage.require_space(sum(f[1] for f in chosen))
    source.details = {**source.details, "files": chosen}
    source.consent = consent[:500]
    _start(session, source)
    return source


def retry(session: Session, actor: Actor, source_id: str) -> RemoteSource:
    """Go on with what failed or was stopped; what has arrived is kept. Raises Conflict."""
    source = get(session, actor, source_id)
    if source.state not in ("failed", "cancelled"):
        raise Conflict("This is on its way already.")
    _start(session, source)
    return source


def cancel(session: Session, actor: Actor, source_id: str) -> RemoteSource:
    """Stop; what has arrived is kept for later. Raises Conflict when nothing is going on."""
    source = get(session, actor, source_id)
    if source.state == "queued":
        source.state = "cancelled"
    elif source.state == "running":
        source.want = "cancel"
    else:
        raise Conflict("This is not on its way.")
    return source


def remove(session: Session, actor: Actor, source_id: str) -> RemoteSource:
    """Give it up and delete what has arrived. Raises Conflict while it is being fetched."""
    source = get(session, actor, source_id)
    if source.state == "running":
        raise Conflict("Stop it first, then remove it.")
    source.state, source.sealed_keys = "removed", ""
    shutil.rmtree(folder_of(source), ignore_errors=True)
    return source


def _queued(
    session: Session, actor: Actor, project_id: str, kind: str, address: str, details: dict[str, Any], licence: str,
    consent: str,
) -> RemoteSource:  # fmt: skip
    projects.get(session, actor, project_id, need="editor")
    waiting = select(RemoteSource.id).where(
        RemoteSource.project_id == project_id, RemoteSource.state.in_(("queued", "running"))
    )
    if len(session.scalars(waiting.limit(LIVE_LIMIT)).all()) >= LIVE_LIMIT:
        raise Conflict(f"{LIVE_LIMIT} sources are on their way already. Wait for some to arrive.")
    source = RemoteSource(
        id=new_id(), project_id=project_id, kind=kind, address=address, details=details, licence=licence[:200],
        consent=consent[:500], created_by=actor.user_id,
    )  # fmt: skip
    session.add(source)
    session.flush()
    ring(session, TASK, source.id)
    return source


def _start(session: Session, source: RemoteSource) -> None:
    source.state, source.want, source.attempts, source.error = "queued", "run", 0, ""
    source.fence, source.attempt_id = source.fence + 1, None
    session.flush()
    ring(session, TASK, source.id)
