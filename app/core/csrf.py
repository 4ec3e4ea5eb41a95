"""Protection against requests that another site makes a browser send: where it comes from, then a token."""

import json
from typing import Any
from urllib.parse import urlsplit

from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.body_limit import MAX_BODY_SIZE_SCOPE_KEY
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.config import get_settings
from app.core.errors import Forbidden, Invalid
from app.core.security import csrf_token, is_csrf_token, new_token
from app.core.web import SAFE_METHODS

VISIT_COOKIE = "visit"
FIELD, HEADER = "csrf_token", "x-csrf-token"
FORM_LIMIT_BYTES = 2 * 2**20
FORM_TYPES = ("application/x-www-form-urlencoded", "multipart/form-data")
_SENTENCE = "This page is older than your sign-in, or the request came from another site. Reload it, then try again."


def session_cookie() -> str:
    """The session cookie's name; the prefix binds it to https and this host."""
    return "__Host-sid" if get_settings().is_https else "sid"


def bound_cookie(request: Request) -> str:
    """The cookie that the token is bound to: the session's, before sign-in the visitor's. Empty without either."""
    return request.cookies.get(session_cookie()) or request.scope["state"].get("visit", "")


class Csrf:
    """Gives every visitor a cookie and every page its token. `/v1` reads no cookies and needs none."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(("/v1/", "/static/")):
            return await self.app(scope, receive, send)
        request = Request(scope)
        known = request.cookies.get(VISIT_COOKIE, "")
        visit = known or new_token()
        scope["state"]["visit"] = visit
        scope["state"]["csrf_token"] = csrf_token(bound_cookie(request))

        async def send_with_cookie(message: Message) -> None:
            if message["type"] == "http.response.start" and not known:
                headers = MutableHeaders(scope=message)
                if headers.get("content-type", "").startswith("text/html"):
                    secure = "; Secure" if get_settings().is_https else ""
                    headers.append("set-cookie", f"{VISIT_COOKIE}={visit}; Path=/; HttpOnly; SameSite=Lax{secure}")
            await send(message)

        await self.app(scope, receive, send_with_cookie)


def is_same_origin(headers: Headers) -> bool:
    """Whether the browser says that the request starts here. Plain http in a local network sends no Sec-Fetch-Site;
    there the Origin must be ours. A client that sends neither is no browser, and the token decides."""
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = headers.get("origin")
    return origin is None or urlsplit(origin).netloc == headers.get("host")


async def csrf_checked(request: Request) -> None:
    """Dependency of every router but the API's. Raises Forbidden for a foreign request, Invalid for unstorable text."""
    if request.method in SAFE_METHODS:
        return
    if not is_same_origin(request.headers):
        raise Forbidden(_SENTENCE, code="foreign_request")
    tokens = [request.headers.get(HEADER, ""), request.query_params.get(FIELD, "")]
    content_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    # A form on a route for large files is not read here, where nobody has looked at the asker's rights yet: its
    # token comes in the address or the header.
    is_large = request.scope.get(MAX_BODY_SIZE_SCOPE_KEY, 0) > FORM_LIMIT_BYTES
    if content_type in FORM_TYPES and not is_large:
        form = await request.form()
        for name, value in form.multi_items():
            if isinstance(value, str):
                _check_text(name)
                _check_text(value)
        tokens.append(str(form.get(FIELD, "")))
    elif content_type == "application/json":
        body = (await request.body()).lower()
        if b"\\u0000" in body or b"\\ud" in body:
            _check_strings(await _parsed(request))
    cookie = bound_cookie(request)
    if not cookie or not any(is_csrf_token(token, cookie) for token in tokens if token):
        raise Forbidden(_SENTENCE, code="csrf")


async def _parsed(request: Request) -> Any:
    try:
        return await request.json()
    except (json.JSONDecodeError, RecursionError, UnicodeDecodeError):
        return None


def _check_strings(value: Any) -> None:
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            _check_text(item)
        elif isinstance(item, dict):
            pending.extend(item)
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)


def _check_text(text: str) -> None:
    if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise Invalid("The text holds a character that cannot be stored (NUL or half a surrogate pair). Remove it.")
