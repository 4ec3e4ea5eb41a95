"""Versions made of versions, and versions compared: begun here, worked on by the data queue."""

from pathlib import Path

from pydantic import ValidationError
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.accounts.service import Actor
from app.core import storage
from app.core.db import new_id
from app.core.errors import Conflict, Invalid, NotFound
from app.core.queue import ring
from app.datasets import versions
from app.datasets.combining.comparing import Comparison
from app.datasets.combining.contract import Balance, Combination, Operation, Parent
from app.datasets.models import DatasetVersion, VersionComparison
from app.projects import service as projects


def rows_in(version: DatasetVersion) -> int:
    """All rows of a version."""
    return version.train_rows + version.validation_rows + version.test_rows


def combine(
    session: Session, actor: Actor, version_id: str, *, operation: Operation, others: list[tuple[str, float]],
    weight: float = 1, rows: int = 0, by: Balance = "label", at_most: int = 0, is_repeated: bool = False, seed: int = 1,
) -> DatasetVersion:  # fmt: skip
    """Begin a new version made of this one and `others` (id and weight).

    The same order again gives the version that is there. Raises Invalid for an order that cannot be followed,
    Conflict for versions that are not finished or not of one project.
    """
    first = versions.get(session, actor, version_id, need="editor")
    chosen = [(first, weight), *((versions.get(session, actor, key, need="editor"), w) for key, w in others)]
    if any(version.project_id != first.project_id for version, _weight in chosen):
        raise Conflict("These versions belong to different projects. Choose versions of one project.")
    _check_finished([version for version, _weight in chosen])
    if len({version.id for version, _weight in chosen}) < len(chosen):
        raise Invalid("The same version was chosen twice. Choose each once; its weight says how much of it.")
    if len({version.kind for version, _weight in chosen}) > 1:
        raise Invalid("One version holds conversations and another plain text. Choose versions of one kind.")
    try:
        order = Combination(
            operation=operation, parents=[_parent(version, w) for version, w in chosen], rows=rows, by=by,
            at_most=at_most, is_repeated=is_repeated, seed=seed,
        )  # fmt: skip
    except ValidationError as error:
        said = error.errors(include_url=False)[0]
        raise Invalid(str(said["ctx"]["error"]) if said["type"] == "value_error" else "This cannot be done.") from error
    _check_size(order, first)
    stored = order.model_dump(mode="json")
    for known in session.scalars(
        select(DatasetVersion).where(
            DatasetVersion.project_id == first.project_id, DatasetVersion.parent_id == first.id
        )
    ):
        if known.combination == stored and known.state in ("queued", "running", "succeeded"):
            return known
    number = session.scalar(
        select(func.max(DatasetVersion.number)).where(DatasetVersion.project_id == first.project_id)
    )
    version = DatasetVersion(
        id=new_id(), project_id=first.project_id, number=(number or 0) + 1, parent_id=first.id, combination=stored,
        created_by=actor.user_id,
    )  # fmt: skip
    session.add(version)
    session.flush()
    ring(session, "datasets.freeze", version.id)
    return version


def _check_finished(chosen: list[DatasetVersion]) -> None:
    for version in chosen:
        if version.state == "retired":
            raise Conflict(version.error)
        if version.state != "succeeded":
            raise Conflict(f"Version {version.number} is not finished. Wait for it, or choose another.")


def _parent(version: DatasetVersion, weight: float) -> Parent:
    return Parent(
        version_id=version.id, folder="", number=version.number, manifest_sha256=version.manifest_sha256, weight=weight
    )


def _check_size(order: Combination, first: DatasetVersion) -> None:
    if order.operation == "sample" and order.rows >= rows_in(first):
        raise Invalid(f"This version has {rows_in(first):,} rows. Choose fewer for the sample.")
    if order.operation == "rebalance":
        labels = first.statistics.get("distinct_labels", 0)
        if order.by == "label" and labels < 2:
            raise Invalid("The rows of this version have no labels to balance. Balance by source instead.")


def order_of(session: Session, version: DatasetVersion) -> Combination | None:
    """What the worker has to do, with the folders of the parents; None for a version made of files.

    Raises Conflict when a parent is gone.
    """
    if not version.combination:
        return None
    order = Combination.model_validate(version.combination)
    parents = []
    for parent in order.parents:
        found = session.get(DatasetVersion, parent.version_id)
        if found is None:
            raise Conflict(f"Version {parent.number} is no longer there, so nothing can be made of it.")
        parents.append(parent.model_copy(update={"folder": str(versions.folder(found))}))
    return order.model_copy(update={"parents": parents})


def comparison_dir(comparison_id: str) -> Path:
    """Where the rows of a comparison are listed."""
    return storage.working_dir(comparison_id) / "rows"


def compare(session: Session, actor: Actor, old_id: str, new_id_: str) -> VersionComparison:
    """Begin to compare two finished versions of one project, or give back what was found before."""
    old, new = (versions.get(session, actor, key) for key in (old_id, new_id_))
    if old.project_id != new.project_id or old.id == new.id:
        raise Conflict("Choose two different versions of one project.")
    _check_finished([old, new])
    known = session.scalar(
        select(VersionComparison).where(VersionComparison.old_id == old.id, VersionComparison.new_id == new.id)
    )
    is_lost = known is not None and known.state == "succeeded" and not comparison_dir(known.id).exists()
    if known is not None and known.state in ("queued", "running", "succeeded") and not is_lost:
        return known
    if known is None:
        known = VersionComparison(id=new_id(), project_id=new.project_id, old_id=old.id, new_id=new.id)
        session.add(known)
    known.state, known.want, known.attempts, known.error = "queued", "run", 0, ""
    session.flush()
    ring(session, "datasets.compare", known.id)
    return known


def compared(session: Session, comparison_id: str) -> tuple[DatasetVersion, DatasetVersion]:
    """(old, new) of a comparison. No gate: for the worker and for callers that passed it."""
    comparison = session.get_one(VersionComparison, comparison_id)
    return session.get_one(DatasetVersion, comparison.old_id), session.get_one(DatasetVersion, comparison.new_id)


def get_comparison(session: Session, actor: Actor, comparison_id: str) -> VersionComparison:
    """A comparison, by the gate of its project."""
    found = session.get(VersionComparison, comparison_id)
    if found is None:
        raise NotFound
    projects.get(session, actor, found.project_id)
    return found


def report_of(comparison: VersionComparison) -> Comparison | None:
    """What was found, or None before it is done."""
    return Comparison.model_validate(comparison.report) if comparison.state == "succeeded" else None
