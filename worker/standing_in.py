"""While a piece of work waits for memory that training holds, its place in the queue `data` serves others."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from app.core.work import Lease
from app.drafting import service as drafting
from app.evaluations import service as evaluations
from worker.celery_app import celery_app, draining
from worker.turns import next_turn

log = logging.getLogger(__name__)
LOOK_S = 1.0
# They would wait, too.
_ASKS_MODELS = frozenset({drafting.TASK, evaluations.TASK})


@contextmanager
def standing_in(lease: Lease) -> Iterator[None]:
    """Whenever the block waits for memory, what is next is done beside it; the block's end waits for that work's."""
    is_over = threading.Event()
    thread = threading.Thread(target=_stand_in, args=(lease, is_over), name=f"stand-in-{lease.row_id}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def _stand_in(lease: Lease, is_over: threading.Event) -> None:
    while not is_over.wait(LOOK_S) and not draining.is_set():
        if not lease.is_waiting:
            continue
        try:
            if (turn := next_turn(_ASKS_MODELS)) is not None:
                celery_app.tasks[turn.task].run(turn.id)
        except Exception:
            log.exception("what was next was not done; its own message does it")
