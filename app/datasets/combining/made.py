"""Where a version comes from and what was made of it, in words for its page and its data card."""

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.accounts.service import Actor
from app.core.numbers import number
from app.datasets import versions
from app.datasets.combining.contract import Combination
from app.datasets.models import DatasetVersion

OPERATIONS = {
    "merge": "Merged, equal rows once",
    "sample": "A random sample",
    "rebalance": "Rebalanced",
    "mix": "Mixed by weight",
}


def facts(session: Session, version: DatasetVersion) -> list[tuple[str, str]]:
    """(what, value) of how a combined version was made; empty for one made of files."""
    if not version.combination:
        return []
    order = Combination.model_validate(version.combination)
    found = [("Made by", OPERATIONS[order.operation])]
    for parent in order.parents:
        weight = f", weight {parent.weight:g}" if order.operation == "mix" else ""
        found.append(("Of", f"Version {parent.number}{weight}"))
    if order.rows:
        found.append(("Rows wanted", number(order.rows)))
    if order.operation == "rebalance":
        found.append(("Balanced by", order.by))
        found.append(("At most of each", number(order.at_most) if order.at_most else "as many as the rarest has"))
        if order.is_repeated:
            found.append(("Rare ones", "training rows repeated"))
    return found


def parents(session: Session, version: DatasetVersion) -> list[DatasetVersion]:
    """The versions that this one was made of, or the one that was frozen before it."""
    ids = [p["version_id"] for p in version.combination.get("parents", [])] or [version.parent_id]
    query = select(DatasetVersion).where(DatasetVersion.id.in_([key for key in ids if key]))
    return list(session.scalars(query.order_by(DatasetVersion.number)))


def children(session: Session, version: DatasetVersion) -> list[DatasetVersion]:
    """The versions of the project that were made of this one."""
    query = select(DatasetVersion).where(DatasetVersion.project_id == version.project_id)
    found = session.scalars(query.order_by(DatasetVersion.number)).all()
    return [v for v in found if any(p["version_id"] == version.id for p in v.combination.get("parents", []))]


def others(session: Session, actor: Actor, version: DatasetVersion) -> list[DatasetVersion]:
    """Finished versions of the project that this one can be merged or compared with, newest first."""
    found = versions.list_versions(session, actor, version.project_id)
    return [v for v in found if v.id != version.id and v.state == "succeeded"]


def ancestors(session: Session, version: DatasetVersion) -> list[DatasetVersion]:
    """The version itself and every version that its rows come through."""
    found: dict[str, DatasetVersion] = {}
    waiting = [version]
    while waiting:
        one = waiting.pop()
        if one.id not in found:
            found[one.id] = one
            keys = [p["version_id"] for p in one.combination.get("parents", [])]
            waiting += session.scalars(select(DatasetVersion).where(DatasetVersion.id.in_(keys))).all() if keys else []
    return list(found.values())


def files_of(session: Session, version: DatasetVersion) -> list[dict[str, Any]]:
    """The planned files (id, name, SHA-256, rows) that a version goes back to, through all it was made of."""
    files = {f["file_id"]: f for one in ancestors(session, version) for f in one.plan.get("files", [])}
    return list(files.values())


def steps_of(session: Session, version: DatasetVersion) -> list[dict[str, Any]]:
    """The cleaning steps that any of its rows went through, each once."""
    steps = {s["name"]: s for one in ancestors(session, version) for s in one.plan.get("steps", [])}
    return list(steps.values())
