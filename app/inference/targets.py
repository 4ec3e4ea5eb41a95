"""What can be asked in a project: finished models, kept checkpoints, base models, under one kind of reference.

A reference is "model:<id>", "checkpoint:<id>" or "base:<id>"; it is resolved for an actor: it opens nothing alone.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.accounts.service import Actor
from app.contracts.recipe import ModelFiles
from app.core.errors import NotFound
from app.projects import service as projects
from app.recipes.models import BaseModelEntry
from app.runs import service as runs
from app.runs.models import OPEN_STATES, Checkpoint, Model, Run

MOST_ENDED = 60  # checkpoints of ended runs in a picker; any other is asked from its run's page


@dataclass(frozen=True)
class Target:
    """One thing to ask. `system_prompt` is what it was trained with and works best with."""

    ref: str
    name: str
    files: ModelFiles
    project_id: str
    workspace_id: str
    is_base: bool = False
    is_chat: bool = True
    system_prompt: str = ""
    created_at: datetime | None = None


def resolve(session: Session, actor: Actor, project_id: str, ref: str) -> Target:
    """The target of `ref` within the project. Raises NotFound for what is not there or not the actor's."""
    project = projects.get(session, actor, project_id)
    kind, _, key = ref.partition(":")
    if kind == "model":
        model = runs.get_model(session, actor, key)
        run = session.get_one(Run, model.run_id)
        files, name, made = ModelFiles.model_validate(model.files), model.name, model.created_at
    elif kind == "checkpoint":
        checkpoint, files = runs.checkpoint_files(session, actor, key)
        run = session.get_one(Run, checkpoint.run_id)
        name, made = f"{run.name} · step {checkpoint.step:,}", checkpoint.created_at
    elif kind == "base":
        entry = session.get(BaseModelEntry, key)
        if entry is None or entry.workspace_id != project.workspace_id or not entry.folder:
            raise NotFound("This base model is no longer there.")
        files = ModelFiles(base_dir=entry.folder)
        return Target(
            ref, entry.name, files, project.id, project.workspace_id, is_base=True, created_at=entry.created_at
        )
    else:
        raise NotFound
    if run.project_id != project.id:
        raise NotFound
    return Target(
        ref,
        name,
        files,
        project.id,
        project.workspace_id,
        is_chat=run.frozen.get("dataset", {}).get("kind", "chat") != "text",
        system_prompt=run.frozen.get("system_prompt", ""),
        created_at=made,
    )


@dataclass(frozen=True)
class Choice:
    """An entry of a picker: a reference, its name and the group it stands in."""

    ref: str
    name: str
    group: str


def choices(session: Session, actor: Actor, project_id: str) -> list[Choice]:
    """Everything the project can ask: models newest first, checkpoints of open runs, then of ended ones, then bases."""
    found = [Choice(f"model:{m.id}", m.name, "models") for m in runs.models_of(session, actor, project_id)]
    kept = (
        select(Checkpoint.id, Checkpoint.step, Run.name, Run.state.in_(OPEN_STATES))
        .join(Run, Run.id == Checkpoint.run_id)
        .where(Run.project_id == project_id, Checkpoint.state == "kept")
        .order_by(Run.created_at.desc(), Checkpoint.step.desc())
    )
    ended: list[Choice] = []
    for checkpoint_id, step, name, is_open in session.execute(kept):
        one = Choice(f"checkpoint:{checkpoint_id}", f"{name} · step {step:,}", "checkpoints" if is_open else "ended")
        (found if is_open else ended).append(one)
    found += ended[:MOST_ENDED]
    bases = (
        select(BaseModelEntry.id, BaseModelEntry.name)
        .where(BaseModelEntry.id.in_(select(Run.base_model_id).where(Run.project_id == project_id)))
        .order_by(BaseModelEntry.name)
    )
    found += [Choice(f"base:{key}", name, "bases") for key, name in session.execute(bases)]
    return found


def names_in(session: Session, workspace_id: str, refs: Iterable[str]) -> dict[str, str]:
    """Names of those of `refs` that are this workspace's."""
    keys: dict[str, list[str]] = {"model": [], "checkpoint": [], "base": []}
    for ref in refs:
        kind, _, key = ref.partition(":")
        keys.get(kind, []).append(key)
    found: dict[str, str] = {}
    models = select(Model.id, Model.name).join(Run, Run.id == Model.run_id)
    for key, name in session.execute(models.where(Model.id.in_(keys["model"]), Run.workspace_id == workspace_id)):
        found[f"model:{key}"] = name
    kept = select(Checkpoint.id, Checkpoint.step, Run.name).join(Run, Run.id == Checkpoint.run_id)
    for key, step, name in session.execute(
        kept.where(Checkpoint.id.in_(keys["checkpoint"]), Run.workspace_id == workspace_id)
    ):
        found[f"checkpoint:{key}"] = f"{name} · step {step:,}"
    bases = select(BaseModelEntry.id, BaseModelEntry.name).where(
        BaseModelEntry.id.in_(keys["base"]), BaseModelEntry.workspace_id == workspace_id
    )
    return found | {f"base:{key}": name for key, name in session.execute(bases)}


def base_of(session: Session, actor: Actor, project_id: str, ref: str) -> Target | None:
    """What a model or checkpoint was trained from, to compare with; None for one from scratch, or when it is gone."""
    kind, _, key = ref.partition(":")
    if kind == "model":
        run = session.get_one(Run, runs.get_model(session, actor, key).run_id)
    elif kind == "checkpoint":
        run = session.get_one(Run, runs.checkpoint_files(session, actor, key)[0].run_id)
    else:
        return None
    if run.base_model_id:
        earlier = f"base:{run.base_model_id}"
    elif run.parent_model_id:
        earlier = f"model:{run.parent_model_id}"
    else:
        return None
    try:
        return resolve(session, actor, project_id, earlier)
    except NotFound:
        return None


def context_tokens(files: ModelFiles) -> int | None:
    """How many tokens a model reads in all, question and answer together; None when its folder does not say."""
    try:
        config = json.loads((Path(files.base_dir) / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    found = config.get("max_position_embeddings") or config.get("n_positions") if isinstance(config, dict) else None
    return found if isinstance(found, int) and found > 0 else None
