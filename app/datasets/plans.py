"""The cleaning plan of a project: steps and split. Every change is undoable and makes the working set again."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.accounts.service import Actor
from app.core import security, storage
from app.core.db import new_id
from app.core.errors import Conflict, Invalid, NotFound
from app.core.queue import ring
from app.datasets import row_changes
from app.datasets.browsing import model_view
from app.datasets.cleaning import STEPS, ChosenStep, in_order
from app.datasets.mapping import Mapping, columns_of
from app.datasets.models import CleaningPlan, SourceFile
from app.datasets.options import ReadOptions
from app.datasets.plan import Override, Plan, PlannedFile
from app.datasets.reports import PrepareReport
from app.datasets.splitting import SplitSettings
from app.datasets.steps.catalogue import PRESETS, of_preset, salted
from app.datasets.steps.contract import Step
from app.datasets.steps.tokens import reading_of
from app.datasets.tables import parts
from app.projects import service as projects

HISTORY_LIMIT = 50


def get(session: Session, actor: Actor, project_id: str) -> CleaningPlan | None:
    """The project's plan, or None before its first file."""
    projects.get(session, actor, project_id)
    return session.scalar(select(CleaningPlan).where(CleaningPlan.project_id == project_id))


def find(session: Session, project_id: str) -> CleaningPlan | None:
    """The project's plan. No gate: for callers that passed it."""
    return session.scalar(select(CleaningPlan).where(CleaningPlan.project_id == project_id))


def _of(session: Session, project_id: str) -> CleaningPlan:
    plan = session.scalar(select(CleaningPlan).where(CleaningPlan.project_id == project_id))
    if plan is None:
        plan = CleaningPlan(id=new_id(), project_id=project_id, state="succeeded")
        session.add(plan)
        session.flush()
    return plan


def change(session: Session, project_id: str) -> CleaningPlan:
    """Files, mapping or steps changed: ring for a new working set. Whoever works on the old one stops."""
    plan = _of(session, project_id)
    plan.revision = (plan.revision or 0) + 1
    plan.state, plan.want, plan.attempts, plan.error = "queued", "run", 0, ""
    plan.fence, plan.attempt_id = (plan.fence or 0) + 1, None
    session.flush()
    ring(session, "datasets.prepare", plan.id)
    return plan


def cancel(session: Session, actor: Actor, project_id: str) -> CleaningPlan:
    """Stop preparing; the rows stay as they were before. Raises Conflict when nothing is being prepared."""
    projects.get(session, actor, project_id, need="editor")
    plan = _of(session, project_id)
    if plan.state == "queued":
        plan.state = "cancelled"
    elif plan.state == "running":
        plan.want = "cancel"
    else:
        raise Conflict("The rows are not being prepared.")
    return plan


def again(session: Session, actor: Actor, project_id: str) -> CleaningPlan:
    """Prepare the rows once more, after it was stopped or failed."""
    projects.get(session, actor, project_id, need="editor")
    return change(session, project_id)


def chosen(plan: CleaningPlan | None) -> list[ChosenStep]:
    """The steps of a plan, in order."""
    return in_order(ChosenStep.model_validate(step) for step in (plan.steps if plan else []))


def overrides_of(plan: CleaningPlan | None) -> list[Override]:
    """What a person told the steps to leave alone."""
    return [Override.model_validate(override) for override in (plan.overrides if plan else [])]


def split_of(plan: CleaningPlan | None) -> SplitSettings:
    """The split of a plan, with the defaults."""
    return SplitSettings.model_validate(plan.split if plan else {})


def _replace_steps(session: Session, plan: CleaningPlan, steps: list[ChosenStep]) -> CleaningPlan:
    plan.history = [*plan.history, plan.steps][-HISTORY_LIMIT:]
    plan.steps = [step.model_dump(mode="json") for step in in_order(steps)]
    return change(session, plan.project_id)


def apply_steps(
    session: Session,
    actor: Actor,
    project_id: str,
    names: list[str],
    params: dict[str, Any] | None = None,
    mode: Literal["on", "mark"] = "on",
) -> CleaningPlan:
    """Add steps (or change the parameters of one); without `params`, with what was suggested for the rows.

    Raises Invalid for parameters out of bounds, NotFound for a name.
    """
    projects.get(session, actor, project_id, need="editor")
    plan = _of(session, project_id)
    steps = chosen(plan)
    report = report_of(plan)
    suggested = {found.name: found.params for found in report.steps if not found.is_applied} if report else {}
    for name in names:
        step = STEPS.get(name)
        if step is None:
            raise NotFound("There is no cleaning step of this name.")
        given = read_by(session, actor, project_id, step, params or suggested.get(name, {}))
        checked = checked_params(step, given)
        steps.append(ChosenStep(name=name, version=step.version, mode=mode, params=checked))
    return _replace_steps(session, plan, steps)


def read_by(session: Session, actor: Actor, project_id: str, step: Step, params: dict[str, Any]) -> dict[str, Any]:
    """The parameters with the model that is chosen now, for a step that counts tokens. Raises Conflict without one."""
    if "reading" not in step.params.model_fields:
        return params
    model = model_view.model_of(session, actor, project_id)
    if model is None:
        raise Conflict("This step counts tokens, and no base model is there to count with. Choose one in the recipe.")
    return {**params, "reading": reading_of(model).model_dump(mode="json")}


def checked_params(step: Step, params: dict[str, Any]) -> dict[str, Any]:
    """All parameters of a step as they are stored. Raises Invalid with a sentence for each that is out of bounds."""
    try:
        return step.params.model_validate(params).model_dump(mode="json")
    except ValidationError as error:
        raise Invalid(fields=_sentences(error)) from error


def _sentences(error: ValidationError) -> dict[str, str]:
    """Parameter to what is wrong with it, in words."""
    found = {}
    for item in error.errors(include_input=False, include_url=False):
        bounds = item.get("ctx", {})
        if item["type"] == "greater_than_equal":
            sentence = f"This must be at least {bounds['ge']}."
        elif item["type"] == "less_than_equal":
            sentence = f"This must be at most {bounds['le']}."
        elif item["type"] == "value_error":
            sentence = item["msg"].removeprefix("Value error, ")
        else:
            sentence = "Write a whole number." if item["type"].startswith("int") else "This value does not fit here."
        found[str(item["loc"][0]) if item["loc"] else ""] = sentence
    return found


def apply_preset(session: Session, actor: Actor, project_id: str, name: str) -> CleaningPlan:
    """Replace the steps by those of a preset. Raises NotFound for a name."""
    projects.get(session, actor, project_id, need="editor")
    if name not in PRESETS:
        raise NotFound("There is no preset of this name.")
    return _replace_steps(session, _of(session, project_id), of_preset(name))


def remove_step(session: Session, actor: Actor, project_id: str, name: str) -> CleaningPlan:
    """Take a step back out, whatever came after it."""
    projects.get(session, actor, project_id, need="editor")
    plan = _of(session, project_id)
    return _replace_steps(session, plan, [step for step in chosen(plan) if step.name != name])


def undo(session: Session, actor: Actor, project_id: str) -> CleaningPlan:
    """Back to the steps before the last change. Raises Conflict when there was none."""
    projects.get(session, actor, project_id, need="editor")
    plan = _of(session, project_id)
    if not plan.history:
        raise Conflict("There is nothing to undo.")
    plan.steps, plan.history = plan.history[-1], plan.history[:-1]
    return change(session, project_id)


def set_split(session: Session, actor: Actor, project_id: str, split: SplitSettings) -> CleaningPlan:
    """How the next version is split."""
    projects.get(session, actor, project_id, need="editor")
    plan = _of(session, project_id)
    plan.split = split.model_dump(mode="json")
    session.flush()
    return plan


def spare_columns(files: Sequence[SourceFile]) -> list[str]:
    """Columns that the mapping leaves over: a row's ticket, author or date. Rows can be kept together by them."""
    found: dict[str, None] = {}
    for file in files:
        used = columns_of(Mapping.model_validate(file.mapping)) if file.mapping else set()
        found |= {s["name"]: None for s in file.detected.get("shapes", []) if s["name"] not in used}
    return list(found)[:40]


def planned(session: Session, project_id: str) -> Plan:
    """Files, mappings, steps and split as they are now. Files that are not read or not mapped are left out."""
    query = select(SourceFile).where(
        SourceFile.project_id == project_id,
        SourceFile.deleted_at.is_(None),
        SourceFile.rows_key != "",
        SourceFile.is_mapping_confirmed,
    )
    files = session.scalars(query.order_by(SourceFile.created_at, SourceFile.id)).all()
    plan = session.scalar(select(CleaningPlan).where(CleaningPlan.project_id == project_id))
    return Plan(
        files=[
            PlannedFile(
                file_id=file.id,
                filename=file.filename,
                sha256=file.sha256,
                rows=file.rows,
                rows_dir=str(storage.sources_dir(file.id) / file.rows_key),
                mapping=Mapping.model_validate(file.mapping),
                options=ReadOptions.model_validate(file.options),
            )
            for file in files
        ],
        steps=[salted(step, security.salt(f"personal:{project_id}")) for step in chosen(plan)],
        overrides=overrides_of(plan),
        split=split_of(plan),
        edits=row_changes.planned(session, plan),
    )


def set_dir(plan: CleaningPlan) -> Path:
    """The folder of the working set."""
    return storage.working_dir(plan.id) / plan.set_key


def examples_path(plan: CleaningPlan | None) -> list[Path]:
    """The working set's examples as a list of parts; empty before the first one was made."""
    return parts(set_dir(plan), "data-") if plan and plan.set_key else []


def report_of(plan: CleaningPlan | None) -> PrepareReport | None:
    """What the last preparation found."""
    return PrepareReport.model_validate(plan.report) if plan and plan.report else None
