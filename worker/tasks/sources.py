"""Forgetting a source: wait for the runs that were asked to end, then delete every file that came from it."""

import threading

from app.core.db import empty_log, reading
from app.core.work import claim, working
from app.drafting import service as drafting
from app.sources import erasing, service
from app.sources.models import Forgetting
from worker.celery_app import celery_app

LOOK_EVERY_S = 0.5
_quiet = threading.Event()


@celery_app.task(name=service.TASK)
def forget(forgetting_id: str) -> bool:
    """Do the work of the row, if nobody else has it."""
    lease = claim(Forgetting, forgetting_id)
    if lease is None:
        return False
    with working(lease):
        with reading() as session:
            row = session.get_one(Forgetting, forgetting_id)
        while erasing.open_runs(row):
            lease.progress(0, 0)
            _quiet.wait(LOOK_EVERY_S)
        with lease.write() as session:
            drafting.forget(session, row.report["files"])
        erasing.erase(lease, row)
        empty_log()
    return True
