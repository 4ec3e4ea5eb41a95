"""Answers on their way from the model server to the API's clients: merged, measured, framed and written down."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, Protocol

import orjson
from sqlalchemy.exc import SQLAlchemyError

from app.contracts.generation import GenerationRequest, TokenEvent, TokenLogprob
from app.core import limits
from app.core.db import new_id, transaction, utcnow
from app.core.errors import AppError, BadRequest, ModelFailed, Unavailable
from app.deployments import calls, wire
from app.deployments.calls import Facts
from app.deployments.keys import Caller
from app.inference import client
from app.inference.targets import Target
from app.inference.waiting import Waits

log = logging.getLogger(__name__)
Events = AsyncGenerator[tuple[int, TokenEvent], None]
HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
LOADING_PATIENCE_S = 20.0
_BUFFERED_EVENTS = 64


async def events_of(requests: list[GenerationRequest]) -> Events:
    """Events of all choices as they come, each with its choice's index."""
    if len(requests) == 1:
        async with aclosing(client.agenerate(requests[0])) as events:
            async for event in events:
                yield 0, event
        return
    queue: asyncio.Queue[tuple[int, TokenEvent | Exception]] = asyncio.Queue(_BUFFERED_EVENTS)

    async def pump(index: int, request: GenerationRequest) -> None:
        try:
            async with aclosing(client.agenerate(request)) as events:
                async for event in events:
                    await queue.put((index, event))
        except Exception as error:  # whatever it is: nobody else would tell who waits for this choice
            await queue.put((index, error))

    pumps = [asyncio.create_task(pump(index, request)) for index, request in enumerate(requests)]
    try:
        left = len(requests)
        while left:
            index, found = await queue.get()
            if isinstance(found, Exception):
                raise found
            left -= found.finish_reason is not None
            yield index, found
    finally:
        for task in pumps:
            task.cancel()


def refusal(event: TokenEvent) -> AppError:
    """What an error event means to a client: ask again, ask otherwise, or it is broken."""
    sentence = event.error or ""
    if event.error_kind in ("busy", "full"):
        return Unavailable(sentence, code="model_busy")
    if event.error_kind == "refused":
        if "form of the answer" in sentence or "answer of the form" in sentence:
            return BadRequest(sentence, code="invalid_response_format", param="response_format")
        return refused(sentence, "messages")
    return ModelFailed(sentence)


def refused(sentence: str, param: str) -> BadRequest:
    """A prompt that the model cannot read."""
    return BadRequest(
        sentence, code="context_length_exceeded" if "too long" in sentence else "invalid_prompt", param=param
    )


class Asked(Protocol):
    """What an answer needs to know of its request."""

    @property
    def choices(self) -> int:
        """How many answers."""

    @property
    def tells_usage(self) -> bool:
        """Whether a stream ends with the counts."""


class Completion:
    """One request of /v1/chat/completions, from the first event to the entry in the table of calls."""

    prefix, kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, caller: Caller, ask: Asked, facts: Facts, fingerprint: str, events: Events) -> None:
        self.caller, self.ask, self.facts, self.events = caller, ask, facts, events
        self.id, self.created = f"{self.prefix}-{new_id()}", wire.seconds(utcnow())
        self.fingerprint = f"fp_{fingerprint[:12]}"
        self.started = time.monotonic()
        self.waiting: list[tuple[int, TokenEvent]] = []
        self._read_tokens: dict[int, int] = {}

    async def prepare(self, target: Target) -> None:
        """What has to be known before the answer begins; of a chat nothing."""

    def prompt_at(self, choice: int) -> int:
        """Which prompt a choice answers; a chat has one."""
        return 0

    async def begin(self) -> None:
        """Wait for the first sign of an answer, so that a refusal still has a status of its own.

        Raises what the model server refused, and Unavailable for a model that takes too long to load. An answer that
        waits for its turn, or reads a long prompt, gets a stream with pings.
        """
        async for index, event in self._patiently():
            if event.finish_reason == "error":
                raise refusal(event)
            self.waiting.append((index, event))
            if event.text or event.finish_reason or time.monotonic() > self.started + LOADING_PATIENCE_S:
                return

    async def _patiently(self) -> AsyncIterator[tuple[int, TokenEvent]]:
        """The events; but nobody is kept waiting for ever for a model that is loaded, which goes on without them, or
        that training leaves no memory for. Raises Waits."""
        async for index, event in self.events:
            is_late = time.monotonic() > self.started + LOADING_PATIENCE_S
            if event.waiting is not None and event.waiting.why != "turn" and is_late:
                raise Waits(event.waiting)
            yield index, event

    async def _all(self) -> AsyncIterator[tuple[int, TokenEvent]]:
        for index, event in self.waiting:
            self._measure(index, event)
            yield index, event
        async for index, event in self._patiently():
            self._measure(index, event)
            yield index, event

    def _measure(self, index: int, event: TokenEvent) -> None:
        if event.text and self.facts.first_token_s is None:
            self.facts.first_token_s = time.monotonic() - self.started
        if event.finish_reason:
            # Choices of one prompt read it together: it counts once.
            self._read_tokens[self.prompt_at(index)] = event.prompt_tokens or 0
            self.facts.prompt_tokens = sum(self._read_tokens.values())
            self.facts.completion_tokens += event.completion_tokens or 0
            self.facts.finish_reason = event.finish_reason

    def usage(self) -> dict[str, int]:
        return wire.usage(self.facts.prompt_tokens, self.facts.completion_tokens)

    def head(self, kind: str) -> dict[str, Any]:
        return wire.head(self.id, kind, self.created, self.facts.model, self.fingerprint)

    async def whole(self) -> dict[str, Any]:
        """The answer in one piece. Raises what the model server refused."""
        count = self.ask.choices
        texts: list[list[str]] = [[] for _ in range(count)]
        told: list[list[TokenLogprob]] = [[] for _ in range(count)]
        reasons = ["stop"] * count
        async for index, event in self._all():
            texts[index].append(event.text)
            told[index] += event.logprobs or []
            if event.finish_reason == "error":
                raise refusal(event)
            reasons[index] = _reason(event) or reasons[index]
        choices = [self.choice(i, "".join(texts[i]), reasons[i], told[i]) for i in range(count)]
        return self.head(self.kind) | {"choices": choices, "usage": self.usage()}

    async def chunks(self) -> AsyncIterator[bytes]:
        """The answer as server-sent events. A failure in the middle is an event, too: a cut looks like success."""
        head = self.head(self.chunk_kind)
        with_usage = self.ask.tells_usage
        if with_usage:
            head["usage"] = None
        is_whole = False
        try:
            for index in range(self.ask.choices):
                if opening := self.opening(index):
                    yield _frame(head | {"choices": opening})
            async for index, event in self._all():
                if event.finish_reason == "error":
                    yield _failure(refusal(event), self.facts)
                    return
                if event.text or event.logprobs:
                    yield _frame(head | {"choices": self.piece(index, event.text, event.logprobs)})
                elif not event.finish_reason:
                    yield b": ping\n\n"
                if event.finish_reason:
                    yield _frame(head | {"choices": self.ending(index, _reason(event))})
            if with_usage:
                yield _frame(head | {"choices": [], "usage": self.usage()})
            is_whole = True
            yield b"data: [DONE]\n\n"
        except AppError as error:
            is_whole = True
            yield _failure(error, self.facts)
        finally:
            if not is_whole and self.facts.status == 200:
                self.facts.status, self.facts.finish_reason = 499, "cancelled"
            self.end()

    def choice(self, index: int, text: str, reason: str, told: list[TokenLogprob]) -> dict[str, Any]:
        """One whole answer."""
        return wire.choice(index, text, reason, told)

    def opening(self, index: int) -> list[dict[str, Any]]:
        """The first chunk of an answer."""
        return wire.delta(index, {"role": "assistant", "content": ""})

    def piece(self, index: int, text: str, told: list[TokenLogprob] | None) -> list[dict[str, Any]]:
        """A chunk with text."""
        return wire.delta(index, {"content": text}, told=told)

    def ending(self, index: int, reason: str | None) -> list[dict[str, Any]]:
        """The last chunk of an answer."""
        return wire.delta(index, {}, reason)

    def end(self) -> None:
        """Write the call down in a thread: while a request is being cancelled nothing can wait."""
        self.facts.total_s = time.monotonic() - self.started
        asyncio.get_running_loop().run_in_executor(None, record, self.caller, self.facts)


def record(caller: Caller, facts: Facts) -> None:
    """Write a call down; a database that is away loses the entry, not the answer."""
    limits.add(f"tokens:{caller.actor.key_id}", facts.prompt_tokens + facts.completion_tokens)
    try:
        with transaction() as session:
            calls.record(session, caller, facts)
    except SQLAlchemyError:
        log.warning("call not recorded", exc_info=True)


def _reason(event: TokenEvent) -> str | None:
    return "stop" if event.finish_reason == "cancelled" else event.finish_reason


def _frame(payload: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(payload) + b"\n\n"


def _failure(error: AppError, facts: Facts) -> bytes:
    facts.status, facts.finish_reason = error.status, "error"
    kind = "server_error" if error.status >= 500 else "invalid_request_error"
    return _frame({"error": {"message": error.sentence, "type": kind, "param": error.param, "code": error.error_code}})
