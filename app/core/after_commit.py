"""What should happen once a transaction is really committed: wake-ups, live events. Forgotten on a rollback."""

import logging
import threading
from collections.abc import Callable

from sqlalchemy import event
from sqlalchemy.orm import Session, SessionTransaction

log = logging.getLogger(__name__)
_PENDING, _AT_ONCE, _HOOKED = "after_commit", "after_commit_at_once", "after_commit_hooked"


def after_commit(session: Session, action: Callable[[], object], *, at_once: bool = False) -> None:
    """Call `action` after the outermost commit; its errors are logged and harm nobody.

    In a thread of its own, but for `at_once`: small things that are done before the caller goes on.
    """
    session.info.setdefault(_AT_ONCE if at_once else _PENDING, []).append(action)
    if _HOOKED not in session.info:
        session.info[_HOOKED] = True
        event.listen(session, "after_transaction_end", _after_end)
        event.listen(session, "after_rollback", _after_rollback)


def _after_rollback(session: Session) -> None:
    session.info.pop(_PENDING, None)
    session.info.pop(_AT_ONCE, None)


def _after_end(session: Session, ended: SessionTransaction) -> None:
    # Savepoints end too; only the outermost transaction makes the rows visible to others.
    if ended.parent is not None or ended.nested:
        return
    _act(session.info.pop(_AT_ONCE, []))
    actions = session.info.pop(_PENDING, None)
    if actions:
        threading.Thread(target=_act, args=(actions,), name="after-commit", daemon=True).start()


def _act(actions: list[Callable[[], object]]) -> None:
    for action in actions:
        try:
            action()
        except Exception:
            log.warning("left to the housekeeper", exc_info=True)
