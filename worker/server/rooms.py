"""What training holds of this machine's memory, as its workers tell it. A room that is not told again lapses.

The rooms are kept in a small file, too: a server that was killed knows them at its start, before the next heartbeat.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from app.contracts.base import Contract
from app.contracts.room import Room

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Told:
    room: Room
    at: float


class _Kept(Contract):
    """A room as the file has it; `told_at` by the clock on the wall, in seconds."""

    room: Room
    told_at: float


_FILE = TypeAdapter(list[_Kept])
_LONGEST_FILE = 1_000_000  # bytes


class Rooms:
    """The rooms of all attempts on this machine, by the server's own clock. May be asked from any thread.

    `path`: the file that they are kept in; None: nowhere.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        path: Path | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._path, self._wall_clock, self._writing = path, wall_clock, threading.Lock()
        self._told = self._kept()

    def hold(self, room: Room) -> None:
        """Note a room, in place of what its run told before."""
        with self._lock:
            self._told[_key(room)] = _Told(room, self._clock())
        self._keep()

    def end(self, attempt_id: str) -> None:
        """Forget the room of an attempt that is over."""
        with self._lock:
            self._told = {key: one for key, one in self._told.items() if one.room.attempt_id != attempt_id}
        self._keep()

    @property
    def held_bytes(self) -> int:
        """What all of them hold together."""
        return sum(held for held, _left_s in self._now())

    def free_after_s(self, wanted_bytes: int) -> float | None:
        """Seconds until so many of the held bytes will be free, if every attempt ends when it says; None: that is not
        known, or they never hold so many."""
        freed = 0
        for held, left_s in sorted(self._now(), key=lambda one: (one[1] is None, one[1] or 0.0)):
            freed += held
            if freed >= wanted_bytes or left_s is None:
                return left_s
        return None

    def _now(self) -> list[tuple[int, float | None]]:
        """(bytes, seconds left) of each room that has not lapsed."""
        now = self._clock()
        with self._lock:
            self._told = {key: one for key, one in self._told.items() if now - one.at < one.room.lapses_s}
            return [
                (one.room.held_bytes, None if one.room.left_s is None else max(0.0, one.room.left_s - (now - one.at)))
                for one in self._told.values()
            ]

    def _keep(self) -> None:
        """Write the file anew. It must outlive this process, not the machine, so nothing waits for the disk; without it
        a server that starts again learns of a room with the next heartbeat."""
        if self._path is None:
            return
        fresh = self._path.with_name(f"{self._path.name}.new")
        with self._writing:
            now, wall = self._clock(), self._wall_clock()
            with self._lock:
                kept = [_Kept(room=one.room, told_at=wall - (now - one.at)) for one in self._told.values()]
            try:
                fresh.write_bytes(_FILE.dump_json(kept))
                fresh.replace(self._path)
            except OSError as error:
                log.warning("the rooms of trainings are not kept: %s", error)

    def _kept(self) -> dict[str, _Told]:
        """The rooms of the file that have not lapsed. A file that is damaged is no rooms; one from a time to come was
        written before the clock on the wall was set back, and counts nothing either."""
        if self._path is None:
            return {}
        try:
            with self._path.open("rb") as file:
                kept = _FILE.validate_json(file.read(_LONGEST_FILE))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            log.warning("the rooms that were kept cannot be read: %s", error)
            return {}
        now, wall = self._clock(), self._wall_clock()
        there = [one for one in kept if 0 <= wall - one.told_at < one.room.lapses_s]
        return {_key(one.room): _Told(one.room, now - (wall - one.told_at)) for one in there}


def _key(room: Room) -> str:
    return room.run_id or room.attempt_id
