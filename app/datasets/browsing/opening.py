"""Which rows a page is about: the working set of a project, or a frozen version."""

from pathlib import Path

from app.core import storage
from app.datasets import plans
from app.datasets.browsing.sets import RowSet, in_folder
from app.datasets.models import CleaningPlan, DatasetVersion


def working_set(plan: CleaningPlan | None, sources: dict[str, str]) -> RowSet | None:
    """The rows that were prepared last; None before there are any."""
    if plan is None or not plan.set_key:
        return None
    folder = plans.set_dir(plan)
    found = in_folder(folder, folder / "browsing", is_frozen=False, sources=sources)
    return found if found.parts else None


def frozen_set(version: DatasetVersion, folder: Path) -> RowSet:
    """The rows of a version. Its own folder is immutable, so the index lies elsewhere."""
    return in_folder(folder, storage.browsing_dir(version.id), is_frozen=True)
