"""What training holds of this machine's memory, as its workers tell it. A room that is not told again lapses."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from app.contracts.room import Room


@dataclass(frozen=True)
class _Told:
    room: Room
    at: float


class Rooms:
    """The rooms of all attempts on this machine, by the server's own clock. May be asked from any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._told: dict[str, _Told] = {}

    def hold(self, room: Room) -> None:
        """Note a room, in place of what its attempt told before."""
        with self._lock:
            self._told[room.attempt_id] = _Told(room, self._clock())

    def end(self, attempt_id: str) -> None:
        """Forget the room of an attempt that is over."""
        with self._lock:
            self._told.pop(attempt_id, None)

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
