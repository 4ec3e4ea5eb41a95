"""The model thread: the only one that touches tensors. It gives every answer in the making one step in turn."""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from app.contracts.generation import GenerationRequest, TokenEvent
from app.text.template import TemplateFault
from worker.engine.errors import EngineError
from worker.engine.generate import Generation, Loaded

log = logging.getLogger(__name__)
MAX_ACTIVE = 8
MAX_WAITING = 256
BUFFER_EVENTS = 64
SLOW_READER_S = 60


class Busy(Exception):
    """Too many answers are waiting."""


class Answer:
    """One request on its way: events for its reader, and a flag to stop. Lives between two threads."""

    def __init__(self, request: GenerationRequest, loaded: Loaded, loop: asyncio.AbstractEventLoop) -> None:
        self.request, self.loaded = request, loaded
        self.events: asyncio.Queue[TokenEvent] = asyncio.Queue()
        self.is_cancelled = False
        self.asked_at = time.monotonic()
        self.queue_s = 0.0
        self.full_since: float | None = None
        self.generation: Generation | None = None
        self._loop = loop

    def tell(self, event: TokenEvent) -> None:
        """Hand an event to the reader's loop."""
        self._loop.call_soon_threadsafe(self.events.put_nowait, event)


class Turns:
    """Starts waiting answers as places become free and steps the active ones, round robin."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._waiting: deque[Answer] = deque()
        self._active: list[Answer] = []
        self._calls: deque[Callable[[], None]] = deque()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    def add(self, answer: Answer) -> None:
        """Queue an answer. Raises Busy when too many wait."""
        with self._condition:
            if len(self._waiting) >= MAX_WAITING:
                raise Busy
            self._waiting.append(answer)
            self._condition.notify()

    def call(self, function: Callable[[], None]) -> None:
        """Run a short function on the model thread between steps."""
        with self._condition:
            self._calls.append(function)
            self._condition.notify()

    def stop(self) -> None:
        """End the thread; every answer is told."""
        with self._condition:
            self._is_stopping = True
            self._condition.notify()
        self._thread.join(timeout=10)

    def counts(self) -> dict[str, int]:
        """Active and waiting answers."""
        with self._condition:
            return {"active": len(self._active), "waiting": len(self._waiting)}

    def _run(self) -> None:
        while True:
            with self._condition:
                while not (self._waiting or self._active or self._calls or self._is_stopping):
                    self._condition.wait()
                if self._is_stopping:
                    leaving = [*self._active, *self._waiting]
                    break
                calls, self._calls = self._calls, deque()
                while self._waiting and len(self._active) < MAX_ACTIVE:
                    self._active.append(self._waiting.popleft())
            for function in calls:
                function()
            moved = [self._step(answer) for answer in list(self._active)]
            if not any(moved) and not calls:
                time.sleep(0.02)  # every reader is behind
        for answer in leaving:
            answer.tell(
                TokenEvent(
                    finish_reason="error",
                    error="The model server is restarting. Ask again in a moment.",
                    error_kind="busy",
                )
            )

    def _step(self, answer: Answer) -> bool:
        """One step of one answer; False when it had to wait for its reader."""
        if answer.events.qsize() >= BUFFER_EVENTS and not answer.is_cancelled:
            answer.full_since = answer.full_since or time.monotonic()
            if time.monotonic() - answer.full_since < SLOW_READER_S:
                return False
            answer.is_cancelled = True
        answer.full_since = None
        try:
            event = self._event(answer)
        except (EngineError, TemplateFault) as error:
            event = TokenEvent(finish_reason="error", error=str(error), error_kind="refused")
        except Exception:
            log.exception("an answer failed")
            event = TokenEvent(
                finish_reason="error",
                error="The model failed on this message. Try again, or shorten it.",
                error_kind="failed",
            )
        if event is None:
            return True
        if event.finish_reason:
            self._active.remove(answer)
            event = event.model_copy(update={"queue_s": answer.queue_s})
        if event.text or event.finish_reason:
            answer.tell(event)
        return True

    def _event(self, answer: Answer) -> TokenEvent | None:
        if answer.generation is None:
            if answer.is_cancelled:
                return TokenEvent(finish_reason="cancelled")
            answer.queue_s = time.monotonic() - answer.asked_at
            answer.generation = Generation(answer.loaded, answer.request)
        return answer.generation.cancel() if answer.is_cancelled else answer.generation.step()
