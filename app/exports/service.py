"""Exports: asked for, listed, stopped, deleted, and where their files lie."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import psutil
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.accounts import audit
from app.accounts.service import Actor
from app.contracts.export import ExportKind, ExportOrder
from app.contracts.recipe import ModelFiles
from app.core import security, storage
from app.core.db import new_id, utcnow
from app.core.errors import Conflict, Gone, Invalid, NotFound
from app.core.queue import ring
from app.core.work import LIVE
from app.exports.models import Export
from app.inference import targets
from app.inference.targets import Target
from app.projects import service as projects
from app.projects.models import Objective, Project
from app.runs import service as runs
from app.runs.models import Run

TASK = "exports.make"
LISTED = 30
# Asked where the objective has too few questions of its own; any text does, it is only compared.
QUESTIONS = (
    "Hello",
    "What can you do?",
    "How long does it take?",
    "Where do I find it?",
    "Please explain it in one sentence.",
    "Why?",
    "Give me an example.",
    "Thank you",
)
_SPARE_BYTES = 16 * 2**30
_SMALL_FILES_BYTES = 64 * 2**20


def export(
    session: Session,
    actor: Actor,
    project_id: str,
    *,
    ref: str,
    kind: ExportKind,
    repository: str = "",
    token: str = "",
) -> Export:
    """Queue an export. Raises Invalid for a base model, an adapter that is none, or a hub without a token."""
    project = projects.get(session, actor, project_id, need="editor")
    target = targets.resolve(session, actor, project.id, ref)
    if target.is_base:
        raise Invalid(fields={"model": "A base model is exported where it came from. Choose a model of your own."})
    if refusal := refused(target, kind):
        raise Invalid(fields={"kind": refusal})
    if repository and not token:
        raise Invalid(fields={"token": "The hub wants an access token that may write. It is forgotten after sending."})
    row = Export(
        id=new_id(),
        project_id=project.id,
        run_id=_run_of(session, actor, ref),
        model_ref=ref,
        model_name=target.name[:120],
        kind=kind,
        hub_repository=repository,
        sealed_token=security.encrypt(token) if repository else "",
        created_by=actor.user_id,
    )
    session.add(row)
    session.flush()
    audit.record(
        session, actor, "model.exported", workspace_id=project.workspace_id, subject=target.name,
        details={"export": row.id, "kind": kind, "hub": repository},
    )  # fmt: skip
    ring(session, TASK, row.id)
    return row


def refused(target: Target, kind: str) -> str:
    """Why a model cannot be exported in this form, as far as its files tell; empty where it can."""
    overlays = target.files.overlays
    if kind != "adapter":
        return ""
    if not overlays or overlays[-1].kind != "lora":
        return "This model was not trained as an adapter, so there is none to take away. Choose the whole folder."
    if len(overlays) > 1:
        return "This adapter lies on another of your models and fits no public base alone. Choose the whole folder."
    return ""


def _run_of(session: Session, actor: Actor, ref: str) -> str:
    kind, _, key = ref.partition(":")
    if kind == "model":
        return runs.get_model(session, actor, key).run_id
    return runs.checkpoint_files(session, actor, key)[0].run_id


def get(session: Session, actor: Actor, export_id: str, *, need: str = "viewer") -> Export:
    """An export, for somebody who may see its project."""
    row = session.get(Export, export_id)
    if row is None:
        raise NotFound
    projects.get(session, actor, row.project_id, need=need)
    if row.deleted_at is not None:
        raise NotFound("This export was deleted.")
    return row


def listing(session: Session, actor: Actor, project_id: str) -> Sequence[Export]:
    """The project's exports, newest first."""
    projects.get(session, actor, project_id)
    query = select(Export).where(Export.project_id == project_id, Export.deleted_at.is_(None))
    return session.scalars(query.order_by(Export.created_at.desc(), Export.id).limit(LISTED)).all()


def request_cancel(session: Session, actor: Actor, export_id: str) -> Export:
    """Stop an export that waits or works."""
    row = get(session, actor, export_id, need="editor")
    if row.state in LIVE:
        row.want = "cancel"
        if row.state == "queued":
            row.state, row.work_ended_at, row.sealed_token = "cancelled", utcnow(), ""
    return row


def wake(session: Session, export_id: str) -> None:
    """Ring the workers once more."""
    ring(session, TASK, export_id)


def retry(session: Session, actor: Actor, export_id: str) -> Export:
    """Begin a failed or stopped export again. What was written and checked is not written again."""
    row = get(session, actor, export_id, need="editor")
    if row.state not in ("failed", "cancelled"):
        raise Conflict("This export is going on or has ended.")
    if row.hub_repository and not row.sealed_token:
        raise Conflict("The access token is no longer kept. Ask for the export again, with the token.")
    row.state, row.want, row.error, row.attempts = "queued", "run", "", 0
    session.flush()
    ring(session, TASK, row.id)
    return row


def delete(session: Session, actor: Actor, export_id: str) -> Export:
    """Delete an export and its files for good; it can be made again from its model."""
    row = get(session, actor, export_id, need="editor")
    if row.state in LIVE:
        raise Conflict("This export is going on. Stop it first.")
    row.deleted_at, row.sealed_token, row.files = utcnow(), "", []
    for folder in (folder_of(row), making_of(row)):
        shutil.rmtree(folder, ignore_errors=True)
    return row


def making_of(row: Export) -> Path:
    """Where its files are made before they are renamed into place; the next attempt clears what a killed one left."""
    return folder_of(row).with_name(f".tmp-{row.id}")


def folder_of(row: Export) -> Path:
    """Where its files lie: below its run, so that they go when the run's material is forgotten."""
    return storage.run_dir(row.run_id) / "exports" / row.id


def file_of(session: Session, actor: Actor, export_id: str, name: str) -> Path:
    """One finished file. Raises NotFound for names that are not the export's, and when its model is gone."""
    row = finished(session, actor, export_id)
    if name not in {file["name"] for file in row.files}:
        raise NotFound
    return folder_of(row) / name


def finished(session: Session, actor: Actor, export_id: str) -> Export:
    """An export that can be fetched. Raises Gone while its files are not there, NotFound when its model is gone."""
    row = get(session, actor, export_id)
    _run_of(session, actor, row.model_ref)
    if row.state != "succeeded" or not folder_of(row).is_dir():
        raise Gone("These files are not there. Ask for the export again.")
    return row


def model_of(session: Session, row: Export) -> Target:
    """What is exported. Raises NotFound, with the reason, for a model that was deleted since."""
    project = session.get_one(Project, row.project_id)
    actor = Actor(None, "", "", {project.workspace_id: "viewer"})
    return targets.resolve(session, actor, project.id, row.model_ref)


def order_of(session: Session, row: Export, folder: Path) -> ExportOrder:
    """What the child is told. The asker's right was checked when the row was made; a model gone since is NotFound."""
    target = model_of(session, row)
    objective = session.get(Objective, row.project_id)
    own = [str(sample.get("question") or "").strip() for sample in (objective.samples if objective else [])]
    prompts = list(dict.fromkeys([*filter(None, own), *QUESTIONS]))[:8]
    about = session.get_one(Run, row.run_id).frozen.get("base_about", {})
    return ExportOrder(
        kind=row.kind,
        files=target.files,
        name=slug(target.name),
        title=target.name,
        is_chat=target.is_chat,
        system_prompt=target.system_prompt,
        prompts=[prompt[:1000] for prompt in prompts],
        base_name=about.get("ref", "") if about.get("source") == "hub" else about.get("name", ""),
        out_dir=str(folder),
        memory_bytes=memory_limit(target.files),
    )


def memory_limit(files: ModelFiles) -> int:
    """Address space of the child in bytes: three models in fp32 and what the libraries map."""
    return min(6 * _weight_bytes(files) + _SPARE_BYTES, psutil.virtual_memory().total + _SPARE_BYTES)


def space_needed(files: ModelFiles) -> int:
    """Bytes on the disk while an export is made: the model in fp32, tokenizer and card beside it."""
    return 2 * _weight_bytes(files) + _SMALL_FILES_BYTES


def _weight_bytes(files: ModelFiles) -> int:
    folders = [Path(files.base_dir), *(Path(overlay.dir) for overlay in files.overlays)]
    return sum(path.stat().st_size for folder in folders for path in folder.glob("*.safetensors"))


def slug(name: str) -> str:
    """A model's name as the stem of a file."""
    text = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60].strip("-")
    return text or "model"
