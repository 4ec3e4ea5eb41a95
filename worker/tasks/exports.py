"""Exports: a limited child process writes and checks the files; they are published and, if asked, sent to a hub."""

import json
import logging
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from app.contracts.export import ExportOrder, ExportReport
from app.core import storage
from app.core.config import ROOT
from app.core.db import reading
from app.core.errors import Invalid
from app.core.work import Lease, LostLease, claim, working
from app.exports import card, sending, service
from app.exports.models import Export
from worker.celery_app import celery_app, draining
from worker.trainer import environment

log = logging.getLogger(__name__)
LOOK_EVERY_S = 0.3
REPORT = "report.json"


@celery_app.task(name=service.TASK)
def make(export_id: str) -> None:
    """Do the work of the row, if nobody else has it. What an earlier attempt published is not made again."""
    lease = claim(Export, export_id)
    if lease is None:
        return
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


def _publish(lease: Lease, row: Export, folder: Path) -> None:
    """Make the files aside and rename them into place, whole and durable."""
    temporary = folder.with_name(f".tmp-{row.id}")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.mkdir(parents=True, mode=0o700)
    try:
        with reading() as session:
            order = service.order_of(session, row, temporary)
        storage.require_space(service.memory_limit(order.files) // 6)
        report = _obeyed(lease, order)
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
    with tempfile.TemporaryFile() as log_file:
        child = subprocess.Popen(
            [sys.executable, "-m", "worker.engine.export", "--parent", str(os.getpid())],
            cwd=ROOT,
            env=environment() | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log_file,
            start_new_session=True,
        )
        try:
            last = _followed(lease, child, order.model_dump_json().encode() + b"\n")
        finally:
            _stop(child)
        if "result" in last:
            return ExportReport.model_validate(last["result"])
        if "refused" in last:
            raise Invalid(last["refused"])
        log_file.seek(0)
        trace = log_file.read()[-4000:].decode(errors="replace")
        log.error("export died", extra={"row": lease.row_id, "returncode": child.returncode, "trace": trace})
        raise Invalid("The export ended unexpectedly, perhaps for want of memory. Try it again; the log says more.")


def _followed(lease: Lease, child: "subprocess.Popen[bytes]", order: bytes) -> dict[str, Any]:
    """Read the child's lines until it ends; the last one. Looks for a cancellation several times a second."""
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(order)
    child.stdin.close()
    last: dict[str, Any] = {}
    phase: str | None = "starting"
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while True:
            if selector.select(LOOK_EVERY_S):
                line = child.stdout.readline()
                if not line:
                    child.wait()
                    return last
                last = json.loads(line)
                phase = last.get("phase")
            if draining.is_set():
                _give_back(lease)
            lease.progress(0, 0, phase)
            phase = None


def _give_back(lease: Lease) -> None:
    """This worker is told to stop: queue the row again without counting the attempt. Raises LostLease."""
    with lease.write(state="queued", attempt_id=None, attempts=Export.attempts - 1) as session:
        service.wake(session, lease.row_id)
    raise LostLease(lease.row_id)


def _stop(child: "subprocess.Popen[bytes]") -> None:
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    if child.stdout is not None:
        child.stdout.close()
