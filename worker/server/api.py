"""The server's HTTP face on a Unix socket. Its only client is our own web edge, which checks keys and limits."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from typing import Any, Literal

from fastapi import FastAPI
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import Field

from app.contracts.base import Contract
from app.contracts.conversation import Message
from app.contracts.generation import GenerationRequest, TokenEvent, TokenIds
from app.contracts.recipe import ModelFiles
from app.text.template import TemplateFault
from worker.engine import compiled
from worker.engine.errors import EngineError
from worker.engine.foretelling import Foretelling
from worker.engine.generate import Loaded
from worker.engine.precision import Precision
from worker.engine.scoring import Scoring
from worker.server import embedding
from worker.server.residents import Residents
from worker.server.turns import Answer, Busy, Turns, failure
from worker.server.vllm import Away, Unfit, Vllm

log = logging.getLogger(__name__)
HEARTBEAT_S = 5.0


class ScoreRequest(Contract):
    """Answers to score after a conversation (or a plain prompt)."""

    model_ref: str
    files: ModelFiles
    messages: list[Message] | None = None
    prompt: str = ""
    answers: list[str] = Field(min_length=1, max_length=256)


class ForetellRequest(Contract):
    """A text, or its token ids, whose every token is to be given its probability."""

    model_ref: str
    files: ModelFiles
    text: str = ""
    ids: TokenIds | None = None
    top_logprobs: int = Field(0, ge=0, le=20)


class UnloadRequest(Contract):
    """Which model to forget."""

    model_ref: str


def create_server(
    budget_bytes: int | None = None,
    device: str = "cpu",
    precision: Precision = "fp32",
    compiles: bool = False,
    vllm: Vllm | None = None,
) -> FastAPI:
    """The application; one model thread lives as long as it. `compiles`: faster answers on a CPU, after the about ten
    seconds that compiling takes the first time. What `vllm` holds, it answers; our own engine the rest."""
    residents = Residents(budget_bytes, device, precision)
    if compiles and device == "cpu":
        # Models that were loaded meanwhile are loaded anew with the next question.
        compiled.prepare(residents.forget_all)
    turns = Turns()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(turns.stop)
        if vllm is not None:
            await vllm.close()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)

    async def loaded(files: ModelFiles, name: str) -> Loaded:
        return await asyncio.wrap_future(await asyncio.to_thread(residents.get, files, name))

    async def on_model_thread(work: Callable[[], Any]) -> Any:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        turns.call(_settling(asyncio.get_running_loop(), future, work))
        return await future

    embedding.install(app, loaded, on_model_thread)

    async def read(step: Callable[[], bool]) -> None:
        """Let the model thread take step after step, one in each of its rounds, until one says that it was the last."""
        while not await on_model_thread(step):
            pass

    @app.get("/health")
    def health() -> dict[str, object]:
        return {"status": "ok", "compiled": compiled.state(), **turns.counts()}

    @app.get("/models")
    def models() -> dict[str, object]:
        return {"models": residents.listing()}

    @app.post("/unload")
    async def unload(order: UnloadRequest) -> dict[str, int]:
        count = await asyncio.to_thread(residents.unload, order.model_ref)
        if vllm is not None:
            with suppress(Away):  # with it its adapters went
                count += await vllm.unload(order.model_ref)
        return {"unloaded": count}

    async def there(request: GenerationRequest) -> AsyncGenerator[TokenEvent] | None:
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

    @app.post("/generate")
    async def generate(request: GenerationRequest) -> StreamingResponse:
        async def lines() -> AsyncIterator[bytes]:
            answer: Answer | None = None
            try:
                if (elsewhere := await there(request)) is not None:
                    async for event in beating(elsewhere, HEARTBEAT_S):
                        yield _line(event)
                    return
                waiting = asyncio.ensure_future(loaded(request.files, request.model_ref))
                while not (await asyncio.wait({waiting}, timeout=HEARTBEAT_S))[0]:
                    yield _line(TokenEvent(is_loading=True))
                answer = Answer(request, waiting.result(), asyncio.get_running_loop())
                reading = asyncio.ensure_future(asyncio.to_thread(_read, answer))
                while not (await asyncio.wait({reading}, timeout=HEARTBEAT_S))[0]:
                    yield _line(TokenEvent())
                if (refusal := reading.result()) is not None:
                    yield _line(refusal)
                    return
                turns.add(answer)
                while True:
                    try:
                        async with asyncio.timeout(HEARTBEAT_S):
                            event = await answer.events.get()
                    except TimeoutError:  # still waiting for its turn, or reading a long prompt
                        event = TokenEvent()
                    yield _line(event)
                    if event.finish_reason:
                        return
            except Busy:
                sentence = "Too many answers are waiting. Try again shortly."
                yield _line(TokenEvent(finish_reason="error", error=sentence, error_kind="busy"))
            except Away as error:
                yield _line(TokenEvent(finish_reason="error", error=str(error), error_kind="busy"))
            except (EngineError, TemplateFault, OSError) as error:
                kind: Literal["failed", "refused"] = "failed" if isinstance(error, OSError) else "refused"
                yield _line(TokenEvent(finish_reason="error", error=_sentence(error), error_kind=kind))
            except Exception:
                log.exception("generation failed")
                sentence = "The model could not be used. The log says why."
                yield _line(TokenEvent(finish_reason="error", error=sentence, error_kind="failed"))
            finally:
                if answer:
                    answer.is_cancelled = True

        return StreamingResponse(lines(), media_type="application/x-ndjson")

    @app.post("/score")
    async def score_answers(order: ScoreRequest) -> JSONResponse:
        try:
            model = await loaded(order.files, order.model_ref)
            results: list[dict[str, Any]] = []
            for text in order.answers:
                scoring = await asyncio.to_thread(Scoring, model, order.messages, order.prompt, text)
                await read(scoring.step)
                results.append(asdict(scoring.score))
        except (EngineError, TemplateFault, OSError) as error:
            return JSONResponse({"error": _sentence(error)}, status_code=422)
        return JSONResponse({"scores": results})

    @app.post("/foretell")
    async def foretell(order: ForetellRequest) -> JSONResponse:
        try:
            model = await loaded(order.files, order.model_ref)
            reading = await asyncio.to_thread(Foretelling, model, order.text, order.top_logprobs, order.ids)
            await read(reading.step)
        except (EngineError, TemplateFault, OSError) as error:
            return JSONResponse({"error": _sentence(error)}, status_code=422)
        return JSONResponse({"tokens": [token.model_dump() for token in reading.tokens]})

    return app


def _read(answer: Answer) -> TokenEvent | None:
    """Let a question, a template or a format from outside waste its time here, not on the thread that makes everybody's
    answers. What to say where it cannot be read: a panic of the tokenizers library is no Exception."""
    try:
        answer.prepare()
    except BaseException as error:
        return failure(error)
    return None


def _settling(
    loop: asyncio.AbstractEventLoop, future: "asyncio.Future[Any]", work: Callable[[], Any]
) -> Callable[[], None]:
    """A call for the model thread that puts what `work` gives, or what went wrong, into `future`."""

    def settle(value: Any, error: BaseException | None) -> None:
        if not future.done():
            future.set_exception(error) if error else future.set_result(value)

    def run() -> None:
        try:
            value = work()
        except BaseException as error:  # a panic of a library is no Exception, and would end the model thread
            loop.call_soon_threadsafe(settle, None, error)
        else:
            loop.call_soon_threadsafe(settle, value, None)

    return run


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


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError):
        return "The model's files cannot be read. They may have been moved or deleted."
    return str(error)
