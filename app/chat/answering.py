"""Makes answers in the background of the web process: follows the model server, tells the page, saves the message.

Pages only follow, so a reload loses nothing; what is said is saved every second, so a crash loses little.
"""

import logging
import math
import threading
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import select, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from app.chat import asked
from app.chat.asked import Asked
from app.chat.models import ChatMessage
from app.chat.waiting import Waited
from app.contracts.conversation import Message
from app.contracts.generation import Sampling, TokenEvent, TokenLogprob, Waiting
from app.core import events
from app.core.db import reading, transaction, utcnow
from app.core.errors import AppError, Unavailable
from app.inference.patience import PATIENCE_S
from app.inference.targets import Target

log = logging.getLogger(__name__)
TELL_EVERY_S = 0.07
SAVE_EVERY_S = 1.0
SAVE_WAITING_EVERY_S = 15.0
UNSAVED_S = 900.0  # how long the end of an answer waits for a disk that is full or a database that is away
ASK_AGAIN_S = 0.5
KEPT_ODDS = 600  # tokens of an answer whose probabilities are kept
# More than may wait for memory at once: a small model goes on answering meanwhile.
_pool = ThreadPoolExecutor(max_workers=128, thread_name_prefix="answer")
# Answers of this process, and whether each was asked to stop: seen at the next token. Another process that makes one
# sees the wish in its row, within a second.
_stops: dict[str, threading.Event] = {}


@dataclass(frozen=True)
class Order:
    """All that is needed to make one answer, without a session."""

    message_id: str
    target: Asked
    messages: list[Message]
    sampling: Sampling


def start(order: Order) -> None:
    """Begin to make the answer; call it once its row is committed."""
    _stops[order.message_id] = threading.Event()
    _pool.submit(_make, order)


def stop(message_id: str) -> None:
    """End an answer of this process at its next token; call it once the wish is committed."""
    if (wish := _stops.get(message_id)) is not None:
        wish.set()


class _Said:
    """The text of an answer so far, and how much of it its followers were told; before the first word what it waits
    for."""

    def __init__(self, message_id: str) -> None:
        self.text, self._message_id = "", message_id
        self._told, self._told_at = 0, time.monotonic()
        self._shown: Waited | None = None
        self._saved: tuple[int, Waited | None] | None = None
        self._saved_at = 0.0

    def is_to_save(self) -> bool:
        """Whether there is more to save than when this was true last. Of what waits long the row says now and then that
        it is still waited for: many who wait must not keep the database from those who do not."""
        now, new = time.monotonic(), (len(self.text), self._shown)
        if new == self._saved and now - self._saved_at < SAVE_WAITING_EVERY_S:
            return False
        self._saved, self._saved_at = new, now
        return True

    @property
    def waiting(self) -> dict[str, Any]:
        """What a row keeps of it while the answer is made."""
        return {"waiting": self._shown.kept} if self._shown is not None and not self.text else {}

    def wait(self, waiting: Waiting) -> bool:
        """Note what the answer waits for, and publish it where people would read something else than before; whether it
        is the first that they read."""
        before, self._shown = self._shown, Waited.of(waiting)
        if self._shown is not None and self._shown != before:
            events.publish(f"chat:{self._message_id}", "waiting", self._shown.kept)
        return before is None and self._shown is not None

    def tell(self, *, now: bool = False) -> None:
        """Publish what is new, a few times a second or `now`. Each piece says where it begins: Redis may lose some."""
        is_due = now or time.monotonic() - self._told_at >= TELL_EVERY_S
        if is_due and len(self.text) > self._told:
            piece = {"text": self.text[self._told :], "at": self._told}
            events.publish(f"chat:{self._message_id}", "text", piece)
            self._told, self._told_at = len(self.text), time.monotonic()


@dataclass(frozen=True)
class _End:
    """How an answer ended, as its row keeps it."""

    state: Literal["done", "failed"]
    error: str = ""
    statistics: dict[str, object] = field(default_factory=dict)


def _make(order: Order) -> None:
    said = _Said(order.message_id)
    try:
        end = _answer(order, said)
    except AppError as error:
        end = _End("failed", error.sentence)
    except Exception:
        log.exception("an answer failed", extra={"answer": order.message_id})
        end = _End("failed", "The answer could not be made. Try again; the log says why.")
    try:
        _finish_surely(order, said.text, end)
    finally:
        _stops.pop(order.message_id, None)


def _answer(order: Order, said: _Said) -> _End:
    last = TokenEvent()
    odds: list[dict[str, object]] = []
    saved_at = time.monotonic()
    stream = _events(order, said)
    for last in stream:
        said.text += last.text
        is_first = last.waiting is not None and said.wait(last.waiting)
        odds += [_odds(one) for one in last.logprobs or []] if len(odds) < KEPT_ODDS else []
        said.tell()
        now = time.monotonic()
        if _stops[order.message_id].is_set():
            break
        if is_first or now - saved_at >= SAVE_EVERY_S:
            saved_at = now
            if _save(order, said):
                break
    stream.close()
    said.tell(now=True)
    statistics = last.model_dump(
        include={"prompt_tokens", "completion_tokens", "queue_s", "first_token_s", "total_s", "finish_reason"},
        exclude_none=True,
    )
    if _is_full(order, last):
        statistics["finish_reason"] = "memory"
    if odds:
        statistics["odds"] = odds[:KEPT_ODDS]
    if last.finish_reason == "error":
        return _End("failed", last.error or "")
    return _End("done", statistics=statistics)


def _events(order: Order, said: _Said) -> Generator[TokenEvent]:
    """What the model server says. One that has just died comes back within seconds: as long as nothing was said, the
    answer waits for it."""
    away_since = time.monotonic()
    while True:
        try:
            with closing(asked.generate(order.target, order.sampling, order.messages)) as told:
                for event in told:
                    away_since = time.monotonic()
                    yield event
            return
        except Unavailable:
            if said.text or time.monotonic() > away_since + PATIENCE_S:
                raise
        yield TokenEvent(waiting=Waiting(why="server", so_far_s=time.monotonic() - away_since))
        time.sleep(ASK_AGAIN_S)


def _is_full(order: Order, last: TokenEvent) -> bool:
    """Whether an answer of our own model was cut because question and answer filled what it can look at, and not by
    the longest reply that was asked for."""
    is_own = isinstance(order.target, Target)
    return is_own and last.finish_reason == "length" and (last.completion_tokens or 0) < order.sampling.max_tokens


def _odds(one: TokenLogprob) -> dict[str, object]:
    """A token, its probability, and the likeliest ones in its place."""
    others = [[other.token, round(math.exp(other.logprob), 4)] for other in one.top]
    return {"token": one.token, "p": round(math.exp(one.logprob), 4), "top": others}


def _save(order: Order, said: _Said) -> bool:
    """Save what was said so far, or what is waited for; True when a person asked to stop. A full disk or a database
    that is away ends no answer: its end is saved when they are back."""
    try:
        if not said.is_to_save():
            with reading() as session:
                return _is_stop_wished(session, order)
        with transaction() as session:
            session.execute(
                update(ChatMessage)
                .where(ChatMessage.id == order.message_id, ChatMessage.state == "streaming")
                .values(content=said.text, statistics=said.waiting, saved_at=utcnow())
            )
            return _is_stop_wished(session, order)
    except OperationalError as error:
        log.warning("an answer goes on unsaved: %s", error.orig, extra={"answer": order.message_id})
        return False


def _is_stop_wished(session: Session, order: Order) -> bool:
    wish = session.scalar(select(ChatMessage.error).where(ChatMessage.id == order.message_id))
    return wish is None or wish == "stop"


def _finish_surely(order: Order, said: str, end: _End) -> None:
    """Save the end of an answer, as often as it takes: a full disk may have been cleared within minutes."""
    give_up_at = time.monotonic() + UNSAVED_S
    while True:
        try:
            return _finish(order, said, end)
        except OperationalError as error:
            if time.monotonic() > give_up_at:
                raise
            log.warning("the end of an answer is not saved yet: %s", error.orig, extra={"answer": order.message_id})
        time.sleep(SAVE_EVERY_S)


def _finish(order: Order, said: str, end: _End) -> None:
    # A failure keeps what was said before it.
    changes: dict[str, object] = {"content": said} if said else {}
    state: str = end.state
    with transaction() as session:
        if state == "done" and _is_stop_wished(session, order):
            state = "stopped"  # also when the last word came before the wish was seen
        session.execute(
            update(ChatMessage)
            .where(ChatMessage.id == order.message_id, ChatMessage.state == "streaming")
            .values(state=state, error=end.error, statistics=end.statistics, saved_at=utcnow(), **changes)
        )
    events.publish(f"chat:{order.message_id}", "end", {"state": state})
