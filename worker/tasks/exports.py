"""Exports: a limited child process writes and checks the files; they are published and, if asked, sent to a hub."""

import logging
import os
import shutil
from pathlib import Path
from typing import Any

from app.contracts.export import ExportOrder, ExportReport
from app.core import storage
from app.core.config import ROOT
from app.core.db import reading
from app.core.errors import Invalid
from app.core.work import Lease, claim, working
from app.exports import card, sending, service
from app.exports.models import Export
from worker.celery_app import celery_app
from worker.following import obeyed
from worker.trainer import environment

log = logging.getLogger(__name__)
REPORT = "report.json"


@celery_app.task(name=service.TASK)
def make(export_id: str) -> bool:
    """Do the work of the row, if nobody else has it. What an earlier attempt published is not made again."""
    lease = claim(Export, export_id)
    if lease is None:
        return False
    with working(lease):
        with reading() as session:
            row = session.get_one(Export, export_id)
        folder = service.folder_of(row)
        if not (folder / REPORT).is_file():
            _publish(lease, row, folder)
        report = ExportReport.model_validate_json((folder / REPORT).read_text("utf-8"))
        names = sorted(path.name for path in folder.iterdir() if path.name != REPORT)
        files = [
            {"name": n, "size_bytes": (folder / n).stat().st_size, "sha256": storage.file_sha256(folder / n)}
            for n in names
        ]
        with lease.write(report=report.model_dump(), files=files, size_bytes=sum(int(f["size_bytes"]) for f in files)):  # type: ignore[call-overload]
            pass
        if row.hub_repository:
            url = sending.send(lease, row, folder, names)
            with lease.write(hub_url=url, sealed_token=""):
                pass
    return True


def _publish(lease: Lease, row: Export, folder: Path) -> None:
    """Make the files aside and rename them into place, whole and durable."""
    temporary = service.making_of(row)
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.mkdir(parents=True, mode=0o700)
    try:
        with reading() as session:
            order = service.order_of(session, row, temporary)
        storage.require_space(service.space_needed(order.files))
        try:
            report = _obeyed(lease, order)
        except Invalid:
            with reading() as session:
                service.model_of(session, row)  # one that was deleted meanwhile is the reason: it says so
            raise
        with reading() as session:
            names = sorted(path.name for path in temporary.iterdir())
            (temporary / "README.md").write_text(card.text(session, row, report, names), encoding="utf-8")
        (temporary / REPORT).write_text(report.model_dump_json(), encoding="utf-8")
        for path in temporary.iterdir():
            path.chmod(0o644)  # safetensors writes 0600; the web may run as another user
        temporary.chmod(0o755)
        storage.fsync_tree(temporary)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _obeyed(lease: Lease, order: ExportOrder) -> ExportReport:
    """Run the child on `order`. Raises Invalid with its sentence, or one for its crash."""
    told: str | None = None

    def tell(last: dict[str, Any]) -> None:
        nonlocal told
        phase = last.get("phase", "starting")
        lease.progress(0, 0, None if phase == told else phase)
        told = phase

    outcome = obeyed(
        lease,
        ["worker.engine.export", "--parent", str(os.getpid())],
        order.model_dump_json(),
        environment() | {"PYTHONPATH": str(ROOT)},
        service.TASK,
        tell,
    )
    if "result" in outcome.last:
        return ExportReport.model_validate(outcome.last["result"])
    if "refused" in outcome.last:
        raise Invalid(outcome.last["refused"])
    extra = {"row": lease.row_id, "returncode": outcome.returncode, "trace": outcome.trace}
    log.error("export died", extra=extra)
    raise Invalid("The export ended unexpectedly, perhaps for want of memory. Try it again; the log says more.")
