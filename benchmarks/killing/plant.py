"""A training worker with one safety taken out, to see that the kill loop notices. Not part of the product."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import update
from sqlalchemy.orm import Session

from app.core.db import transaction
from app.runs import claim, finishing, recording, settling, states
from app.runs.models import Run
from worker import node, supervision


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
    supervision.Supervision._ask = lambda self, trainer: None  # type: ignore[method-assign]


def without_lock() -> None:
    """Let a second trainer of a run start while the first one, of a frozen supervisor, still lives."""

    @contextmanager
    def nobody_holds_it(run_id: str) -> Iterator[int]:
        descriptor = os.open(os.devnull, os.O_RDWR)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    node.run_lock = nobody_holds_it
    node.kill_earlier_trainers = lambda run_id: None


def without_forgetting() -> None:
    """Keep the metric rows after the checkpoint that an attempt goes on from."""
    recording.forget_after = lambda session, run, step: None


def without_state() -> None:
    """Start trainers that go on from a checkpoint with an optimiser that has forgotten everything."""
    work_off = supervision.work_off
    command = (sys.executable, "-m", "benchmarks.killing.forgetful", "train")
    work_off.__kwdefaults__["command"] = command  # type: ignore[index]


DEFECTS = {
    "no-fence": without_fence,
    "no-lock": without_lock,
    "no-forgetting": without_forgetting,
    "no-state": without_state,
}

if __name__ == "__main__":
    DEFECTS[sys.argv.pop(1)]()
    from worker.__main__ import main

    main()
