"""The outermost layer of the web application: host names, request ids, security headers, one log line a request."""

import logging
import re
import time
from collections.abc import Awaitable, Callable

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.config import get_settings
from app.core.db import new_id
from app.core.errors import BadRequest, TooLarge
from app.core.logging import client_address

log = logging.getLogger("app.request")
_HOST = re.compile(r"^(\[[0-9a-f:.]+\]|[a-z0-9._\-]+)(:\d{1,5})?$", re.IGNORECASE)
_NUL = re.compile(rb"%00", re.IGNORECASE)

FIXED_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
    "x-frame-options": "DENY",
}


def content_policy(host: str) -> str:
    """The content security policy. Scripts come from our static folder only; a source with a path needs the host's
    name, and IPv6 literals cannot be written there."""
    scripts = "'self'" if host.startswith("[") else f"{host}/static/"
    return (
        f"default-src 'none'; script-src {scripts}; style-src 'self'; img-src 'self' data: blob:; font-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; manifest-src 'self'; "
        "require-trusted-types-for 'script'; trusted-types htmx"
    )


def is_allowed_host(host: str) -> bool:
    """Whether the Host header names this installation (port ignored; "*.example.org" and "*" are understood)."""
    found = _HOST.match(host)
    if found is None:
        return False
    name = found.group(1).lower()
    return any(
        allowed == "*" or name == allowed or (allowed.startswith("*.") and name.endswith(allowed[1:]))
        for allowed in (entry.lower() for entry in get_settings().allowed_hosts)
    )


class Edge:
    """`on_error(request, exception)` makes the answer to an exception that nothing else has answered."""

    def __init__(self, app: ASGIApp, on_error: Callable[[Request, Exception], Awaitable[Response]]) -> None:
        self.app, self.on_error = app, on_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        request_id, started = new_id(), time.perf_counter()
        scope.setdefault("state", {})["request_id"] = request_id
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        client_address.set((scope.get("client") or ("",))[0])
        host = Headers(scope=scope).get("host", "")
        status, is_too_large = 0, False

        async def send_with_headers(message: Message) -> None:
            nonlocal status, is_too_large
            if message["type"] == "http.response.start":
                # Starlette's limit answers in plain text, whoever asked; that answer is replaced below.
                is_plain = MutableHeaders(scope=message).get("content-type", "").startswith("text/plain")
                is_too_large = message["status"] == 413 and is_plain
            if is_too_large:
                return
            if message["type"] == "http.response.start":
                status = message["status"]
                _add_headers(MutableHeaders(scope=message), request_id, host)
            await send(message)

        try:
            if not is_allowed_host(host):
                answer = PlainTextResponse("This address is not one of the allowed hosts.\n", status_code=400)
                await answer(scope, receive, send_with_headers)
            elif "\0" in scope["path"] or _NUL.search(scope["query_string"]):
                sentence = "The address holds a character that cannot be used."
                if scope["path"].startswith("/v1/"):
                    response = await self.on_error(Request(scope, receive), BadRequest(sentence))
                else:
                    response = PlainTextResponse(f"{sentence}\n", status_code=400)
                await response(scope, receive, send_with_headers)
            else:
                await self.app(scope, receive, send_with_headers)
            if is_too_large:
                is_too_large = False
                response = await self.on_error(Request(scope, receive), TooLarge())
                await response(scope, receive, send_with_headers)
        except Exception as error:
            if status:
                log.exception("answer broken off")
                raise
            response = await self.on_error(Request(scope, receive), error)
            await response(scope, receive, send_with_headers)
        finally:
            _log_request(scope, status, time.perf_counter() - started)


def _add_headers(headers: MutableHeaders, request_id: str, host: str) -> None:
    settings = get_settings()
    headers["x-request-id"] = request_id
    for name, value in FIXED_HEADERS.items():
        headers.setdefault(name, value)
    headers.setdefault("content-security-policy", content_policy(host if is_allowed_host(host) else "[::]"))
    if settings.is_https:
        headers.setdefault("strict-transport-security", "max-age=31536000")
    # Whatever does not say otherwise (static files do) is somebody's own: no proxy and no browser keeps it.
    headers.setdefault("cache-control", "no-store")


def _log_request(scope: Scope, status: int, elapsed_s: float) -> None:
    """Path without query: what people search for, and tokens in links, are nobody's business."""
    if scope["path"].startswith("/static/") and status < 400:
        return
    actor = scope["state"].get("actor")
    # Lines for machines hold every request; a console that somebody reads, only what went wrong.
    log.log(
        logging.INFO if get_settings().log_json or status >= 400 else logging.DEBUG,
        "request",
        extra={
            "method": scope["method"],
            "path": scope["path"][:300],
            "status": status,
            "elapsed_ms": round(elapsed_s * 1000, 1),
            "user_id": getattr(actor, "user_id", None),
            "address": client_address.get(),
        },
    )
