"""A training worker with one safety taken out, to see that the kill loop notices. Not part of the product."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import update
from sqlalchemy.orm import Session

from app.core.db import transaction
from app.runs import claim, finishing, recording, settling, states
from app.runs.models import Run


def without_fence() -> None:
    """Let supervisors write without proving that the run is still theirs."""

    @contextmanager
    def write(self: claim.RunLease, **changes: Any) -> Iterator[Session]:
        began = claim.boottime()
        with transaction() as session:
            session.execute(
                update(Run).where(Run.id == self.claimed.run_id).values(heartbeat=Run.heartbeat + 1, **changes)
            )
            yield session
        self.renewed_at = began

    def move(session: Session, run_id: str, to: str, *, claimed: object = None, **named: Any) -> None:
        states_move(session, run_id, to, **named)

    states_move = states.move
    claim.RunLease.write = write  # type: ignore[method-assign]
    for module in (settling, finishing, recording):
        module.move = move  # type: ignore[attr-defined]
    # A supervisor that does not look whether it lost the run, either.
    from worker import supervision

    supervision.Supervision._ask = lambda self, trainer: None  # type: ignore[method-assign]


if __name__ == "__main__":
    {"no-fence": without_fence}[sys.argv.pop(1)]()
    from worker.__main__ import main

    main()
