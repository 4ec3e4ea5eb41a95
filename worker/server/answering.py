"""POST /generate: one answer as a stream of lines, with a sign of life wherever nothing is said for a while."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Literal

from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from app.contracts.generation import GenerationRequest, TokenEvent, Waiting
from app.text.template import TemplateFault
from worker.engine.errors import EngineError
from worker.server.serving import BEAT_S, BUSY, Serving, sentence
from worker.server.turns import Answer, Busy, failure
from worker.server.vllm import Away, Unfit, Vllm

log = logging.getLogger(__name__)
HEARTBEAT_S = 5.0


def install(app: FastAPI, serving: Serving, vllm: Vllm | None) -> None:
    """Add the route. What `vllm` holds, it answers; our own engine the rest."""

    async def events(request: GenerationRequest) -> AsyncGenerator[TokenEvent]:
        if (elsewhere := await _there(vllm, request)) is not None:
            async with aclosing(beating(elsewhere, HEARTBEAT_S)) as told:
                async for event in told:
                    yield event
            return
        answer: Answer | None = None
        try:
            async with aclosing(serving.coming(request.files, request.model_ref)) as coming:
                async for one in coming:
                    if isinstance(one, Waiting):
                        yield TokenEvent(waiting=one)
                    else:
                        answer = Answer(request, one, asyncio.get_running_loop())
            assert answer is not None
            reading = asyncio.ensure_future(asyncio.to_thread(_read, answer))
            while not (await asyncio.wait({reading}, timeout=HEARTBEAT_S))[0]:
                yield TokenEvent()
            if (refusal := reading.result()) is not None:
                yield refusal
                return
            serving.turns.add(answer)
            async with aclosing(_spoken(serving, answer)) as spoken:
                async for event in spoken:
                    yield event
        finally:
            if answer:
                answer.is_cancelled = True

    async def lines(request: GenerationRequest) -> AsyncIterator[bytes]:
        try:
            async with aclosing(events(request)) as told:
                async for event in told:
                    yield _line(event)
        except Exception as error:
            yield _line(_refused(error))

    @app.post("/generate")
    async def generate(request: GenerationRequest) -> StreamingResponse:
        return StreamingResponse(lines(request), media_type="application/x-ndjson")


async def _there(vllm: Vllm | None, request: GenerationRequest) -> AsyncGenerator[TokenEvent] | None:
    """The answer of vLLM; None for a model that it cannot hold."""
    if vllm is None:
        return None
    try:
        return vllm.generate(await vllm.name_of(request.files, request.model_ref), request)
    except (Unfit, Away) as reason:
        if isinstance(reason, Away) and vllm.is_needed:
            raise
        log.info("our own engine answers for %s: %s", request.model_ref, reason)
        return None


async def _spoken(serving: Serving, answer: Answer) -> AsyncGenerator[TokenEvent]:
    """What the model thread tells of an answer; of one that is queued, how many come before it."""
    quiet_s = 0.0
    while True:
        try:
            async with asyncio.timeout(BEAT_S):
                event = await answer.events.get()
        except TimeoutError:
            quiet_s += BEAT_S
            before = serving.turns.before(answer)
            if before is not None:
                yield TokenEvent(
                    waiting=Waiting(why="turn", before=before, so_far_s=time.monotonic() - answer.asked_at)
                )
            elif quiet_s % HEARTBEAT_S == 0:  # it reads a long prompt
                yield TokenEvent()
            continue
        quiet_s = 0.0
        yield event
        if event.finish_reason:
            return


def _refused(error: Exception) -> TokenEvent:
    kind: Literal["busy", "full", "refused", "failed"] = "failed"
    words = "The model could not be used. The log says why."
    match error:
        case Busy():
            kind, words = "full", BUSY
        case Away():
            kind, words = "busy", str(error)
        case OSError():
            words = sentence(error)
        case EngineError() | TemplateFault():
            kind, words = "refused", sentence(error)
        case _:
            log.error("generation failed", exc_info=error)
    return TokenEvent(finish_reason="error", error=words, error_kind=kind)


def _read(answer: Answer) -> TokenEvent | None:
    """Let a question, a template or a format from outside waste its time here, not on the thread that makes everybody's
    answers. What to say where it cannot be read: a panic of the tokenizers library is no Exception."""
    try:
        answer.prepare()
    except BaseException as error:
        return failure(error)
    return None


async def beating(events: AsyncGenerator[TokenEvent], every_s: float) -> AsyncGenerator[TokenEvent]:
    """The events, and a sign of life wherever none has come for so long. Closing it closes them."""
    coming: asyncio.Task[TokenEvent] | None = None
    try:
        while True:
            coming = coming or asyncio.ensure_future(anext(events))
            if not (await asyncio.wait({coming}, timeout=every_s))[0]:
                yield TokenEvent()
                continue
            came, coming = coming, None
            try:
                yield came.result()
            except StopAsyncIteration:
                return
    finally:
        if coming is not None:
            coming.cancel()
            await asyncio.wait({coming})
        await events.aclose()


def _line(event: TokenEvent) -> bytes:
    return event.model_dump_json(exclude_none=True).encode() + b"\n"
