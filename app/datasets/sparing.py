"""Rows that a step must leave alone because a person said so: one row, rows like it, or all of a reason."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from sqlalchemy.orm import Session

from app.accounts.service import Actor
from app.core.errors import Conflict, NotFound
from app.datasets import plans
from app.datasets.columnar import mapped
from app.datasets.looking import EditLayer, by_hand, layout
from app.datasets.models import CleaningPlan
from app.datasets.overrides import content_keys
from app.datasets.plan import Override, Plan
from app.datasets.steps.catalogue import STEPS
from app.projects import service as projects

OVERRIDES_LIMIT = 10_000
NOTHING = "There are no rows yet. Bring a file first."
SCOPES = {"row": "This row", "like": "Rows like this one", "code": "All rows with this reason"}


def content_key_of(plan: Plan, rid: int, scope: str) -> str:
    """The hash that a row is known by, hexadecimal. Raises NotFound when there is no such row any more."""
    for shard in layout(plan):
        if shard.first <= rid < shard.first + shard.rows:
            file = plan.files[shard.file]
            source = pq.ParquetFile(Path(shard.path))
            first = shard.first
            for group in range(source.metadata.num_row_groups):
                rows = source.metadata.row_group(group).num_rows
                if rid < first + rows:
                    table = source.read_row_group(group).slice(rid - first, 1)
                    layer = EditLayer.load(plan.edits.path) if plan.edits else None
                    batch = by_hand(mapped(table, file.mapping, file.file_id, rid).batch, layer).batch
                    if not len(batch):
                        break
                    return f"{int(content_keys(batch, scope)[0]):x}"
                first += rows
    raise NotFound("This row is no longer there. Look at the step again.")


def spare(
    session: Session, actor: Actor, project_id: str, *, step: str, scope: str, code: str = "", rid: int = -1
) -> CleaningPlan:
    """Tell a step to leave a row, rows like it, or all rows of a reason alone. Makes the working set again."""
    projects.get(session, actor, project_id, need="editor")
    plan = plans.get(session, actor, project_id)
    if step not in STEPS or scope not in SCOPES or (scope == "code" and code not in STEPS[step].codes):
        raise NotFound
    if plan is None:
        raise Conflict(NOTHING)
    key = "" if scope == "code" else content_key_of(plans.planned(session, project_id), rid, scope)
    said = Override.model_validate({"scope": scope, "step": step, "code": code if scope == "code" else "", "key": key})
    known = plans.overrides_of(plan)
    if len(known) >= OVERRIDES_LIMIT:
        raise Conflict("There are 10,000 exceptions already. Take a step back out, or change its settings.")
    if said not in known:
        plan.overrides = [*plan.overrides, said.model_dump(mode="json")]
    return plans.change(session, project_id)


def forget(session: Session, actor: Actor, project_id: str, step: str) -> CleaningPlan:
    """Take back every exception of a step."""
    projects.get(session, actor, project_id, need="editor")
    plan = plans.get(session, actor, project_id)
    if plan is None:
        raise Conflict(NOTHING)
    plan.overrides = [override for override in plan.overrides if override["step"] != step]
    return plans.change(session, project_id)


def counts(plan: CleaningPlan | None, step: str) -> dict[str, int]:
    """Scope to the number of exceptions of a step."""
    found: dict[str, Any] = {}
    for override in plans.overrides_of(plan):
        if override.step == step:
            found[override.scope] = found.get(override.scope, 0) + 1
    return found
