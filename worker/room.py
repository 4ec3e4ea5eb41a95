"""Says what an attempt takes of this machine's memory to the model server beside it, and writes down what had to go."""

import logging
import threading

from sqlalchemy.exc import SQLAlchemyError

from app.contracts.room import Room, Unloaded
from app.core.config import get_settings
from app.core.db import reading
from app.core.numbers import size
from app.core.work import LostLease
from app.inference import client, targets
from app.recipes.machine import this_machine
from app.runs.claim import RunLease
from app.runs.models import Run
from app.runs.pace import left_s
from app.runs.states import note

log = logging.getLogger(__name__)
BEATS = 4  # that may be missed before a room lapses
UNKNOWN_BYTES = 3 * 2**29  # of a run that nobody has estimated
BESIDE_A_CARD_BYTES = 3 * 2**29  # what a process that trains on a graphics card takes of main memory


class TrainingRoom:
    """The room of one attempt. Nothing here can fail or hold up the training."""

    def __init__(self, lease: RunLease) -> None:
        self._lease, self._attempt_id = lease, lease.claimed.attempt_id
        # The heartbeat tells it from a thread of its own, and must not tell it once more behind the end.
        self._telling, self._is_over = threading.Lock(), False

    def hold(self) -> None:
        """Tell what the run takes, before it begins and then with every heartbeat: a server that was restarted has
        forgotten it."""
        with self._telling:
            if self._is_over:
                return
            try:
                with reading() as session:
                    run = session.get_one(Run, self._lease.claimed.run_id)
                if gone := client.hold_room(self._room(run)):
                    self._write(run, gone)
            except LostLease:
                log.info("what was unloaded is not written down: the lease is lost")
            except SQLAlchemyError as error:
                log.warning("the room of a training was not told: %s", error)

    def end(self) -> None:
        """Tell that it is free."""
        with self._telling:
            self._is_over = True
            client.end_room(self._attempt_id)

    def _room(self, run: Run) -> Room:
        lapses_s = min(3600.0, BEATS * get_settings().lease_heartbeat_s)
        return Room(
            attempt_id=self._attempt_id,
            run_id=run.id,
            held_bytes=held_bytes(run),
            left_s=left_s(run),
            lapses_s=lapses_s,
        )

    def _write(self, run: Run, gone: list[Unloaded]) -> None:
        with reading() as session:
            names = targets.names_in(session, run.workspace_id, [one.ref for one in gone])
        with self._lease.write() as session:
            note(session, run.id, sentence(gone, names), kind="room")


def held_bytes(run: Run) -> int:
    """What a run takes of main memory at its peak: foretold or seen, whichever is more. One on a graphics card has most
    of it there."""
    seen = (run.plan.get("computer") or {}).get("memory_bytes") or 0
    device = run.plan.get("device") or this_machine().device
    if device == "cuda":
        return max(BESIDE_A_CARD_BYTES, seen)
    return max(run.estimate.get("memory_bytes") or UNKNOWN_BYTES, run.memory_bytes or 0, seen)


def sentence(gone: list[Unloaded], names: dict[str, str]) -> str:
    """What was unloaded, for the diary; models of other workspaces are counted, neither named nor measured."""
    named = [f"“{names[one.ref]}” ({size(one.size_bytes)})" for one in gone if one.ref in names]
    others = [one for one in gone if one.ref not in names]
    if others:
        named.append("1 other model" if len(others) == 1 else f"{len(others)} other models")
    told = " and ".join(filter(None, [", ".join(named[:-1]), named[-1]]))
    is_one = len(gone) == 1
    return (
        f"Made room for this training: {told} {'was' if is_one else 'were'} unloaded. A question loads "
        f"{'it' if is_one else 'them'} again, or waits until there is room."
    )
