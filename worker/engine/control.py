"""What a person may tell a running training: lines on standard input, obeyed between steps."""

import queue
import sys
import threading
import time
from typing import Protocol, TextIO

from pydantic import ValidationError

from app.contracts.events import Control


class Commands(Protocol):
    """Where the loop asks for the next command."""

    def next(self) -> Control | None:
        """The oldest command not yet obeyed, or None. Never waits."""


class NoCommands:
    """Nobody interrupts."""

    def next(self) -> Control | None:
        return None


class LineCommands:
    """Commands from a text stream, one JSON object a line, read by a thread of their own."""

    def __init__(self, stream: TextIO) -> None:
        self._queue: queue.SimpleQueue[Control] = queue.SimpleQueue()
        threading.Thread(target=self._read, args=(stream,), daemon=True, name="commands").start()

    def put(self, command: Control) -> None:
        self._queue.put(command)

    def next(self) -> Control | None:
        try:
            return self._queue.get_nowait()
        except queue.Empty:
            return None

    def _read(self, stream: TextIO) -> None:
        for line in stream:
            if not line.strip():
                continue
            try:
                self._queue.put(Control.model_validate_json(line))
            except ValidationError as error:
                sys.stderr.write(f"command not understood: {error.error_count()} errors\n")


class Deadline:
    """Commands, and among them that the recipe's hours are used up: said once, in time for what follows the steps.

    The clock runs from here on, plus `spent_s` of earlier attempts; a pause between attempts does not count.
    """

    def __init__(self, commands: Commands, hours: float | None, spent_s: float) -> None:
        self._commands, self._limit_s = commands, hours * 3600 if hours else None
        self._began_at = time.monotonic() - spent_s
        self._reserve_s = 0.0
        self._is_said = False

    def limit(self, hours: float) -> bool:
        """From now on so many hours for the whole run; False where it has them already."""
        had, self._limit_s = self._limit_s, hours * 3600
        return had != self._limit_s

    @property
    def spent_s(self) -> float:
        """Seconds of all attempts so far."""
        return time.monotonic() - self._began_at

    def have_spent(self, seconds: float) -> None:
        """A checkpoint knows of so much, where whoever started this process may not."""
        self._began_at = min(self._began_at, time.monotonic() - seconds)

    def reserve(self, seconds: float) -> None:
        """A look with its answers and the checkpoint after it took so long: the last one needs as much."""
        self._reserve_s = max(self._reserve_s, seconds)

    def next(self, step: int) -> Control | None:
        """The oldest command, or that the time is up. Before the first step there is nothing to keep: it waits."""
        command = self._commands.next()
        if command is not None or self._limit_s is None or self._is_said or not step:
            return command
        if self.spent_s + self._reserve_s < self._limit_s:
            return None
        self._is_said = True
        return Control(verb="time_is_up")
