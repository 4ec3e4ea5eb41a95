"""The client of the model server. Whatever goes wrong becomes Unavailable, or an error event with a sentence."""

import logging
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import closing
from functools import lru_cache
from typing import Any

import httpx
import orjson

from app.contracts.generation import GenerationRequest, ReadToken, Sampling, TokenEvent, Waiting
from app.contracts.room import MadeRoom, Room, Unloaded
from app.core.config import get_settings
from app.core.errors import AppError, Invalid, Unavailable
from app.inference.targets import Target
from app.inference.waiting import Waits

log = logging.getLogger(__name__)
# The server sends a sign of life at least every five seconds while it loads or waits.
_TIMEOUT = httpx.Timeout(30, connect=2)
_ROOM_TIMEOUT = httpx.Timeout(5, connect=2)
_JSON = {"content-type": "application/json"}
_LATE = "The model server is starting or out of reach. Try again in a few seconds; nothing was lost."


class Full(Unavailable):
    """Too many answers wait at the model server."""


_ENDS: dict[str | None, type[AppError]] = {"busy": Unavailable, "full": Full}


@lru_cache
def _client(socket: str) -> httpx.Client:
    # Answers that wait for memory hold one each (at most 64), and must not take them all.
    transport = httpx.HTTPTransport(uds=socket, limits=httpx.Limits(max_connections=160))
    return httpx.Client(transport=transport, base_url="http://model", timeout=_TIMEOUT)


def _sync() -> httpx.Client:
    return _client(str(get_settings().server_socket))


def request_for(target: Target, sampling: Sampling, **prompt: object) -> GenerationRequest:
    """A request to `target`: give `messages` or `prompt`."""
    return GenerationRequest(
        model_ref=target.ref, workspace_id=target.workspace_id, files=target.files, sampling=sampling, **prompt
    )


def generate(request: GenerationRequest) -> Generator[TokenEvent]:
    """Events of one answer; the last one has a finish_reason. Raises Unavailable when the server cannot be reached."""
    is_ended = False
    try:
        with _sync().stream("POST", "/generate", content=request.model_dump_json(), headers=_JSON) as response:
            _check(response.status_code)
            for line in response.iter_lines():
                event = TokenEvent.model_validate_json(line)
                is_ended = event.finish_reason is not None
                yield event
    except httpx.TransportError as error:
        log.warning("model server: %s", error)
        if not is_ended:
            raise Unavailable(_LATE) from error
    if not is_ended:
        raise Unavailable(_LATE)


async def agenerate(request: GenerationRequest) -> AsyncGenerator[TokenEvent]:
    """As `generate`, for streaming routes. Closing the iterator cancels the answer within one step."""
    is_ended = False
    transport = httpx.AsyncHTTPTransport(uds=str(get_settings().server_socket))
    try:
        async with (
            httpx.AsyncClient(transport=transport, base_url="http://model", timeout=_TIMEOUT) as client,
            client.stream("POST", "/generate", content=request.model_dump_json(), headers=_JSON) as response,
        ):
            _check(response.status_code)
            async for line in response.aiter_lines():
                event = TokenEvent.model_validate_json(line)
                is_ended = event.finish_reason is not None
                yield event
    except httpx.TransportError as error:
        log.warning("model server: %s", error)
        if not is_ended:
            raise Unavailable(_LATE) from error
    if not is_ended:
        raise Unavailable(_LATE)


def answer(request: GenerationRequest, told: Callable[[Waiting], None] = lambda waiting: None) -> TokenEvent:
    """The whole answer as one event. `told` hears about once a second what it waits for, and may give up by raising.

    Raises Unavailable, or Invalid with the server's sentence.
    """
    text: list[str] = []
    last = TokenEvent()
    with closing(generate(request)) as events:
        for last in events:
            text.append(last.text)
            if last.waiting is not None:
                told(last.waiting)
    if last.finish_reason == "error":
        raise _ENDS.get(last.error_kind, Invalid)(last.error or "")
    return last.model_copy(update={"text": "".join(text)})


def score(
    target: Target, answers: list[str], *, patience_s: float | None = None, **prompt: object
) -> list[dict[str, float]]:
    """For each answer its summed log_probability (nats), tokens and is_greedy, after `messages` or `prompt`.

    Raises Waits when the model is not there after `patience_s` (the server's own by default), Unavailable and Invalid.
    """
    messages = prompt.get("messages")
    body = {
        "model_ref": target.ref,
        "files": target.files.model_dump(),
        "messages": [m.model_dump() for m in messages] if isinstance(messages, list) else None,
        "prompt": prompt.get("prompt") or "",
        "answers": answers,
        "patience_s": patience_s,
    }
    found = _told("/score", body)
    scores: list[dict[str, float]] = found["scores"]
    return scores


def foretell(target: Target, text: str | list[int], top_logprobs: int = 0) -> list[ReadToken]:
    """Each token of a text (or of its ids) with its log-probability behind what stands before it; of the first there is
    none.

    Raises Unavailable, or Invalid with the server's sentence.
    """
    read = {"text": text} if isinstance(text, str) else {"ids": text}
    body = {"model_ref": target.ref, "files": target.files.model_dump(), "top_logprobs": top_logprobs, **read}
    found = _told("/foretell", body)
    return [ReadToken.model_validate(token) for token in found["tokens"]]


def embed(target: Target, texts: list[str]) -> list[tuple[list[float], int]]:
    """For each text the mean of the model's last hidden states, scaled to length one, and how many tokens it has.

    Raises Unavailable, or Invalid with the server's sentence.
    """
    body = {"model_ref": target.ref, "files": target.files.model_dump(), "texts": texts}
    found = _told("/embed", body)
    return [(one["vector"], one["tokens"]) for one in found["vectors"]]


def is_ready() -> bool:
    """Whether the model server answers."""
    try:
        return _sync().get("/health", timeout=2).status_code == 200
    except httpx.TransportError:
        return False


def unload(ref: str) -> None:
    """Ask the server to forget a model that was deleted; it does so by itself sooner or later."""
    try:
        _sync().post("/unload", content=orjson.dumps({"model_ref": ref}), headers=_JSON, timeout=2)
    except httpx.TransportError:
        log.info("model %s not unloaded: the server is out of reach", ref)


def hold_room(room: Room) -> list[Unloaded]:
    """Tell the server of this machine what a training takes of its memory; which models had to go. A server that is out
    of reach is no fault: it is told again with the next heartbeat."""
    try:
        response = _sync().put("/room", content=room.model_dump_json(), headers=_JSON, timeout=_ROOM_TIMEOUT)
        return MadeRoom.model_validate_json(response.content).unloaded if response.status_code == 200 else []
    except httpx.TransportError as error:
        log.debug("the model server does not know of this training: %s", error)
        return []


def end_room(attempt_id: str) -> None:
    """Tell the server that a training is over; unless told, it finds out by itself."""
    try:
        _sync().delete(f"/room/{attempt_id}", timeout=_ROOM_TIMEOUT)
    except httpx.TransportError as error:
        log.debug("the model server does not know that this training is over: %s", error)


def resident() -> dict[str, Any] | None:
    """What the server holds now (`models`) and may hold (`memory`); None when it is out of reach."""
    try:
        response = _sync().get("/models", timeout=2)
    except httpx.TransportError:
        return None
    found: dict[str, Any] = response.json() if response.status_code == 200 else {}
    return found or None


def _check(status: int) -> None:
    if status != 200:
        raise Unavailable("The model server refused the request. The log says why.")


def _told(path: str, body: dict[str, Any]) -> dict[str, Any]:
    """What the server answers as a whole. Raises Unavailable (Waits for a model that is not there yet), or Invalid with
    its sentence."""
    try:
        response = _sync().post(path, content=orjson.dumps(body), headers=_JSON, timeout=120)
    except httpx.TransportError as error:
        raise Unavailable(_LATE) from error
    if response.status_code == 422 and "error" in response.json():
        raise Invalid(response.json()["error"])
    if response.status_code == 503 and "waiting" in response.json():
        raise Waits(Waiting.model_validate(response.json()["waiting"]))
    if response.status_code == 503 and "error" in response.json():
        raise (Full if response.json().get("is_full") else Unavailable)(response.json()["error"])
    _check(response.status_code)
    found: dict[str, Any] = response.json()
    return found
