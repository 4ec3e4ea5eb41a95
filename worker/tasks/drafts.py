"""Drafting: asks about one chunk after the other; what was answered is kept, so a new attempt goes on after it."""

from itertools import islice

from app.core.db import reading
from app.core.errors import Unavailable
from app.core.work import claim, working
from app.datasets.models import SourceFile
from app.drafting import asking, service
from app.drafting.models import Drafting
from app.inference.told import Told
from worker.celery_app import celery_app
from worker.standing_in import standing_in


@celery_app.task(name=service.TASK)
def draft(drafting_id: str) -> bool:
    """Do the work of the row, if nobody else has it."""
    lease = claim(Drafting, drafting_id)
    if lease is None:
        return False
    with standing_in(lease), working(lease):
        with reading() as session:
            row = session.get_one(Drafting, drafting_id)
            file = session.get_one(SourceFile, row.file_id)
            where = service.asked_of(session, row)
        total = sum(1 for _ in service.chunks_of(file, row.size_tokens, row.overlap_tokens))
        lease.progress(row.asked, total, "asking")
        found = service.chunks_of(file, row.size_tokens, row.overlap_tokens)
        told = Told(lease)
        for number, chunk in islice(enumerate(found), row.asked, None):
            try:
                text = asking.prompt(chunk.text, chunk.heading, row.pairs)
                said = asking.ask(where, text, lambda: not lease.is_cancelled, told)
            except Unavailable:
                lease.progress(number, total)  # ends as cancelled where that is why there is no answer
                raise
            lease.is_waiting = False
            with lease.write(done=number + 1, total=total, phase="asking") as session:
                service.record(session, drafting_id, number, chunk, asking.pairs_in(said)[: row.pairs], said)
            lease.progress(number + 1, total)
    return True
