"""What a run left behind, given up while the run itself stays: its curve, its diary, its recipe."""

import shutil

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from app.accounts import audit
from app.accounts.service import Actor
from app.core import storage
from app.core.after_commit import after_commit
from app.core.db import utcnow
from app.core.errors import Conflict
from app.runs import service
from app.runs.models import END_STATES, Checkpoint, Model, Run
from app.runs.states import note


def request(session: Session, actor: Actor, run_id: str) -> int:
    """Delete an ended run's weights for good, because a person wants the space; the bytes that become free.

    Raises Conflict while the run is open, or when another run goes on from its model.
    """
    run = service.get(session, actor, run_id, need="editor")
    freed = discard(session, run, f"{actor.name} asked for it.")
    audit.record(session, actor, "run.discard", workspace_id=run.workspace_id, subject=run.name)
    # What is left over when this is interrupted goes when the housekeeper tidies.
    after_commit(session, lambda: erase(run_id))
    return freed


def discard(session: Session, run: Run, because: str) -> int:
    """Let nothing name the ended run's weights any more; the bytes that `erase` will free after the commit.

    Raises Conflict while the run is open, or when another run goes on from its model.
    """
    model = session.scalar(select(Model).where(Model.run_id == run.id, Model.deleted_at.is_(None)))
    if run.state not in END_STATES:
        raise Conflict("This run has not ended yet. Cancel it first, or stop it and keep its best.")
    if model is not None and session.scalar(select(Run.id).where(Run.parent_model_id == model.id).limit(1)):
        raise Conflict("Another run learned on top of this model and needs its weights.")
    kept = select(Checkpoint).where(Checkpoint.run_id == run.id, Checkpoint.state == "kept")
    freed = sum(checkpoint.size_bytes for checkpoint in session.scalars(kept))
    session.execute(
        update(Checkpoint).where(Checkpoint.run_id == run.id, Checkpoint.state == "kept").values(state="removed")
    )
    if model is not None:
        model.deleted_at = utcnow()
        model.retired_because = f"The model “{model.name}” was deleted. {because}"
        freed += model.size_bytes
    if freed:
        note(session, run.id, f"Its weights were deleted. {because}", kind="discarded")
    session.flush()
    return freed


def erase(run_id: str) -> None:
    """Delete the weights of a discarded run here and from the storage. Repeatable. Raises OSError."""
    for name in ("model", "checkpoints"):
        folder = storage.run_dir(run_id) / name
        shutil.rmtree(folder, ignore_errors=True)
        if folder.exists():
            raise OSError(f"{folder} could not be deleted")
    storage.delete_artefact(f"models/{run_id}")
