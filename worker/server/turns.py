"""The model thread: the only one that touches tensors. Every answer in the making takes a step in each round."""

import asyncio
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from weakref import WeakKeyDictionary

from app.contracts.generation import GenerationRequest, TokenEvent, TokenLogprob
from app.text.template import TemplateFault
from worker.engine.errors import EngineError
from worker.engine.generate import PREFILL_CHUNK, Generation, Loaded
from worker.engine.packing import is_packable
from worker.engine.slots import SHARED_CHUNK, Slots

log = logging.getLogger(__name__)
MAX_ACTIVE = 8
MAX_WAITING = 256
BUFFER_EVENTS = 64
PACE_S = 0.02  # words of one answer go out together that often: each on its own would cost more than to make them
SLOW_READER_S = 60
PATIENCE_S = 120  # the longest wait for a place


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
        self._loop = loop
        self._held, self._held_logprobs = "", list[TokenLogprob]()
        self._behind_since: float | None = None
        self._told_at = 0.0
        self._generation: Generation | None = None

    def prepare(self) -> Generation:
        """Read the question and its format, once; whoever calls it first waits for that."""
        if self._generation is None:
            self._generation = Generation(self.loaded, self.request)
        return self._generation

    @property
    def is_wanted(self) -> bool:
        """False when it was cancelled, or its reader has taken nothing for a minute."""
        is_stuck = self._behind_since is not None and time.monotonic() - self._behind_since > SLOW_READER_S
        return not self.is_cancelled and not is_stuck

    def tell(self, event: TokenEvent) -> None:
        """Hand an event to the reader's loop. Words that come faster than anybody reads wait here and go out as one,
        and so they do while the reader is far behind."""
        now = time.monotonic()
        is_behind = self.events.qsize() >= BUFFER_EVENTS
        self._behind_since = (self._behind_since or now) if is_behind else None
        self._held += event.text
        self._held_logprobs += event.logprobs or []
        is_early = now - self._told_at < PACE_S
        if event.finish_reason is None and (is_behind or is_early or not self._held):
            return
        self._told_at = now
        event = event.model_copy(update={"text": self._held, "logprobs": self._held_logprobs or None})
        self._held, self._held_logprobs = "", []
        self._loop.call_soon_threadsafe(self.events.put_nowait, event)


class Turns:
    """Starts waiting answers as places become free and steps the active ones: those of one model together."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._waiting: OrderedDict[str, deque[Answer]] = OrderedDict()  # by workspace; whose turn it is comes first
        self._parked: deque[tuple[Generation, Answer]] = deque()  # they wait for memory, and all others behind them
        self._turn = 0
        self._active: dict[Generation, Answer] = {}
        self._slots: WeakKeyDictionary[Loaded, Slots] = WeakKeyDictionary()
        self._calls: deque[Callable[[], None]] = deque()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    def add(self, answer: Answer) -> None:
        """Queue an answer. Raises Busy when too many wait."""
        with self._condition:
            if self._count_waiting() >= MAX_WAITING:
                raise Busy
            self._waiting.setdefault(answer.request.workspace_id, deque()).append(answer)
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
            return {"active": len(self._active), "waiting": self._count_waiting()}

    def before(self, answer: Answer) -> int | None:
        """How many answers that have not begun begin before this one, as the turns are now; None once it has begun."""
        with self._condition:
            parked = [one for _, one in tuple(self._parked)]
            if answer in parked:
                return parked.index(answer)
            queues = list(self._waiting.values())
            place = next((place for place, queue in enumerate(queues) if answer in queue), None)
            if place is None:
                return None
            # Each round takes one answer of every workspace.
            rounds = queues[place].index(answer)
            others = (min(len(queue), rounds + (at < place)) for at, queue in enumerate(queues) if at != place)
            return len(parked) + rounds + sum(others)

    def _count_waiting(self) -> int:
        return sum(len(queue) for queue in self._waiting.values()) + len(self._parked)

    def _run(self) -> None:
        while True:
            with self._condition:
                while not (self._waiting or self._parked or self._active or self._calls or self._is_stopping):
                    self._condition.wait()
                if self._is_stopping:
                    leaving = [*self._active.values(), *(answer for _, answer in self._parked)]
                    leaving += [answer for queue in self._waiting.values() for answer in queue]
                    break
                # One in a round: those who speak wait for no more than one piece of what others have read.
                call = self._calls.popleft() if self._calls else None
                late = self._taken_late()
                joining: list[Answer] = []
                while self._waiting and not self._parked and len(self._active) + len(joining) < MAX_ACTIVE:
                    joining.append(self._next())
            for answer in late:
                answer.tell(_busy("Other answers took too long. Ask again in a moment."))
            if call is not None:
                call()
            self._round(joining)
        for answer in leaving:
            answer.tell(_busy("The model server is restarting. Ask again in a moment."))

    def _next(self) -> Answer:
        """Who begins next: workspaces take turns, so that one that asks much holds up nobody else."""
        workspace_id, queue = next(iter(self._waiting.items()))
        answer = queue.popleft()
        self._waiting.move_to_end(workspace_id)
        if not queue:
            del self._waiting[workspace_id]
        return answer

    def _taken_late(self) -> list[Answer]:
        """Take out who has waited too long, or is no longer waited for."""
        limit = time.monotonic() - PATIENCE_S
        late = [a for queue in self._waiting.values() for a in queue if a.asked_at < limit or not a.is_wanted]
        for answer in late:
            queue = self._waiting[answer.request.workspace_id]
            queue.remove(answer)
            if not queue:
                del self._waiting[answer.request.workspace_id]
        return late

    def _round(self, joining: list[Answer]) -> None:
        """One step of every answer."""
        for answer in joining:
            self._begin(answer)
        self._join()
        self._leave()
        together = [slots for slots in self._slots.values() if slots.answers]
        lone = [generation for generation in self._active if not is_packable(generation.loaded.model)]
        everyone: list[Slots | Generation] = [*together, *lone]
        reading = [one for one in everyone if one.is_reading]
        # One piece of one prompt in a round: nobody who speaks waits for more than that.
        self._turn += 1
        reader = reading[self._turn % len(reading)] if reading else None
        most = PREFILL_CHUNK if all(generation.is_reading for generation in self._active) else SHARED_CHUNK
        for slots in together:
            self._speak_together(slots, most if slots is reader else 0)
        for generation in lone:
            if generation is reader or not generation.is_reading:
                self._speak_alone(generation, most)

    def _begin(self, answer: Answer) -> None:
        if not answer.is_wanted:
            answer.tell(TokenEvent(finish_reason="cancelled"))
            return
        answer.queue_s = time.monotonic() - answer.asked_at
        try:
            generation = answer.prepare()
        except BaseException as error:  # a panic of the tokenizers library is no Exception, and would end this thread
            answer.tell(failure(error))
        else:
            generation.asked_at = time.monotonic()
            self._parked.append((generation, answer))

    def _join(self) -> None:
        """Let those who have begun join the others while there is memory for what they may become."""
        while self._parked:
            generation, answer = self._parked[0]
            try:
                if is_packable(answer.loaded.model):
                    slots = self._slots_of(answer.loaded)
                    if not slots.has_room(generation):
                        return
                    slots.add(generation)
            except BaseException as error:  # want of memory, say: it ends this answer, not the thread
                self._parked.popleft()
                answer.tell(failure(error))
                continue
            self._parked.popleft()
            self._active[generation] = answer

    def _slots_of(self, loaded: Loaded) -> Slots:
        """The slots of a base model, shared by all its adapters."""
        if loaded.root not in self._slots:
            self._slots[loaded.root] = Slots(loaded.root)
        return self._slots[loaded.root]

    def _leave(self) -> None:
        """Let those go whom nobody listens to any more."""
        for generation, answer in list(self._active.items()):
            if answer.is_wanted or generation not in self._active:
                continue
            if (slots := self._slots.get(generation.loaded.root)) is not None:
                try:
                    slots.drop(generation)
                except BaseException as error:
                    self._give_up(slots, error)
                    continue
            self._tell(generation, generation.cancel())

    def _speak_together(self, slots: Slots, most: int) -> None:
        try:
            told = slots.step(most)
        except BaseException as error:
            self._give_up(slots, error)
        else:
            for generation, event in told:
                self._tell(generation, event)

    def _give_up(self, slots: Slots, error: BaseException) -> None:
        """End every answer of these slots, also one that had just left them, and begin anew with the next."""
        for generation in [one for one in self._active if self._slots.get(one.loaded.root) is slots]:
            self._tell(generation, failure(error))
        self._slots = WeakKeyDictionary({k: v for k, v in self._slots.items() if v is not slots})

    def _speak_alone(self, generation: Generation, most: int) -> None:
        try:
            event = generation.step(most)
        except BaseException as error:
            event = failure(error)
        if event is not None:
            self._tell(generation, event)

    def _tell(self, generation: Generation, event: TokenEvent) -> None:
        answer = self._active[generation]
        if event.finish_reason:
            del self._active[generation]
            event = event.model_copy(update={"queue_s": answer.queue_s})
        answer.tell(event)


def _busy(sentence: str) -> TokenEvent:
    return TokenEvent(finish_reason="error", error=sentence, error_kind="busy")


def failure(error: BaseException) -> TokenEvent:
    """What an answer's reader is told of an error."""
    if isinstance(error, EngineError | TemplateFault):
        return TokenEvent(finish_reason="error", error=str(error), error_kind="refused")
    log.error("an answer failed", exc_info=error)
    sentence = "The model failed on this message. Try again, or shorten it."
    return TokenEvent(finish_reason="error", error=sentence, error_kind="failed")
