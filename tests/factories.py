"""Readable sample rows for tests: a person with a workspace, a project, a frozen dataset version, a tiny recipe."""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy.orm import Session

from app.accounts.models import Member, User, Workspace
from app.accounts.service import Actor
from app.contracts.recipe import RecipeSpec, ScratchSpec
from app.core import storage
from app.core.db import new_id
from app.datasets.freezing import FROZEN, canonical
from app.datasets.models import DatasetVersion
from app.projects.models import Project

RHYME = ("the cat sat on the mat. ", "a dog ran in the fog. ", "the sun is fun to run. ", "we all fall in the hall. ")


@dataclass(frozen=True)
class World:
    """One person, their workspace and project, and a frozen version to train on."""

    actor: Actor
    workspace_id: str
    project_id: str
    version_id: str


def a_world(session: Session, name: str = "Ada", rows: int = 48) -> World:
    """A person called `name` with a project whose dataset is frozen."""
    user = User(email=f"{name.lower()}-{new_id()}@example.org", name=name, password_hash="-")
    workspace = Workspace(name=f"{name}'s workspace")
    session.add_all([user, workspace])
    session.flush()
    session.add(Member(workspace_id=workspace.id, user_id=user.id, role="owner"))
    project = Project(workspace_id=workspace.id, name="Rhymes", created_by=user.id)
    session.add(project)
    session.flush()
    actor = Actor(user.id, user.email, user.name, {workspace.id: "owner"})
    return World(actor, workspace.id, project.id, a_version(session, project.id, rows).id)


def a_version(session: Session, project_id: str, rows: int = 48) -> DatasetVersion:
    """A frozen version of plain text, on disk and in the database."""
    version = DatasetVersion(project_id=project_id, number=1, kind="text", state="succeeded")
    session.add(version)
    session.flush()
    folder = storage.version_dir(version.id)
    folder.mkdir(parents=True)
    splits = ["validation" if i % 8 == 7 else "train" for i in range(rows)]
    lines: list[dict[str, Any]] = [
        {
            "_rid": i,
            "split": split,
            "kind": "text",
            "messages": [],
            "text": "".join(RHYME[(i * 7 + j * j) % 4] for j in range(4)),
            "meta": "{}",
        }
        for i, split in enumerate(splits)
    ]
    pq.write_table(pa.Table.from_pylist(lines, schema=FROZEN), folder / "data-00000.parquet")
    (folder / "manifest.json").write_bytes(canonical({"rows": rows}))
    version.train_rows, version.validation_rows = splits.count("train"), splits.count("validation")
    version.content_hash = "0" * 64
    return version


def a_recipe(**changes: Any) -> RecipeSpec:
    """A GPT from scratch so small that a step takes milliseconds."""
    values: dict[str, Any] = {
        "method": "scratch",
        "base_source": "scratch",
        "scratch": ScratchSpec(layers=2, heads=2, width=16, context_length=32, tokenizer="characters"),
        "max_steps": 20,
        "epochs": 100,
        "batch_size": 4,
        "micro_batch_size": 4,
        "max_length_tokens": 32,
        "learning_rate": 3e-3,
        "warmup_steps": 2,
        "evaluate_every_steps": 10,
        "checkpoint_every_steps": 5,
        "validation_rows": 4,
        "sample_max_tokens": 8,
        "sample_prompts": ["the cat"],
        "precision": "fp32",
        "threads": 1,
    }
    return RecipeSpec.model_validate({**values, **changes})
