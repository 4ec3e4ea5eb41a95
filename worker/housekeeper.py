"""One long-lived process that mends and tidies: wake-ups again, dead work back to the queue, old rows away.

Several may run; one leads. Every chore is safe to do twice, so the lease only saves work.
"""

import logging
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy.exc import SQLAlchemyError

import app.models  # noqa: F401 - foreign keys resolve only when every table is known
from app.core import logging as log_setup
from app.core import queue
from app.core.config import get_settings
from app.core.db import transaction
from app.core.leader import Leader
from app.core.work import Watcher
from app.datasets import uploads
from app.overview import demos
from app.runs import notices
from app.runs.reconcile import Reconciler
from app.searches import progress as searches
from worker import alive
from worker.long_work import DEVICE_WORK, LONG_WORK

log = logging.getLogger(__name__)
TICK_S = 1.0
HOLD_S = 4.0  # a leader's beat is a write to disk; three may be missed before another takes over


@dataclass
class Chore:
    """Something to do every `every_s` seconds. Its faults are logged and never stop the others."""

    name: str
    every_s: float
    do: Callable[[], object]
    due_at: float = 0.0

    def run_if_due(self) -> None:
        """Do it when its time has come."""
        if time.monotonic() < self.due_at:
            return
        try:
            self.do()
        except Exception:
            log.exception("chore %s failed; it is tried again in %.0f s", self.name, self.every_s)
        self.due_at = time.monotonic() + self.every_s


def chores() -> list[Chore]:
    """Everything that is done regularly, in order."""
    return [
        Chore("outbox", TICK_S, queue.deliver),
        Chore("runs", get_settings().reconcile_every_s, Reconciler().sweep),
        Chore("long work", 5, Watcher(*LONG_WORK, *DEVICE_WORK).sweep),
        Chore("searches", 2, searches.advance_all),
        Chore("notices", 5, notices.deliver_in_background),
        Chore("demos", TICK_S, demos.advance_all),
        Chore("sent wake-ups", 600, queue.forget_sent),
        Chore("abandoned uploads", 600, _forget_abandoned_uploads),
    ]


def _forget_abandoned_uploads() -> int:
    with transaction() as session:
        return uploads.forget_abandoned(session) + uploads.forget_leftovers(session)


def keep_house(stop: threading.Event, todo: list[Chore], leader: Leader) -> None:
    """Do the chores while this process leads, until `stop`."""
    leads, held_at = False, -HOLD_S
    while not stop.is_set():
        held = leads
        if not leads or time.monotonic() - held_at >= HOLD_S:
            try:
                held, held_at = leader.hold(), time.monotonic()
            except SQLAlchemyError as error:
                # The database is away; nothing can be mended until it is back.
                log.warning("the database cannot be read: %s", str(error).partition("\n")[0])
                held = False
        if held != leads:
            leads = held
            log.info("this housekeeper leads" if leads else "another housekeeper leads")
        alive.touch("housekeeper")
        for chore in todo if leads else []:
            if stop.is_set():
                break
            chore.run_if_due()
        stop.wait(TICK_S)
    if leads:
        leader.release()


def main() -> None:
    """Entry of the housekeeper process."""
    log_setup.configure()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    log.info("housekeeper starts", extra={"home": str(get_settings().home_dir)})
    keep_house(stop, chores(), Leader("housekeeper"))


if __name__ == "__main__":
    main()
