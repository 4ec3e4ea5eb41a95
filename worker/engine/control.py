"""What a person may tell a running training: lines on standard input, obeyed between steps."""

import queue
import sys
import threading
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
