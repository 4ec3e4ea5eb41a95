"""Bringing in a base model: claim the entry, fetch and check it, describe it."""

from app.core.db import reading
from app.core.work import claim, working
from app.recipes import bases
from app.recipes.models import BaseModelEntry
from worker.celery_app import celery_app


@celery_app.task(name=bases.TASK)
def bring(entry_id: str) -> bool:
    """Do the work of the entry, if nobody else has it."""
    lease = claim(BaseModelEntry, entry_id)
    if lease is None:
        return False
    with working(lease):
        with reading() as session:
            entry = session.get_one(BaseModelEntry, entry_id)
        bases.bring(lease, entry)
    return True
