"""Long answers end at shutdown, at their age, and when their reader loses the right to read."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from app.core import config, streams
from app.core.streams import Shutdown, Streams


async def endless(scope: Scope, receive: Receive, send: Send) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        while True:
            yield b"data: x\n\n"
            await asyncio.sleep(0.01)

    await StreamingResponse(pieces(), media_type="text/event-stream")(scope, receive, send)


async def ask(path: str, *, shutdown: Shutdown, rights: Any, after: Any = None, app: Any = endless) -> list[Message]:
    """Every message that the application sends until it ends, at most five seconds."""
    sent: list[Message] = []

    async def receive() -> Message:
        await asyncio.sleep(3600)
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)
        if len(sent) == 5 and after:
            after()

    async def looked_up(_request: Request) -> Any:
        return rights()

    scope = {"type": "http", "path": path, "method": "GET", "headers": [], "query_string": b""}
    watched = Streams(app, shutdown=shutdown, rights=looked_up, api_rights=looked_up)
    await asyncio.wait_for(watched(scope, receive, send), 60)
    return sent


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "RECHECK_S", 0.05)
    monkeypatch.setattr(streams, "API_RECHECK_S", 0.05)
    monkeypatch.setenv("GPT_BUILDER_STOP_GRACE_S", "5")
    config.get_settings.cache_clear()


def test_a_page_stream_ends_quietly_at_shutdown() -> None:
    async def run() -> list[Message]:
        shutdown = Shutdown()
        return await ask("/runs/1/events", shutdown=shutdown, rights=lambda: 1, after=shutdown.event.set)

    sent = asyncio.run(run())
    assert sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


def test_an_api_stream_ends_with_an_error_at_shutdown() -> None:
    async def run() -> list[Message]:
        shutdown = Shutdown()
        return await ask("/v1/chat/completions", shutdown=shutdown, rights=lambda: 1, after=shutdown.event.set)

    sent = asyncio.run(run())
    assert b'"error"' in sent[-1]["body"]
    assert sent[-1]["body"].endswith(b"\n\n")


@pytest.mark.parametrize("path", ["/runs/1/events", "/v1/chat/completions"])
def test_a_stream_ends_when_the_right_to_it_is_gone(path: str) -> None:
    async def run() -> list[Message]:
        roles = ["editor"]
        return await ask(path, shutdown=Shutdown(), rights=lambda: tuple(roles), after=roles.clear)

    assert asyncio.run(run())[-1]["more_body"] is False


def test_a_page_stream_has_an_age_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPT_BUILDER_STREAM_AGE_LIMIT_S", "0.2")
    config.get_settings.cache_clear()
    start = time.monotonic()
    asyncio.run(ask("/runs/1/events", shutdown=Shutdown(), rights=lambda: 1))
    assert 0.2 <= time.monotonic() - start < 3


def test_an_answer_that_ends_by_itself_is_untouched() -> None:
    async def short(scope: Scope, receive: Receive, send: Send) -> None:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"data: only\n\n"

        await StreamingResponse(pieces(), media_type="text/event-stream")(scope, receive, send)

    async def run() -> list[Message]:
        return await ask("/v1/chat/completions", shutdown=Shutdown(), rights=lambda: 1, app=short)

    bodies = [message["body"] for message in asyncio.run(run()) if message["type"] == "http.response.body"]
    assert bodies == [b"data: only\n\n", b""]


def test_an_error_of_the_application_is_passed_on() -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("broken")

    async def run() -> list[Message]:
        return await ask("/x", shutdown=Shutdown(), rights=lambda: 1, app=broken)

    with pytest.raises(RuntimeError, match="broken"):
        asyncio.run(run())
