"""The queue of contradictions: rows with nearly the same question and different answers, and what a person decided."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy.orm import Session

from app.accounts.service import Actor
from app.core.errors import Invalid
from app.datasets import plans, row_changes, sparing
from app.datasets.edits import DELETED, row_keys
from app.datasets.models import CleaningPlan
from app.datasets.near.texts import of_table
from app.datasets.steps.contradictions import CODE, QUEUE_FILE
from app.datasets.tables import EXAMPLES
from app.projects import service as projects

PER_PAGE = 10
STEP = "contradictions"


@dataclass(frozen=True, slots=True)
class Claim:
    """One row of a disputed question. `key`: the hash that a deletion knows it by."""

    rid: int
    question: str
    answer: str
    key: int
    is_deleted: bool = False


@dataclass(frozen=True, slots=True)
class Queue:
    """A page of disputed questions; `total` counts all of them, `is_looked_for` whether the step is in the plan."""

    items: list[list[Claim]]
    total: int
    page: int
    is_looked_for: bool


def queue(session: Session, actor: Actor, project_id: str, page: int = 1) -> Queue:
    """The disputed questions of the working set, without those that were decided since it was made."""
    projects.get(session, actor, project_id)
    plan = plans.get(session, actor, project_id)
    is_looked_for = any(step.name == STEP and step.mode != "off" for step in plans.chosen(plan))
    path = _path(plan)
    if plan is None or path is None or not is_looked_for:
        return Queue([], 0, 1, is_looked_for)
    table = pq.read_table(path)
    clusters, rids = table.column("cluster").to_numpy(), table.column("rid").to_numpy()
    total = int(clusters.max()) + 1 if len(clusters) else 0
    page = min(max(1, page), max(1, -(-total // PER_PAGE)))
    first = (page - 1) * PER_PAGE
    is_in = (clusters >= first) & (clusters < first + PER_PAGE)
    claims = _claims(session, plan, rids[is_in].tolist())
    items = []
    for cluster in np.unique(clusters[is_in]):
        rows = [claims[rid] for rid in rids[clusters == cluster].tolist() if rid in claims]
        standing = [row for row in rows if not row.is_deleted]
        if len({row.answer for row in standing}) > 1:
            items.append(standing)
    return Queue(items, total, page, is_looked_for)


def _path(plan: CleaningPlan | None) -> Path | None:
    if plan is None or not plan.set_key:
        return None
    return next(iter(plans.set_dir(plan).glob(f"steps/*/{QUEUE_FILE}")), None)


def _claims(session: Session, plan: CleaningPlan, rids: list[int]) -> dict[int, Claim]:
    """Rows of the working set by rid; only the row groups that hold them are read."""
    wanted = [("_rid", "in", rids)]
    tables = (
        [pq.read_table(path, filters=wanted, schema=EXAMPLES) for path in plans.examples_path(plan)] if rids else []
    )
    found = pa.concat_tables(tables) if tables else EXAMPLES.empty_table()
    questions, answers = of_table(found, "prompt").to_pylist(), of_table(found, "answer").to_pylist()
    examples = found.to_pylist()
    keys = row_keys([e["_file"] for e in examples], np.array([e["_row"] for e in examples], np.int64)).tolist()
    edits = row_changes.overlay(session, plan, keys)
    return {
        example["_rid"]: Claim(
            example["_rid"], question, answer, key,
            is_deleted=key in edits and bool(edits[key].flags & DELETED),
        )
        for example, question, answer, key in zip(examples, questions, answers, keys, strict=True)
    }  # fmt: skip


def keep_all(session: Session, actor: Actor, project_id: str, rids: list[int]) -> None:
    """All of these rows may stay as they are: noted by their content, so the question is not asked again."""
    for rid in rids:
        sparing.spare(session, actor, project_id, step=STEP, scope="row", code=CODE, rid=rid)


def keep_one(session: Session, actor: Actor, project_id: str, rids: list[int], kept: int) -> None:
    """Delete the others; undone on the page of changes. Raises Invalid when the row that stays is none of them."""
    projects.get(session, actor, project_id, need="editor")
    plan = plans.get(session, actor, project_id)
    if plan is None or kept not in rids or len(rids) < 2:
        raise Invalid("Choose the row that stays. Load the page again if it has changed.")
    claims = _claims(session, plan, rids)
    keys = [claims[rid].key for rid in rids if rid != kept and rid in claims]
    row_changes.change_rows(session, actor, project_id, keys=np.array(keys, np.uint64), kind="delete")
