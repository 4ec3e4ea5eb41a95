"""Long answers end when they should: at shutdown, at a great age, or when the reader's rights have changed."""

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.config import get_settings

log = logging.getLogger(__name__)
RECHECK_S = 15.0
# A revoked key ends its answers at once; the look-up is shared by all streams of a key.
API_RECHECK_S = 1.0
# A stream cut without a word looks like success to OpenAI's clients.
_RESTARTING = (
    b'data: {"error": {"message": "The server is restarting. Send the request again.", "type": "server_error",'
    b' "param": null, "code": "restarting"}}\n\n'
)
_REVOKED = (
    b'data: {"error": {"message": "The API key was revoked or has expired, so this answer ends here.", "type":'
    b' "authentication_error", "param": null, "code": "invalid_api_key"}}\n\n'
)


class Shutdown:
    """Set at the first SIGTERM or SIGINT, long before uvicorn's lifespan ends: it waits for open answers first."""

    def __init__(self) -> None:
        self.event = asyncio.Event()

    @asynccontextmanager
    async def watched(self, _app: Any) -> AsyncIterator[None]:
        """The application's lifespan. In a thread other than the main one there are no signals to watch."""
        loop = asyncio.get_running_loop()
        restored: dict[int, Any] = {}
        self.event = asyncio.Event()

        def tell(number: int, frame: Any) -> None:
            loop.call_soon_threadsafe(self.event.set)
            if callable(previous := restored[number]):
                previous(number, frame)

        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                restored[number] = signal.getsignal(number)
                signal.signal(number, tell)
        except ValueError:
            restored.clear()
        try:
            yield
        finally:
            self.event.set()
            for caught, previous in restored.items():
                signal.signal(caught, previous)


class Streams:
    """Watches answers of type text/event-stream. `rights(request)` is a value that changes with what
    the reader of a page may do, `api_rights` the same for the holder of a key."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        shutdown: Shutdown,
        rights: Callable[[Request], Awaitable[Any]],
        api_rights: Callable[[Request], Awaitable[Any]],
    ) -> None:
        self.app, self.shutdown, self.page_rights, self.api_rights = app, shutdown, rights, api_rights

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        is_stream, is_done = asyncio.Event(), False

        async def send_watched(message: Message) -> None:
            nonlocal is_done
            if message["type"] == "http.response.start":
                if Headers(raw=message["headers"]).get("content-type", "").startswith("text/event-stream"):
                    is_stream.set()
            elif message["type"] == "http.response.body" and not message.get("more_body"):
                is_done = True
            await send(message)

        answering: asyncio.Task[Any] = asyncio.create_task(self._answer(scope, receive, send_watched))
        started: asyncio.Task[Any] = asyncio.create_task(is_stream.wait())
        try:
            await asyncio.wait({answering, started}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                await self._until_end(Request(scope), answering)
        finally:
            started.cancel()
            if not answering.done():
                answering.cancel()
        if not answering.cancelled():
            try:
                return await answering
            except asyncio.CancelledError:
                pass
        if not is_done:
            last_word = _RESTARTING if self.shutdown.event.is_set() else _REVOKED
            body = last_word if scope["path"].startswith("/v1/") else b""
            await send({"type": "http.response.body", "body": body, "more_body": False})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)

    async def _until_end(self, request: Request, answering: asyncio.Task[Any]) -> None:
        loop = asyncio.get_running_loop()
        is_api = request.url.path.startswith("/v1/")
        deadline = loop.time() + get_settings().stream_age_limit_s
        look_up, wait_s = (self.api_rights, API_RECHECK_S) if is_api else (self.page_rights, RECHECK_S)
        rights = await look_up(request)
        stopping: asyncio.Task[Any] = asyncio.create_task(self.shutdown.event.wait())
        try:
            while True:
                await asyncio.wait({answering, stopping}, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
                if stopping.done() and is_api:
                    await asyncio.wait({answering}, timeout=max(0.0, get_settings().stop_grace_s - 5))
                if answering.done() or stopping.done():
                    return
                now = await look_up(request)
                if now != rights or (is_api and now is None) or (not is_api and loop.time() > deadline):
                    return
        finally:
            stopping.cancel()
