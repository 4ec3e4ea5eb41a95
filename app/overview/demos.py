"""The demo gallery: projects that go from shipped data to a model by themselves, through the same services as people.

`start` makes the project; the housekeeper calls `advance_all`, which takes each one step further when it can.
"""

import logging
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.accounts.service import Actor
from app.core.db import reading, transaction, utcnow
from app.core.errors import AppError, NotFound
from app.datasets import plans, versions
from app.datasets import service as datasets
from app.datasets.models import CleaningPlan, DatasetVersion, SourceFile
from app.datasets.splitting import SplitSettings
from app.projects import service as projects
from app.projects.models import Objective, Project
from app.recipes import service as recipes
from app.recipes.models import RecipeDraft
from app.runs import service as runs
from app.runs.models import Run

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Demo:
    """One entry of the gallery; see demos.yaml."""

    key: str
    name: str
    icon: str
    summary: str
    duration: str
    template: str
    sample: str
    task: str
    audience: str
    tone: str
    base: str
    preset: str
    run_name: str
    method: str = ""
    samples: list[dict[str, str]] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    split: dict[str, Any] = field(default_factory=dict)
    overrides: dict[str, Any] = field(default_factory=dict)


@lru_cache
def gallery() -> dict[str, Demo]:
    """Every demo by its key, in order."""
    entries = yaml.safe_load(Path(__file__).with_name("demos.yaml").read_text(encoding="utf-8"))
    return {entry["key"]: Demo(**entry) for entry in entries}


def start(session: Session, actor: Actor, key: str, *, workspace_id: str = "") -> Project:
    """Make the demo's project and bring its data. Raises NotFound for an unknown demo."""
    demo = gallery().get(key)
    if demo is None:
        raise NotFound("There is no demo of this name.")
    project = projects.create(
        session, actor, name=demo.name, template_key=demo.template, demo=demo.key, workspace_id=workspace_id
    )
    objective = session.get_one(Objective, project.id)
    objective.task, objective.audience, objective.tone = demo.task, demo.audience, demo.tone
    objective.must_never, objective.samples = [], [dict(sample) for sample in demo.samples]
    objective.system_prompt = projects.instruction(objective)
    plans.apply_steps(session, actor, project.id, demo.steps)
    plans.set_split(session, actor, project.id, SplitSettings.model_validate(demo.split))
    datasets.add_sample(session, actor, project_id=project.id, key=demo.sample)
    return project


def advance_all() -> int:
    """Take every demo project that has no run yet one step further; how many moved."""
    with reading() as session:
        query = select(Project.id).where(Project.demo != "", Project.deleted_at.is_(None))
        waiting = list(session.scalars(query.where(Project.id.not_in(select(Run.project_id)))))
    return sum(_advance(project_id) for project_id in waiting)


def _advance(project_id: str) -> bool:
    try:
        with transaction() as session:
            return _step(session, session.get_one(Project, project_id))
    except AppError as error:
        # Something is still being read or made, or a person changed the project: look again later.
        log.debug("demo %s waits: %s", project_id, error.sentence)
        return False


def _step(session: Session, project: Project) -> bool:
    demo = gallery().get(project.demo)
    if demo is None:
        return False
    actor = Actor(project.created_by, roles={project.workspace_id: "editor"})
    newest = versions.latest(session, project.id, is_finished=False)
    if newest is None:
        versions.freeze(session, actor, project.id)
        return True
    if newest.state == "succeeded":
        _train(session, actor, project, demo, newest)
        return True
    return False


def _train(session: Session, actor: Actor, project: Project, demo: Demo, version: DatasetVersion) -> None:
    choices: dict[str, Any] = {
        "base": {"source": demo.base}, "overrides": dict(demo.overrides), "name": demo.run_name
    }  # fmt: skip
    if demo.method:
        choices["method"] = demo.method
    session.merge(
        RecipeDraft(
            project_id=project.id, version_id=version.id, preset=demo.preset, choices=choices, updated_at=utcnow()
        )
    )
    session.flush()
    ready = recipes.ready(session, actor, project.id)
    runs.start(
        session,
        actor,
        project_id=project.id,
        version_id=ready.version_id,
        recipe=ready.recipe,
        client_request_id=f"demo-{project.id}",
        name=ready.name,
        base_model_id=ready.base_model_id,
        parent_model_id=ready.parent_model_id,
        estimate=ready.estimate,
    )


@dataclass(frozen=True)
class DemoStep:
    """One stage of a demo's way to its run: its state is done, working or waiting."""

    title: str
    state: str


def progress(session: Session, project: Project) -> tuple[list[DemoStep], str, str]:
    """The stages up to the run, the run's id once there is one, and the sentence of what went wrong."""
    run_id = session.scalar(select(Run.id).where(Run.project_id == project.id).order_by(Run.number).limit(1)) or ""
    files = list(session.scalars(select(SourceFile).where(SourceFile.project_id == project.id)))
    plan = session.scalar(select(CleaningPlan).where(CleaningPlan.project_id == project.id))
    version = versions.latest(session, project.id, is_finished=False)
    is_read = bool(files) and all(file.state == "succeeded" for file in files)
    is_clean = is_read and plan is not None and bool(plan.report) and plan.prepared_revision == plan.revision
    done = [is_read, is_clean, version is not None and version.state == "succeeded", bool(run_id)]
    titles = ["Reading the examples", "Cleaning and splitting", "Freezing a version", "Starting the training"]
    first_open = next((place for place, is_done in enumerate(done) if not is_done), len(done))
    states = ["done" if place < first_open else "working" if place == first_open else "waiting" for place in range(4)]
    works: list[Any] = [*files, *([plan] if plan else []), *([version] if version else [])]
    error = next((work.error for work in works if work.state == "failed"), "")
    return [DemoStep(title, state) for title, state in zip(titles, states, strict=True)], run_id, error
