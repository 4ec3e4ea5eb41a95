"""The files of a forgotten source: deleted here and from the storage, whatever was left by an earlier attempt."""

import re
import shutil
from pathlib import Path

from sqlalchemy import select

from app.core import storage
from app.core.config import get_settings
from app.core.db import reading
from app.core.work import Lease
from app.datasets.combining.service import comparison_dir
from app.datasets.models import CleaningPlan, VersionComparison
from app.inference import client
from app.runs.models import OPEN_STATES, Model, Run
from app.sources.models import Forgetting
from app.sources.service import retire_models


def open_runs(row: Forgetting) -> list[str]:
    """Runs that were asked to end and have not."""
    with reading() as session:
        query = select(Run.id).where(Run.id.in_(row.report["runs"]), Run.state.in_(OPEN_STATES))
        return list(session.scalars(query))


def erase(lease: Lease, row: Forgetting) -> None:
    """Delete everything on disk. Repeatable: what is gone already is passed over."""
    with lease.write() as session:
        # A run that was just finishing when it was asked to end may have left a model.
        query = select(Model).where(Model.run_id.in_(row.report["runs"]), Model.deleted_at.is_(None))
        late = list(session.scalars(query))
        retire_models(session, late, f"The source “{row.filename}” was forgotten.")
        models = [*row.report["models"], *(model.id for model in late)]
    with reading() as session:
        versions = row.report["versions"]
        is_old, is_new = VersionComparison.old_id.in_(versions), VersionComparison.new_id.in_(versions)
        comparisons = session.scalars(select(VersionComparison.id).where(is_old | is_new)).all()
        plan = session.scalar(select(CleaningPlan).where(CleaningPlan.project_id == row.project_id))
    for model_id in models:
        client.unload(f"model:{model_id}")
    folders = [storage.sources_dir(file_id) for file_id in row.report["files"]]
    folders += [storage.version_dir(version_id) for version_id in row.report["versions"]]
    # The tables and the tokens of a version keep what its rows say, too.
    folders += [storage.browsing_dir(version_id) for version_id in row.report["versions"]]
    folders += [storage.tokens_dir(version_id) for version_id in row.report["versions"]]
    folders += [storage.run_dir(run_id) for run_id in row.report["runs"]]
    folders += [comparison_dir(key).parent for key in comparisons]
    if plan is not None:
        folders += [p for p in storage.working_dir(plan.id).iterdir() if _set_number(p) <= row.last_set]
    for number, folder in enumerate(folders):
        lease.progress(number, len(folders))
        shutil.rmtree(folder, ignore_errors=True)
        if folder.exists():
            raise OSError(f"{folder.name} could not be deleted")
    for key in [*(f"versions/{v}" for v in row.report["versions"]), *(f"models/{r}" for r in row.report["runs"])]:
        storage.delete_artefact(key)


def _set_number(folder: Path) -> float:
    found = re.search(r"set-(\d+)", folder.name)
    return int(found.group(1)) if found else float("inf")


def is_erased(row: Forgetting) -> bool:
    """Whether nothing of it is left on this machine."""
    ids = row.report
    paths = [storage.version_dir(v) for v in ids["versions"]]
    home = get_settings().home_dir
    paths += [home / kept / v for v in ids["versions"] for kept in ("browsing", "tokens")]
    paths += [home / "sources" / f for f in ids["files"]] + [home / "runs" / r for r in ids["runs"]]
    return not any(Path(path).exists() for path in paths)
