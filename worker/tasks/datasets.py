"""Celery tasks of the `data` queue: import a file, prepare the working set, freeze a version.

Each claims its row, lets a limited child process do the work, records progress, and writes the result in its lease.
"""

import logging
import os
import shutil
import signal
from pathlib import Path
from typing import Any

from sqlalchemy import select

from app.core import security, storage
from app.core.config import ROOT, get_settings
from app.core.db import reading
from app.core.errors import DiskFull, Invalid
from app.core.work import Lease, claim, working
from app.datasets import plans, service, versions
from app.datasets.bringing import fetching
from app.datasets.child import CombineOrder, CompareOrder, FreezeOrder, ImportOrder, Limits, Order, PrepareOrder
from app.datasets.combining import service as combining
from app.datasets.importing import ImportReport
from app.datasets.models import CleaningPlan, DatasetVersion, RemoteSource, SourceFile, VersionComparison
from app.datasets.options import ReadOptions
from app.datasets.plan import Plan
from app.datasets.reports import PrepareReport
from app.datasets.steps.tokens import reading_of
from app.evaluations import service as evaluations
from app.projects.models import Project
from app.recipes import tokenizing
from worker.celery_app import celery_app, draining
from worker.following import give_back, obeyed

log = logging.getLogger(__name__)
# Generous for honest files (58 MB per processor second were measured), short for hostile ones.
CPU_S_LEAST, CPU_S_PER_MB = 120, 2.0
# Disk at the peak over the bytes of the read rows, which are packed: 9.7 and 6 were measured on a million rows.
PREPARE_TIMES, FREEZE_TIMES = 12, 8
# With less than this left, a child that died has died of it.
NO_ROOM_BYTES = 16 << 20


def _limits(size_bytes: int) -> Limits:
    return Limits(cpu_s=int(CPU_S_LEAST + CPU_S_PER_MB * size_bytes / 1e6))


@celery_app.task(name="datasets.import_file")
def import_file(file_id: str) -> bool:
    """Read a received file into rows and findings."""
    lease = claim(SourceFile, file_id)
    if lease is None:
        return False
    with working(lease):
        with reading() as session:
            file = session.get(SourceFile, file_id)
            assert file is not None
            source, options = service.original_path(file), ReadOptions.model_validate(file.options)
            password = security.decrypt(file.sealed_password) if file.sealed_password else ""
        rows_key = f"rows-{lease.fence}"
        folder = storage.sources_dir(file_id)
        order = ImportOrder(
            source=str(source),
            filename=file.filename,
            out_dir=str(folder / rows_key),
            options=options,
            password=password,
            limits=_limits(file.size_bytes),
        )
        try:
            report = ImportReport.model_validate(_obeyed(lease, order, "reading"))
        finally:
            # Rows that were read half-way are of no use to anybody, least of all on a full disk.
            shutil.rmtree(folder / f".tmp-{rows_key}", ignore_errors=True)
        with lease.write() as session:
            row = session.get(SourceFile, file_id)
            assert row is not None
            service.record_import(session, row, report, rows_key)
        _keep_only(folder, "rows-", rows_key)
    return True


@celery_app.task(name="datasets.bring")
def bring(source_id: str) -> bool:
    """Fetch a remote source; what arrives is read like any other file."""
    lease = claim(RemoteSource, source_id)
    if lease is None:
        return False

    def look() -> None:
        if draining.is_set():
            give_back(lease, _task(lease))

    with working(lease):
        with reading() as session:
            source = session.get_one(RemoteSource, source_id)
        fetching.bring(lease, source, look)
    return True


@celery_app.task(name="datasets.prepare")
def prepare(plan_id: str) -> bool:
    """Map and clean the rows of all files of a project."""
    lease = claim(CleaningPlan, plan_id)
    if lease is None:
        return False
    with working(lease):
        with reading() as session:
            row = session.get(CleaningPlan, plan_id)
            assert row is not None
            revision, edits_revision = row.revision, row.edits_revision
            model = tokenizing.of_project(session, session.get_one(Project, row.project_id))
            counted_by = reading_of(model) if model is not None else None
            plan = plans.planned(session, row.project_id).model_copy(update={"reading": counted_by})
        set_key = f"set-{lease.fence}"
        folder = storage.working_dir(plan_id)
        storage.require_space(PREPARE_TIMES * _bytes(plan))
        order = PrepareOrder(
            plan=plan, out_dir=str(folder / set_key), processes=_processes(), limits=_limits(_bytes(plan))
        )  # fmt: skip
        report = PrepareReport.model_validate(_obeyed(lease, order, "preparing"))
        changes = {
            "report": report.model_dump(mode="json") if plan.files else {},
            "set_key": set_key,
            "prepared_revision": revision,
            "prepared_edits": edits_revision,
        }
        with lease.write(**changes) as session:
            versions.freeze_uploaded(session, session.get_one(CleaningPlan, plan_id).project_id)
        _keep_only(folder, "set-", set_key)
    return True


@celery_app.task(name="datasets.freeze")
def freeze(version_id: str) -> bool:
    """Build an immutable version and copy it to the storage."""
    lease = claim(DatasetVersion, version_id)
    if lease is None:
        return False
    with working(lease):
        with reading() as session:
            version = session.get(DatasetVersion, version_id)
            assert version is not None
            plan = Plan.model_validate(version.plan)
            combination = combining.order_of(session, version)
            before = session.get(DatasetVersion, version.parent_id) if version.parent_id else None
            parent = before.manifest_sha256 if before else ""
            current = session.scalar(select(CleaningPlan).where(CleaningPlan.project_id == version.project_id))
            ready = str(plans.set_dir(current)) if current and current.set_key else ""
            known = versions.earlier_sides(session, version)
            asked = evaluations.texts_asked(session, version.project_id)
        missing = next((file for file in plan.files if not Path(file.rows_dir).exists()), None)
        if missing is not None:
            raise Invalid(f"The file {missing.filename} was read again in the meantime. Freeze once more.")
        target = storage.version_dir(version_id)
        # Left by a worker that died between the rename and its last write: only a recorded version may stay.
        shutil.rmtree(target, ignore_errors=True)
        _drop_unfinished(version_id)
        order: FreezeOrder | CombineOrder
        if combination is not None:
            size = sum(_folder_bytes(Path(parent.folder)) for parent in combination.parents)
            order = CombineOrder(combination=combination, out_dir=str(target), limits=_limits(size))
        else:
            size = FREEZE_TIMES * _bytes(plan)
            order = FreezeOrder(
                plan=plan, out_dir=str(target), parent=parent, ready=ready, processes=_processes(),
                known=str(known or ""), evaluation=asked,
                limits=_limits(_bytes(plan)),
            )  # fmt: skip
        storage.require_space(size)
        manifest = _obeyed(lease, order, "freezing")
        lease.progress(0, 0, "publishing")
        storage.publish_artefact(target, f"versions/{version_id}")
        with lease.write() as session:
            row = session.get(DatasetVersion, version_id)
            assert row is not None
            versions.record(session, row, manifest)
    return True


@celery_app.task(name="datasets.compare")
def compare(comparison_id: str) -> bool:
    """Find what two versions do not have in common."""
    lease = claim(VersionComparison, comparison_id)
    if lease is None:
        return False
    with working(lease):
        with reading() as session:
            old, new = combining.compared(session, comparison_id)
            folders = [versions.folder(version) for version in (old, new)]
            rows = (combining.rows_in(old), combining.rows_in(new))
        order = CompareOrder(
            old_dir=str(folders[0]),
            new_dir=str(folders[1]),
            rows=rows,
            out_dir=str(combining.comparison_dir(comparison_id)),
            limits=_limits(sum(map(_folder_bytes, folders))),
        )
        report = _obeyed(lease, order, "comparing")
        with lease.write(report=report):
            pass
    return True


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.parquet"))


def _drop_unfinished(version_id: str) -> None:
    """Delete what was begun of versions that nobody works on any more; an interrupted one goes on from its own."""
    with reading() as session:
        live = set(session.scalars(select(DatasetVersion.id).where(DatasetVersion.state.in_(("queued", "running")))))
    for folder in storage.versions_dir().glob(".tmp-*"):
        name = folder.name.removeprefix(".tmp-")
        # A hyphen: a version being fetched from the storage.
        if "-" not in name and name not in live | {version_id}:
            shutil.rmtree(folder, ignore_errors=True)


def _bytes(plan: Plan) -> int:
    return sum(path.stat().st_size for file in plan.files for path in Path(file.rows_dir).glob("*.parquet"))


def _processes() -> int:
    return get_settings().data_processes or min(2, os.cpu_count() or 1)


def _keep_only(folder: Path, prefix: str, name: str) -> None:
    """Delete older results, but for the one before: a page may be reading it."""
    old = sorted((p for p in folder.glob(f"{prefix}*") if p.name != name), key=lambda p: p.stat().st_mtime)
    for path in old[:-1]:
        shutil.rmtree(path, ignore_errors=True)


def _obeyed(lease: Lease, order: Order, phase: str) -> Any:
    """Run the child on `order` and return its result. Raises Invalid with the child's or the crash's sentence."""
    environment = {
        "PATH": os.environ.get("PATH", ""), "PYTHONPATH": str(ROOT), "LANG": "C.UTF-8",
        "ARROW_DEFAULT_MEMORY_POOL": "system", "OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1",
    }  # fmt: skip
    lease.progress(0, 0, phase)

    done = total = 0

    def tell(last: dict[str, Any]) -> None:
        nonlocal done, total
        done, total = last.get("done", done), last.get("total", total)
        lease.progress(done, total)

    outcome = obeyed(lease, ["app.datasets.child"], order.model_dump_json(), environment, _task(lease), tell)
    if "result" in outcome.last:
        return outcome.last["result"]
    if "refused" in outcome.last:
        raise Invalid(outcome.last["refused"], code=outcome.last["code"])
    extra = {"row": lease.row_id, "returncode": outcome.returncode, "trace": outcome.trace}
    log.error("child died", extra=extra)
    if storage.free_bytes() < NO_ROOM_BYTES:
        raise DiskFull
    raise Invalid(_crash_sentence(outcome.returncode, phase))


def _task(lease: Lease) -> str:
    """The task that wakes a worker for this kind of row."""
    return next(task for model, task in service.WATCHED if model is lease.model)


def _crash_sentence(returncode: int, phase: str) -> str:
    if phase != "reading":
        if returncode == -signal.SIGXCPU:
            return "This took longer than so many rows ever should. Nothing was lost: try again, or with fewer rows."
        return (
            "This ended before it was done: the memory ran out, or it was ended from outside. Nothing was lost: try"
            " again. If it happens again, close other programs, or take fewer rows."
        )
    if returncode == -signal.SIGXCPU:
        return "Reading this took longer than any file of its size should. Split it, then bring the parts."
    if returncode == -signal.SIGKILL:
        return (
            "Reading this was ended from outside, or the memory ran out. Open the file here and read it again. If it"
            " happens again, split it, or save it as JSONL."
        )
    return (
        "This could not be read: it needs too much memory or is built to break readers. Split it, or save it as JSONL."
    )
