"""The OpenAI-compatible routes under /v1. Keys only; errors in the shape that OpenAI's clients read."""

import asyncio
from collections.abc import Callable
from typing import Any

import orjson
from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response, StreamingResponse

from app.contracts.generation import GenerationRequest
from app.core.db import reading, transaction
from app.core.errors import AppError, Unauthenticated
from app.deployments import asked, completions, idempotency, names, stream, wire
from app.deployments.access import CallerDep, until_revoked
from app.deployments.calls import Facts
from app.deployments.idempotency import Slot
from app.deployments.keys import Caller
from app.inference import client
from app.inference.targets import Target

router = APIRouter(prefix="/v1")
BODY_LIMIT_BYTES = 8 * 2**20


class _Left(Exception):
    """The client went away before the answer was ready."""


_REVOKED = "The API key was revoked or has expired while the answer was made."


@router.get("/models")
def models(caller: CallerDep) -> dict[str, Any]:
    caller.require("read")
    asked.name_everything(caller.workspace_id)
    with reading() as session:
        return {
            "object": "list",
            "data": [
                wire.model_object(one) for one in names.published(session, caller.actor) if caller.may_use(one.id)
            ],
        }


@router.get("/models/{model_name:path}")
def model(model_name: str, caller: CallerDep) -> dict[str, Any]:
    caller.require("read")
    asked.name_everything(caller.workspace_id)
    asked.require_model(caller, model_name)
    with reading() as session:
        return wire.model_object(names.find(session, caller.actor, model_name))


@router.post("/chat/completions", max_body_size=BODY_LIMIT_BYTES)
async def chat_completions(request: Request, caller: CallerDep) -> Response:
    """A chat completion, whole or streamed. An Idempotency-Key makes a whole one happen once."""
    return await _answered(request, caller, "chat/completions", wire.parse, _order, stream.Completion)


@router.post("/completions", max_body_size=BODY_LIMIT_BYTES)
async def text_completions(request: Request, caller: CallerDep) -> Response:
    """A plain text goes on, whole or streamed."""
    return await _answered(request, caller, "completions", completions.parse, _text_order, completions.TextCompletion)


async def _answered(
    request: Request,
    caller: Caller,
    endpoint: str,
    parse: Callable[[bytes], Any],
    order: Callable[[Any, Target, int], GenerationRequest],
    kind: type[stream.Completion],
) -> Response:
    caller.require("chat")
    facts = Facts(endpoint)
    slot: Slot | None = None
    try:
        body = await request.body()
        ask = await run_in_threadpool(parse, body)
        facts.model = ask.model
        published, target = await run_in_threadpool(asked.target_of, caller, ask.model)
        facts.project_id = published.project_id
        header = request.headers.get("idempotency-key", "")
        if header and not ask.stream:
            slot = await run_in_threadpool(_reserve, caller, header, f"/v1/{endpoint}\n".encode() + body)
            if slot.answer is not None:
                return _json(request, slot.answer, {"idempotent-replayed": "true"})
        orders = [order(ask, target, index) for index in range(ask.choices)]
        completion = kind(caller, ask, facts, published.digest, stream.events_of(orders))
        await completion.prepare(target)
        if ask.stream:
            await completion.begin()
            headers = stream.HEADERS | request.scope["state"]["limit_headers"]
            return StreamingResponse(completion.chunks(), media_type="text/event-stream", headers=headers)
        answer = await _unless_left(request, completion)
        if slot is not None:
            await run_in_threadpool(_keep, slot, answer)
        completion.end()
        return _json(request, answer, {})
    except (AppError, _Left, asyncio.CancelledError) as error:
        facts.status = error.status if isinstance(error, AppError) else 499
        facts.finish_reason = "error" if isinstance(error, AppError) else "cancelled"
        loop = asyncio.get_running_loop()
        loop.run_in_executor(None, stream.record, caller, facts)
        if slot is not None and slot.answer is None:
            loop.run_in_executor(None, _release, slot)
        if isinstance(error, _Left):
            return Response(status_code=499)
        raise


async def _unless_left(request: Request, completion: stream.Completion) -> dict[str, Any]:
    """The whole answer; a client that hangs up, or whose key is revoked, frees the model within a step."""
    answering = asyncio.create_task(completion.whole())
    leaving = asyncio.create_task(_hung_up(request))
    revoked = asyncio.create_task(until_revoked(request))
    try:
        await asyncio.wait({answering, leaving, revoked}, return_when=asyncio.FIRST_COMPLETED)
        if answering.done():
            return answering.result()
        if revoked.done():
            raise Unauthenticated(_REVOKED, code="invalid_api_key")
        raise _Left
    finally:
        for task in (leaving, revoked, answering):
            task.cancel()


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _order(ask: wire.ChatRequest, target: Target, index: int) -> GenerationRequest:
    """A model of plain text goes on from the last message; every other one gets the conversation."""
    if target.is_chat:
        return client.request_for(target, ask.sampling(index), messages=ask.conversation(target.system_prompt))
    return client.request_for(target, ask.sampling(index), prompt=ask.messages[-1].plain().content)


def _text_order(ask: completions.TextRequest, target: Target, index: int) -> GenerationRequest:
    """Every model goes on from the text as it is: no template, no system prompt."""
    prompt = ask.prompts[ask.prompt_at(index)]
    read = {"prompt": prompt} if isinstance(prompt, str) else {"prompt_ids": prompt}
    return client.request_for(target, ask.sampling(index), **read)


def _reserve(caller: Caller, header: str, body: bytes) -> Slot:
    with transaction() as session:
        return idempotency.reserve(session, caller, header=header, body=body)


def _keep(slot: Slot, answer: dict[str, Any]) -> None:
    with transaction() as session:
        idempotency.keep(session, slot, answer)


def _release(slot: Slot) -> None:
    with transaction() as session:
        idempotency.release(session, slot)


def _json(request: Request, answer: dict[str, Any], headers: dict[str, str]) -> Response:
    limit_headers = request.scope["state"]["limit_headers"]
    return Response(orjson.dumps(answer), media_type="application/json", headers=limit_headers | headers)
